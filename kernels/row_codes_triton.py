"""Triton kernel of `row_codes`: one program a row, read twice (the second time from the cache).

With GELU it would be bound by instructions: the hardware's tanh (2^-11 relative, 0.03 of an int8 step at a row's amax)
and rounding by one addition keep it near the memory's rate.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .block_int8 import AMAX_FLOOR
from .block_int8_triton import ROUND_MAGIC, gelu_tanh
from .row_codes import GELU_DIP, LARGEST, RowCodes

NARROW = 2048
CHUNK_NARROW, CHUNK_WIDE = (512, 2), (1024, 4)  # columns at a time and warps, for K up to NARROW and above


@triton.jit
def encode(x, factor, dtype: tl.constexpr):
    """Codes of x · factor, whose magnitude is at most that of the dtype's largest code."""
    scaled = x * factor
    if dtype == tl.int8:
        # An integer added to 1.5·2^23 lies in the lowest bits of the sum.
        return tl.minimum(scaled + ROUND_MAGIC, ROUND_MAGIC + 127.0).to(tl.int32, bitcast=True).to(tl.int8)
    else:
        return scaled.to(dtype)


@triton.jit
def _gelu(x, HARDWARE_TANH: tl.constexpr):
    if HARDWARE_TANH:
        inner = x * (0.7978845608028654 + 0.035677408136300125 * (x * x))
        tanh = tl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;", "=r,r", [inner], dtype=tl.float32, is_pure=True, pack=1
        )
        return 0.5 * x * tanh + 0.5 * x
    else:
        return gelu_tanh(x)


@triton.jit
def _quantize_rows_kernel(
    x_ptr,  # [M, K]
    codes_ptr,  # int8 or e4m3 [M, K]
    scale_ptr,  # fp32 [M]
    K,
    LARGEST: tl.constexpr,
    AMAX_MIN: tl.constexpr,
    GELU: tl.constexpr,
    HARDWARE_TANH: tl.constexpr,
    CHUNK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, CHUNK)
    x_ptrs = x_ptr + row * K + columns
    largest = tl.zeros((CHUNK,), dtype=tl.float32)
    for start in range(0, K, CHUNK):
        x = tl.load(x_ptrs + start, mask=columns < K - start, other=0.0).to(tl.float32)
        largest = tl.maximum(largest, x if GELU else tl.abs(x))
    amax = tl.max(largest, axis=0)
    amax = tl.maximum(_gelu(amax, HARDWARE_TANH) if GELU else amax, AMAX_MIN)
    tl.store(scale_ptr + row, amax * (1.0 / LARGEST))
    factor = LARGEST / amax
    for start in range(0, K, CHUNK):
        x = tl.load(x_ptrs + start, mask=columns < K - start, other=0.0).to(tl.float32)
        codes = encode(_gelu(x, HARDWARE_TANH) if GELU else x, factor, codes_ptr.dtype.element_ty)
        tl.store(codes_ptr + row * K + start + columns, codes, mask=columns < K - start)


def quantize_rows_triton(x: Tensor, dtype: torch.dtype, gelu: bool) -> RowCodes:
    """The rows of x [..., K] in codes of `dtype`."""
    x = x.reshape(-1, x.shape[-1]).contiguous()
    codes = torch.empty(x.shape, dtype=dtype, device=x.device)
    scale = torch.empty(x.shape[0], dtype=torch.float32, device=x.device)
    chunk, warps = CHUNK_NARROW if x.shape[1] <= NARROW else CHUNK_WIDE
    with torch.cuda.device_of(x):
        _quantize_rows_kernel[(x.shape[0],)](
            x,
            codes,
            scale,
            x.shape[1],
            LARGEST=LARGEST[dtype],
            AMAX_MIN=GELU_DIP if gelu else AMAX_FLOOR,
            GELU=gelu,
            HARDWARE_TANH=x.is_cuda,  # inline assembly is not interpreted
            CHUNK=chunk,
            num_warps=warps,
        )
    return RowCodes(codes, scale)
