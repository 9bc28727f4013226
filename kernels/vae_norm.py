"""The VAE's norm over channels, with the SiLU that follows it in all but the attention block, in one pass.

    y = x / max(|x|, 1e-12) · √C · gamma          out = y · sigmoid(y), or y

|x| is the Euclidean length over the C channels of a position. Tensors are [B, C, T, H, W]; the kernel takes them
channels-last, a position's channels side by side and positions one after another, so that ``out`` may be the later
frames of a larger window. It computes in fp32, rounds once, reads x once and writes out once: 4 bytes an element.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .dispatch import Kernel

CHANNEL_NORM = Kernel(name="VAE norm", last_dim_multiple=8, contiguous=True)
LENGTH_FLOOR = 1e-12  # the least length a vector is divided by


def channel_norm_ref(x: Tensor, gamma: Tensor, *, silu: bool, out: Tensor) -> None:
    """x, out [B, C, T, H, W] of one dtype, gamma with C elements; lengths in fp32 or better.

    Each pass rounds to the dtype of ``out`` as it stores, so that no wide copy of x is made.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=wide).clamp_(min=LENGTH_FLOOR)
    torch.mul(x, length.reciprocal_().mul_(x.shape[1] ** 0.5), out=out)
    torch.mul(out, gamma.to(wide).view(1, -1, *[1] * (x.ndim - 2)), out=out)
    if silu:
        F.silu(out, inplace=True)


def channel_norm(x: Tensor, gamma: Tensor, *, silu: bool, out: Tensor) -> None:
    """`channel_norm_ref`, by the kernel where it runs."""
    rows_x, rows_out = x.movedim(1, -1), out.movedim(1, -1)
    if CHANNEL_NORM.accepts(rows_x) and CHANNEL_NORM.accepts(rows_out):
        from .vae_norm_triton import channel_norm_triton

        channel_norm_triton(rows_x, gamma, silu=silu, out=rows_out)
    else:
        channel_norm_ref(x, gamma, silu=silu, out=out)
