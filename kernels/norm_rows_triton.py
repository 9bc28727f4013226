"""Triton kernel of `norm.layer_norm_rows`: one program a row, whose scale needs the whole of it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .block_int8 import AMAX_FLOOR
from .norm_triton import per_sample
from .row_codes import LARGEST, RowCodes
from .row_codes_triton import encode

NARROW = 2048
WARPS_NARROW, WARPS_WIDE = 2, 8


@triton.jit(do_not_specialize=["length"])
def _layer_norm_rows_kernel(
    x_ptr,  # [B·L, C]
    multiplier_ptr,  # [B or 1, C]
    offset_ptr,  # [B or 1, C]
    codes_ptr,  # int8 or e4m3 [B·L, C]
    scale_ptr,  # fp32 [B·L]
    length,
    C,
    multiplier_stride,
    offset_stride,
    eps,
    AMAX_MIN: tl.constexpr,
    LARGEST: tl.constexpr,
    BLOCK: tl.constexpr,  # padded C
):
    row = tl.program_id(0).to(tl.int64)
    sample = row // length
    columns = tl.arange(0, BLOCK)
    inside = columns < C
    x = tl.load(x_ptr + row * C + columns, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(x, axis=0) / C
    centred = tl.where(inside, x - mean, 0.0)
    variance = tl.sum(centred * centred, axis=0) / C
    multiplier = tl.load(multiplier_ptr + sample * multiplier_stride + columns, mask=inside, other=0.0).to(tl.float32)
    offset = tl.load(offset_ptr + sample * offset_stride + columns, mask=inside, other=0.0).to(tl.float32)
    y = centred * tl.rsqrt(variance + eps) * multiplier + offset
    amax = tl.maximum(tl.max(tl.abs(y), axis=0), AMAX_MIN)
    tl.store(scale_ptr + row, amax * (1.0 / LARGEST))
    tl.store(codes_ptr + row * C + columns, encode(y, LARGEST / amax, codes_ptr.dtype.element_ty), mask=inside)


def layer_norm_rows_triton(x: Tensor, multiplier: Tensor, offset: Tensor, eps: float, dtype: torch.dtype) -> RowCodes:
    """Codes of `dtype` with a scale per row."""
    x = x.contiguous()
    batch, length, width = x.shape
    multiplier, multiplier_stride = per_sample(multiplier, x)
    offset, offset_stride = per_sample(offset, x)
    codes = torch.empty(batch * length, width, dtype=dtype, device=x.device)
    scale = torch.empty(batch * length, dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        _layer_norm_rows_kernel[(batch * length,)](
            x,
            multiplier,
            offset,
            codes,
            scale,
            length,
            width,
            multiplier_stride,
            offset_stride,
            eps,
            AMAX_MIN=AMAX_FLOOR,
            LARGEST=LARGEST[dtype],
            BLOCK=triton.next_power_of_2(width),
            num_warps=WARPS_NARROW if width <= NARROW else WARPS_WIDE,
        )
    return RowCodes(codes, scale)
