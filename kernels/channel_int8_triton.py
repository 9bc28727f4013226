"""Triton kernels of `channel_int8`: a GEMM by pointers, and a persistent one by tensor descriptors for Hopper.

2·M·N·K operations. The persistent one keeps an int32 tile of 128×256 in the registers of 8 warps, where block-int8
needs as much again for its fp32 sums. M is never specialised: other token counts do not recompile.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .block_int8 import GatedResidual
from .block_int8_triton import gelu_tanh, tile_of
from .dispatch import multiprocessors, use_tma
from .grid import cdiv
from .row_codes import RowCodes

# At most 72 KiB of shared memory (48 where compiled by Triton 3.6 and 3.9), which fit every GPU from sm80 on.
TILE_M, TILE_N, TILE_K, GROUP_M = 64, 128, 128, 8
# 4 stages of 48 KiB and the 32 KiB through which half a finished tile passes: all of Hopper's shared memory.
WIDE_M, WIDE_N, WIDE_K, WIDE_GROUP_M = 128, 256, 128, 16
INTERPRETED_PROGRAMS = 3  # few, so that each takes several tiles in a test


@triton.jit
def _finish(
    total,  # int32 [ROWS, COLUMNS]
    first_row,
    first_column,
    a_scale_ptr,
    w_scale_ptr,
    bias_ptr,
    x_ptr,
    gate_ptr,
    y_ptr,
    M,
    N,
    HAS_BIAS: tl.constexpr,
    GELU: tl.constexpr,
    RESIDUAL: tl.constexpr,
    GATE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    rows = first_row + tl.arange(0, ROWS)
    columns = first_column + tl.arange(0, COLUMNS)
    a_scale = tl.load(a_scale_ptr + rows, mask=rows < M, other=0.0)
    w_scale = tl.load(w_scale_ptr + columns, mask=columns < N, other=0.0)
    y = total.to(tl.float32) * a_scale[:, None] * w_scale[None, :]
    if HAS_BIAS:
        y += tl.load(bias_ptr + columns, mask=columns < N, other=0.0).to(tl.float32)[None, :]
    if GELU:
        y = gelu_tanh(y)
    # Plain, not clamped, offsets: the compiler must see that they are contiguous to write 16 bytes at a time.
    offsets = rows.to(tl.int64)[:, None] * N + columns[None, :]
    inside = (rows < M)[:, None] & (columns < N)[None, :]
    if GATE:
        y *= tl.load(gate_ptr + columns, mask=columns < N, other=0.0)[None, :]
    if RESIDUAL:
        y += tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["M", "a_scale_ptr"])
def _tile_kernel(
    a_ptr,  # int8 [M, K]
    w_ptr,  # int8 [N, K]
    a_scale_ptr,  # fp32 [M]
    w_scale_ptr,  # fp32 [N]
    bias_ptr,  # [N]
    x_ptr,  # [M, N] where RESIDUAL
    gate_ptr,  # fp32 [N] where GATE
    y_ptr,  # [M, N]
    M,
    N,
    K,
    HAS_BIAS: tl.constexpr,
    GELU: tl.constexpr,
    RESIDUAL: tl.constexpr,
    GATE: tl.constexpr,
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
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
    for start in range(0, K, BLOCK_K):
        total = tl.dot(tl.load(a_ptrs + start), tl.load(w_ptrs + start), total, out_dtype=tl.int32)
    _finish(
        total, m_block * BLOCK_M, n_block * BLOCK_N, a_scale_ptr, w_scale_ptr, bias_ptr, x_ptr, gate_ptr, y_ptr, M, N,
        HAS_BIAS, GELU, RESIDUAL, GATE, BLOCK_M, BLOCK_N,
    )  # fmt: skip


@triton.jit(do_not_specialize=["M", "a_scale_ptr"])
def _persistent_kernel(
    a_source,  # descriptor of int8 [M, K], blocks of BLOCK_M x BLOCK_K
    w_source,  # descriptor of int8 [N, K], blocks of BLOCK_N x BLOCK_K
    a_scale_ptr,
    w_scale_ptr,
    bias_ptr,
    x_ptr,
    gate_ptr,
    y_ptr,
    M,
    N,
    K,
    HAS_BIAS: tl.constexpr,
    GELU: tl.constexpr,
    RESIDUAL: tl.constexpr,
    GATE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    HALF: tl.constexpr = BLOCK_N // 2
    tiles = tl.cdiv(M, BLOCK_M) * tl.cdiv(N, BLOCK_N)
    # Flattened, so that the next tile's copies are under way while this one is written.
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=True):
        m_block, n_block = tile_of(tile, M, N, BLOCK_M, BLOCK_N, GROUP_M)
        total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
        for k_block in range(K // BLOCK_K):
            a = a_source.load([m_block * BLOCK_M, k_block * BLOCK_K])
            w = w_source.load([n_block * BLOCK_N, k_block * BLOCK_K])
            total = tl.dot(a, w.T, total, out_dtype=tl.int32)
        row, column = m_block * BLOCK_M, n_block * BLOCK_N
        if RESIDUAL:
            # In halves: a whole tile of x beside a whole tile of y would not fit into the registers.
            left, right = tl.split(tl.permute(tl.reshape(total, (BLOCK_M, 2, HALF)), (0, 2, 1)))
            _finish(
                left, row, column, a_scale_ptr, w_scale_ptr, bias_ptr, x_ptr, gate_ptr, y_ptr, M, N,
                HAS_BIAS, GELU, RESIDUAL, GATE, BLOCK_M, HALF,
            )  # fmt: skip
            _finish(
                right, row, column + HALF, a_scale_ptr, w_scale_ptr, bias_ptr, x_ptr, gate_ptr, y_ptr, M, N,
                HAS_BIAS, GELU, RESIDUAL, GATE, BLOCK_M, HALF,
            )  # fmt: skip
        else:
            _finish(
                total, row, column, a_scale_ptr, w_scale_ptr, bias_ptr, x_ptr, gate_ptr, y_ptr, M, N,
                HAS_BIAS, GELU, RESIDUAL, GATE, BLOCK_M, BLOCK_N,
            )  # fmt: skip


def linear_triton(
    a: RowCodes,
    w: RowCodes,
    bias: Tensor | None,
    gelu: bool,
    dtype: torch.dtype,
    residual: GatedResidual | None = None,
) -> Tensor:
    """Launch the GEMM; see `channel_int8.linear_ref` for the mathematics. Returns [M, N] `dtype`.

    Samples with gates of their own are launched one by one: a tile would have to look up each row's gate.
    """
    (m, k), n = a.shape, w.shape[0]
    if w.shape[1] != k:
        raise ValueError(f"channel-int8 linear: weight must have {k} columns, got {tuple(w.shape)}")
    if residual is not None and residual.x.numel() != m * n:
        raise ValueError(f"channel-int8 linear: residual must be [{m}, {n}], got {tuple(residual.x.shape)}")
    y = torch.empty(m, n, dtype=dtype, device=a.device)
    persistent = use_tma(a.device)
    samples = 1 if residual is None or residual.gate is None else residual.gate.shape[0]
    length = m // samples
    for sample in range(samples):
        rows = slice(sample * length, (sample + 1) * length)
        x = None if residual is None else residual.x.reshape(m, n)[rows]
        gate = None if residual is None or residual.gate is None else residual.gate[sample].to(torch.float32)
        launch(RowCodes(a.codes[rows], a.scale[rows]), w, bias, gelu, x, gate, y[rows], persistent)
    return y


def launch(
    a: RowCodes,
    w: RowCodes,
    bias: Tensor | None,
    gelu: bool,
    x: Tensor | None,
    gate: Tensor | None,
    y: Tensor,
    persistent: bool,
) -> None:
    """Write into y [M, N]; x [M, N] and gate fp32 [N] are the residual's. By the persistent kernel or by the other."""
    (m, k), n = a.shape, w.shape[0]
    w_codes = w.codes.contiguous()
    vectors = (a.scale, w.scale.contiguous(), bias if bias is not None else y)
    rest = (*vectors, x if x is not None else y, gate.contiguous() if gate is not None else a.scale, y, m, n, k)
    epilogue = {"HAS_BIAS": bias is not None, "GELU": gelu, "RESIDUAL": x is not None, "GATE": gate is not None}
    with torch.cuda.device_of(y):
        if persistent:
            from triton.tools.tensor_descriptor import TensorDescriptor

            tiles = cdiv(m, WIDE_M) * cdiv(n, WIDE_N)
            _persistent_kernel[(min(tiles, multiprocessors(y.device, elsewhere=INTERPRETED_PROGRAMS)),)](
                TensorDescriptor.from_tensor(a.codes, [WIDE_M, WIDE_K]),
                TensorDescriptor.from_tensor(w_codes, [WIDE_N, WIDE_K]),
                *rest,
                **epilogue,
                BLOCK_M=WIDE_M,
                BLOCK_N=WIDE_N,
                BLOCK_K=WIDE_K,
                GROUP_M=WIDE_GROUP_M,
                num_warps=8,
                num_stages=4,
            )
        else:
            _tile_kernel[(cdiv(m, TILE_M) * cdiv(n, TILE_N),)](
                a.codes,
                w_codes,
                *rest,
                **epilogue,
                BLOCK_M=TILE_M,
                BLOCK_N=TILE_N,
                BLOCK_K=TILE_K,
                GROUP_M=GROUP_M,
                num_warps=4,
                num_stages=3,
            )
