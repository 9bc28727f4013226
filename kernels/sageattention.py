"""Dense attention by the optional package `sageattention`, once it has shown that it computes rightly here.

Installed copies are often built for another torch or GPU and fail late or give wrong numbers, so the first use on a
device and dtype runs a small problem and holds the result against torch's own attention.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

# int8 scores and fp8 or fp16 values: published errors are below 0.03; a broken build is far outside.
SELF_CHECK_LIMIT = 0.06
SELF_CHECK_SHAPE = (1, 320, 2, 128)  # B, L, H, D


@functools.cache
def refusal(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the package cannot serve `device` and `dtype`, or None; tried once per process."""
    try:
        from sageattention import sageattn
    except ImportError as error:
        return f"the package sageattention cannot be imported ({error})"
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(SELF_CHECK_SHAPE, generator=generator).to(device, dtype) for _ in range(3))
    try:
        out = sageattn(q, k, v, tensor_layout="NHD").to(torch.float32)
    except torch.cuda.OutOfMemoryError:
        raise  # says nothing of the package, and must not be remembered
    except Exception as error:  # noqa: BLE001 - whatever a broken build raises becomes the stated reason
        return f"the package sageattention fails on {device} ({type(error).__name__}: {error})"
    expected = F.scaled_dot_product_attention(*(x.to(torch.float32).transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    error = float((out - expected).norm() / expected.norm())
    if not error <= SELF_CHECK_LIMIT:
        return f"the package sageattention computes wrongly on {device} (relative error {error:.3g} in a self-check)"
    return None


def sage_dense_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention over all keys, [B, L, H, D]; check `refusal` before."""
    from sageattention import sageattn

    return sageattn(q, k, v, tensor_layout="NHD")
