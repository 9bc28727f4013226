"""Triton kernels of `block_int8`: activation quantization and the int8 GEMM with its epilogue.

Quantization moves 3 bytes an element (read bf16, write int8) and is bound by memory; the GEMM does 2·M·N·K
operations. Row counts, and strides made of them, are never specialised: other sizes do not recompile. Triton launches
on the current device, so every launch makes its tensors' device current. Hopper has a GEMM of its own
(`block_int8_gluon`); this one serves every other GPU, and Hopper with a Triton that lacks Gluon.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .block_int8 import AMAX_FLOOR, BLOCK, BlockInt8, GatedResidual, QuantizedActivations
from .dispatch import hopper_gemm_takes
from .grid import cdiv

# 1.5·2^23: adding and subtracting it rounds an fp32 of magnitude < 2^22 to the nearest integer, ties to even.
ROUND_MAGIC = tl.constexpr(12582912.0)
QUANT_ROWS = 64
# 64×128 tiles, 4 warps, 3 stages: 712–808 TOPS on an H200 at the 1.3B shapes, against 567–624 for 128×128 (8 warps).
# At most 72 KiB of shared memory (48 where compiled by Triton 3.6 and 3.9), which fit every GPU from sm80 on.
LINEAR_TILE_M = 64
LINEAR_GROUP_M = 8


@triton.jit
def round_to_codes(x):
    """Int8 codes of x, whose magnitude is at most 127: to the nearest integer, ties to even, the sum's low byte."""
    return (x + ROUND_MAGIC).to(tl.int32, bitcast=True).to(tl.int8)


@triton.jit
def encode_rows(x, amax):
    """Int8 codes of [M, N] under an amax per row, which bounds |x|: the code is the rounded sum's low byte."""
    rounded = tl.minimum(x * (128.0 / amax)[:, None] + ROUND_MAGIC, ROUND_MAGIC + 127.0)
    return rounded.to(tl.int32, bitcast=True).to(tl.int8)


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
    tl.store(codes_ptr + offsets, encode_rows(x, amax), mask=inside[:, None])
    tl.store(scale_ptr + k_block.to(tl.int64) * row_count + rows, amax * (1.0 / 128.0), mask=inside)


@triton.jit
def gelu_tanh(x):
    inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)
    return x * tl.sigmoid(2.0 * inner)


@triton.jit
def tile_of(program, M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr):
    """Rows and columns of a program's tile: columns first within groups of row blocks, for the L2 cache."""
    m_blocks = tl.cdiv(M, BLOCK_M)
    n_blocks = tl.cdiv(N, BLOCK_N)
    per_group = GROUP_M * n_blocks
    first_m = program // per_group * GROUP_M
    group_m = tl.minimum(m_blocks - first_m, GROUP_M)
    return first_m + (program % per_group) % group_m, (program % per_group) // group_m


