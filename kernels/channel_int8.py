"""Int8 linear layers with one weight scale per output channel and one activation scale per row.

    y[m,n] = (Σ_k a[m,k] · w[n,k])_int32 · a_scale[m] · w_scale[n] + bias[n]

Neither scale depends on k: the whole sum stays in int32 (|sum| ≤ 2^14 · K), and the multiply's loop holds nothing but
multiplies. Block scales need a conversion and a multiply-add for every product of 128 columns instead.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .block_int8 import GatedResidual
from .dispatch import Kernel
from .row_codes import RowCodes

COLUMNS_MULTIPLE = 128

LINEAR = Kernel(name="channel-int8 linear", last_dim_multiple=COLUMNS_MULTIPLE)


def linear_ref(a: RowCodes, w: RowCodes, bias: Tensor | None, gelu: bool, dtype: torch.dtype) -> Tensor:
    """The formula above, its sum exact (in fp64); then GELU(tanh) if asked. Returns [M, N] `dtype`."""
    total = a.codes.to(torch.float64) @ w.codes.to(torch.float64).T
    y = total.to(torch.float32) * a.scale[:, None] * w.scale[None]
    if bias is not None:
        y += bias.to(torch.float32)
    return (F.gelu(y, approximate="tanh") if gelu else y).to(dtype)


def linear(
    a: RowCodes,
    w: RowCodes,
    bias: Tensor | None,
    *,
    gelu: bool,
    like: Tensor,
    residual: GatedResidual | None = None,
) -> Tensor:
    """Quantized linear, optionally followed by GELU(tanh) and a gated residual; [M, N] in the dtype of `like`."""
    if LINEAR.accepts(like):
        from .channel_int8_triton import linear_triton

        return linear_triton(a, w, bias, gelu, like.dtype, residual)
    if residual is None:
        return linear_ref(a, w, bias, gelu, like.dtype)
    return residual.add(linear_ref(a, w, bias, gelu, torch.float32)).to(like.dtype).reshape(-1, w.shape[0])
