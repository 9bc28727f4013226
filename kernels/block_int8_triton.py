"""Triton kernels of `block_int8`: activation quantization and the int8 GEMM with its epilogue.

Quantization moves 3 bytes an element (read bf16, write int8) and is bound by memory; the GEMM does 2·M·N·K
operations. Row counts, and strides made of them, are never specialised: other sizes do not recompile.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .block_int8 import AMAX_FLOOR, BLOCK, BlockInt8, QuantizedActivations

# 1.5·2^23: adding and subtracting it rounds an fp32 of magnitude < 2^22 to the nearest integer, ties to even.
ROUND_MAGIC = tl.constexpr(12582912.0)
QUANT_ROWS = 64
# 64×128 tiles, 4 warps, 3 stages: 712–808 TOPS on an H200 at the 1.3B shapes, against 567–624 for 128×128 (8 warps).
# 72 KiB of shared memory, so that it fits every GPU from sm80 on.
LINEAR_TILE_M = 64


@triton.jit(do_not_specialize=["length", "row_count", "blocks_per_sample"])
def _quantize_kernel(
    x_ptr,  # [B·L, K]
    codes_ptr,  # int8 [B·L, K]
    scale_ptr,  # fp32 [K/128, B·L]
    length,
    row_count,
    blocks_per_sample,
    K,
    AMAX_MIN: tl.constexpr,
    ROWS: tl.constexpr,
    SHARED: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    program = tl.program_id(0)
    k_block = tl.program_id(1)
    sample = program // blocks_per_sample
    in_sample = (program % blocks_per_sample) * ROWS + tl.arange(0, ROWS)
    rows = sample.to(tl.int64) * length + in_sample
    inside = in_sample < length
    columns = k_block * BLOCK_K + tl.arange(0, BLOCK_K)
    offsets = rows[:, None] * K + columns[None, :]
    x = tl.load(x_ptr + offsets, mask=inside[:, None], other=0.0).to(tl.float32)
    amax = tl.max(tl.abs(x), axis=1)
    if SHARED:
        amax = tl.zeros_like(amax) + tl.max(amax, axis=0)
    amax = tl.maximum(amax, AMAX_MIN)
    scaled = x * (128.0 / amax)[:, None]
    rounded = (scaled + ROUND_MAGIC) - ROUND_MAGIC
    codes = tl.minimum(tl.maximum(rounded, -128.0), 127.0).to(tl.int8)
    tl.store(codes_ptr + offsets, codes, mask=inside[:, None])
    tl.store(scale_ptr + k_block.to(tl.int64) * row_count + rows, amax * (1.0 / 128.0), mask=inside)


@triton.jit
def _gelu_tanh(x):
    inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)
    return x * tl.sigmoid(2.0 * inner)


@triton.jit(do_not_specialize=["M"])
def _linear_kernel(
    a_ptr,  # int8 [M, K]
    a_scale_ptr,  # fp32 [K/128, M]
    w_ptr,  # int8 [N, K]
    w_scale_ptr,  # fp32 [N/128, K/128]
    bias_ptr,  # [N]
    y_ptr,  # [M, N]
    M,
    N,
    K,
    HAS_BIAS: tl.constexpr,
    GELU: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    program = tl.program_id(0)
    m_blocks = tl.cdiv(M, BLOCK_M)
    n_blocks = tl.cdiv(N, BLOCK_N)
    per_group = GROUP_M * n_blocks
    first_m = program // per_group * GROUP_M
    group_m = tl.minimum(m_blocks - first_m, GROUP_M)
    m_block = first_m + (program % per_group) % group_m
    n_block = (program % per_group) // group_m

    rows = m_block * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = n_block * BLOCK_N + tl.arange(0, BLOCK_N)
    k_offsets = tl.arange(0, BLOCK_K)
    # Edge tiles read row M-1 (column N-1) again instead of masking every load; the store is masked.
    safe_rows = tl.minimum(rows, M - 1).to(tl.int64)
    safe_columns = tl.minimum(columns, N - 1).to(tl.int64)
    a_ptrs = a_ptr + safe_rows[:, None] * K + k_offsets[None, :]
    w_ptrs = w_ptr + safe_columns[None, :] * K + k_offsets[:, None]
    a_scale_ptrs = a_scale_ptr + safe_rows
    k_blocks = K // BLOCK_K
    w_scale_ptrs = w_scale_ptr + n_block * k_blocks

    accumulator = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    # Scales are fetched one block ahead: their load is not pipelined and would stall the multiply otherwise.
    scale = tl.load(a_scale_ptrs) * tl.load(w_scale_ptrs)
    for k_block in range(k_blocks):
        a = tl.load(a_ptrs)
        w = tl.load(w_ptrs)
        following = tl.minimum(k_block + 1, k_blocks - 1)
        next_scale = tl.load(a_scale_ptrs + following.to(tl.int64) * M) * tl.load(w_scale_ptrs + following)
        product = tl.dot(a, w, out_dtype=tl.int32)
        accumulator += product.to(tl.float32) * scale[:, None]
        scale = next_scale
        a_ptrs += BLOCK_K
        w_ptrs += BLOCK_K

    if HAS_BIAS:
        accumulator += tl.load(bias_ptr + safe_columns).to(tl.float32)[None, :]
    if GELU:
        accumulator = _gelu_tanh(accumulator)
    # Plain, not clamped, offsets: the compiler must see that they are contiguous to write 16 bytes at a time.
    y_ptrs = y_ptr + rows.to(tl.int64)[:, None] * N + columns[None, :]
    tl.store(y_ptrs, accumulator.to(y_ptr.dtype.element_ty), mask=(rows < M)[:, None] & (columns < N)[None, :])


def quantize_activations_triton(x: Tensor, rows: int = 1) -> QuantizedActivations:
    """Quantize activations [B, L, K] or [M, K] (contiguous), K a multiple of 128."""
    x = x.contiguous()
    batch, length, k = x.shape if x.ndim == 3 else (1, *x.shape)
    block_rows = BLOCK if rows == BLOCK else QUANT_ROWS
    blocks_per_sample = triton.cdiv(length, block_rows)
    codes = torch.empty(batch * length, k, dtype=torch.int8, device=x.device)
    scale = torch.empty(k // BLOCK, batch * length, dtype=torch.float32, device=x.device)
    _quantize_kernel[(batch * blocks_per_sample, k // BLOCK)](
        x,
        codes,
        scale,
        length,
        batch * length,
        blocks_per_sample,
        k,
        AMAX_MIN=AMAX_FLOOR,
        ROWS=block_rows,
        SHARED=rows == BLOCK,
        BLOCK_K=BLOCK,
        num_warps=8,
    )
    return QuantizedActivations(codes, scale)


def linear_triton(a: QuantizedActivations, w: BlockInt8, bias: Tensor | None, gelu: bool, dtype: torch.dtype) -> Tensor:
    """Launch the GEMM; see `block_int8.linear_ref` for the mathematics. Returns [M, N] `dtype`."""
    (m, k), n = a.codes.shape, w.shape[0]
    if w.shape[1] != k:
        raise ValueError(f"block-int8 linear: weight must have {k} columns, got {tuple(w.shape)}")
    y = torch.empty(m, n, dtype=dtype, device=a.codes.device)
    grid = (triton.cdiv(m, LINEAR_TILE_M) * triton.cdiv(n, BLOCK),)
    _linear_kernel[grid](
        a.codes,
        a.scale,
        w.codes.contiguous(),
        w.scale.contiguous(),
        bias if bias is not None else y,
        y,
        m,
        n,
        k,
        HAS_BIAS=bias is not None,
        GELU=gelu,
        BLOCK_M=LINEAR_TILE_M,
        BLOCK_N=BLOCK,
        BLOCK_K=BLOCK,
        GROUP_M=8,
        num_warps=4,
        num_stages=3,
    )
    return y