@triton.jit
def _finish_tile(
    accumulator,
    m_block,
    n_block,
    bias_ptr,  # [N]
    x_ptr,  # [M, N] where RESIDUAL
    gate_ptr,  # fp32 [M/length or 1, N] where GATE
    y_ptr,  # [M, N], int8 codes where QUANTIZE
    parts_ptr,  # fp32 [N/128, M]: the codes' scales, or Σ y² where SQUARES
    M,
    N,
    length,
    gate_stride,
    AMAX_MIN: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    GELU: tl.constexpr,
    RESIDUAL: tl.constexpr,
    GATE: tl.constexpr,
    QUANTIZE: tl.constexpr,
    SQUARES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    rows = m_block * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = n_block * BLOCK_N + tl.arange(0, BLOCK_N)
    if HAS_BIAS:
        accumulator += tl.load(bias_ptr + tl.minimum(columns, N - 1)).to(tl.float32)[None, :]
    if GELU:
        accumulator = gelu_tanh(accumulator)
    # Plain, not clamped, offsets: the compiler must see that they are contiguous to write 16 bytes at a time.
    offsets = rows.to(tl.int64)[:, None] * N + columns[None, :]
    y_ptrs = y_ptr + offsets
    inside = (rows < M)[:, None] & (columns < N)[None, :]
    if RESIDUAL:
        if GATE:
            sample = (rows // length).to(tl.int64)
            accumulator *= tl.load(gate_ptr + sample[:, None] * gate_stride + columns[None, :], mask=inside, other=0.0)
        accumulator += tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    parts_ptrs = parts_ptr + n_block.to(tl.int64) * M + rows
    if QUANTIZE:
        # BLOCK_N is the quantization block, so that a tile's row is one row's share of a scale.
        accumulator = tl.where((columns < N)[None, :], accumulator, 0.0)
        amax = tl.maximum(tl.max(tl.abs(accumulator), axis=1), AMAX_MIN)
        tl.store(y_ptrs, encode_rows(accumulator, amax), mask=inside)
        tl.store(parts_ptrs, amax * (1.0 / 128.0), mask=rows < M)
    else:
        y = accumulator.to(y_ptr.dtype.element_ty)
        tl.store(y_ptrs, y, mask=inside)
        if SQUARES:
            written = tl.where((columns < N)[None, :], y.to(tl.float32), 0.0)
            tl.store(parts_ptrs, tl.sum(written * written, axis=1), mask=rows < M)


@triton.jit(do_not_specialize=["M", "length"])
def _linear_kernel(
    a_ptr,  # int8 [M, K]
    a_scale_ptr,  # fp32 [K/128, M]
    w_ptr,  # int8 [N, K]
    w_scale_ptr,  # fp32 [N/128, K/128]
    bias_ptr,
    x_ptr,
    gate_ptr,
    y_ptr,
    parts_ptr,
    M,
    N,
    K,
    length,
    gate_stride,
    AMAX_MIN: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    GELU: tl.constexpr,
    RESIDUAL: tl.constexpr,
    GATE: tl.constexpr,
    QUANTIZE: tl.constexpr,
    SQUARES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    m_block, n_block = tile_of(tl.program_id(0), M, N, BLOCK_M, BLOCK_N, GROUP_M)
    # Edge tiles read row M-1 (column N-1) again instead of masking every load; the store is masked.
    rows = tl.minimum(m_block * BLOCK_M + tl.arange(0, BLOCK_M), M - 1).to(tl.int64)
    columns = tl.minimum(n_block * BLOCK_N + tl.arange(0, BLOCK_N), N - 1).to(tl.int64)
    k_offsets = tl.arange(0, BLOCK_K)
    a_ptrs = a_ptr + rows[:, None] * K + k_offsets[None, :]
    w_ptrs = w_ptr + columns[None, :] * K + k_offsets[:, None]
    a_scale_ptrs = a_scale_ptr + rows
    k_blocks = K // BLOCK_K
    w_scale_ptrs = w_scale_ptr + n_block * k_blocks

    accumulator = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    # Scales are fetched one block ahead: their load is not pipelined and would stall the multiply otherwise.
    scale = tl.load(a_scale_ptrs) * tl.load(w_scale_ptrs)
    for k_block in range(k_blocks):
        a = tl.load(a_ptrs + k_block * BLOCK_K)
        w = tl.load(w_ptrs + k_block * BLOCK_K)
        following = tl.minimum(k_block + 1, k_blocks - 1)
        next_scale = tl.load(a_scale_ptrs + following.to(tl.int64) * M) * tl.load(w_scale_ptrs + following)
        product = tl.dot(a, w, out_dtype=tl.int32)
        accumulator += product.to(tl.float32) * scale[:, None]
        scale = next_scale
    _finish_tile(
        accumulator,
        m_block,
        n_block,
        bias_ptr,
        x_ptr,
        gate_ptr,
        y_ptr,
        parts_ptr,
        M,
        N,
        length,
        gate_stride,
        AMAX_MIN,
        HAS_BIAS,
        GELU,
        RESIDUAL,
        GATE,
        QUANTIZE,
        SQUARES,
        BLOCK_M,
        BLOCK_N,
    )


def quantize_activations_triton(x: Tensor, rows: int = 1) -> QuantizedActivations:
    """Quantize activations [B, L, K] or [M, K] (contiguous), K a multiple of 128."""
    if rows not in (1, BLOCK):
        raise ValueError(f"quantize activations: rows must be 1 or {BLOCK}, got {rows}")
    x = x.contiguous()
    batch, length, k = x.shape if x.ndim == 3 else (1, *x.shape)
    block_rows = BLOCK if rows == BLOCK else QUANT_ROWS
    blocks_per_sample = cdiv(length, block_rows)
    codes = torch.empty(batch * length, k, dtype=torch.int8, device=x.device)
    scale = torch.empty(k // BLOCK, batch * length, dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
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


def linear_triton(
    a: QuantizedActivations,
    w: BlockInt8,
    bias: Tensor | None,
    gelu: bool,
    dtype: torch.dtype,
    residual: GatedResidual | None = None,
) -> Tensor:
    """Launch the GEMM; see `block_int8.linear_ref` for the mathematics. Returns [M, N] `dtype`."""
    y = torch.empty(a.codes.shape[0], w.shape[0], dtype=dtype, device=a.codes.device)
    _launch_linear(a, w, bias, gelu, y, None, residual)
    return y


def linear_with_squares_triton(
    a: QuantizedActivations, w: BlockInt8, bias: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The GEMM and `block_int8.row_squares_ref` of its output."""
    y, squares = _outputs(a, w, dtype)
    _launch_linear(a, w, bias, False, y, squares, None)
    return y, squares


def linear_quantized_triton(
    a: QuantizedActivations, w: BlockInt8, bias: Tensor | None, gelu: bool
) -> QuantizedActivations:
    """The GEMM with its output quantized per row and 128 columns before it is written."""
    codes, scale = _outputs(a, w, torch.int8)
    _launch_linear(a, w, bias, gelu, codes, scale, None)
    return QuantizedActivations(codes, scale)


def _outputs(a: QuantizedActivations, w: BlockInt8, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Room for y [M, N] `dtype` and a number for each row and 128 columns, fp32 [N/128, M]."""
    (m, _), n, device = a.codes.shape, w.shape[0], a.codes.device
    parts = torch.empty(cdiv(n, BLOCK), m, dtype=torch.float32, device=device)
    return torch.empty(m, n, dtype=dtype, device=device), parts


def _launch_linear(
    a: QuantizedActivations,
    w: BlockInt8,
    bias: Tensor | None,
    gelu: bool,
    y: Tensor,
    parts: Tensor | None,
    residual: GatedResidual | None,
) -> None:
    (m, k), n = a.codes.shape, w.shape[0]
    if w.shape[1] != k:
        raise ValueError(f"block-int8 linear: weight must have {k} columns, got {tuple(w.shape)}")
    if residual is not None and residual.x.numel() != m * n:
        raise ValueError(f"block-int8 linear: residual must be [{m}, {n}], got {tuple(residual.x.shape)}")
    if hopper_gemm_takes(y):
        from .block_int8_gluon import linear_gluon

        linear_gluon(a, w, bias, gelu=gelu, y=y, parts=parts, residual=residual)
    else:
        _launch_plain(a, w, bias, gelu, y, parts, residual)


def _launch_plain(
    a: QuantizedActivations,
    w: BlockInt8,
    bias: Tensor | None,
    gelu: bool,
    y: Tensor,
    parts: Tensor | None,
    residual: GatedResidual | None,
) -> None:
    (m, k), n = a.codes.shape, w.shape[0]
    x = y if residual is None else residual.x.contiguous()
    gate = None if residual is None or residual.gate is None else residual.gate.to(torch.float32).contiguous()
    grid = (cdiv(m, LINEAR_TILE_M) * cdiv(n, BLOCK),)
    with torch.cuda.device_of(y):
        _linear_kernel[grid](
            a.codes,
            a.scale,
            w.codes.contiguous(),
            w.scale.contiguous(),
            bias if bias is not None else y,
            x,
            gate if gate is not None else a.scale,
            y,
            parts if parts is not None else y,
            m,
            n,
            k,
            x.shape[1] if gate is not None else m,
            n if gate is not None and gate.shape[0] > 1 else 0,
            AMAX_MIN=AMAX_FLOOR,
            HAS_BIAS=bias is not None,
            GELU=gelu,
            RESIDUAL=residual is not None,
            GATE=gate is not None,
            QUANTIZE=y.dtype == torch.int8,
            SQUARES=parts is not None and y.dtype != torch.int8,
            BLOCK_M=LINEAR_TILE_M,
            BLOCK_N=BLOCK,
            BLOCK_K=BLOCK,
            GROUP_M=LINEAR_GROUP_M,
            num_warps=4,
            num_stages=3,
        )
