"""The Triton kernel of `channel_int8`: 2·M·N·K operations, M never specialised.

Hopper has a GEMM of its own (`channel_int8_gluon`); this one serves every other GPU, and Hopper where that cannot run
or rows of y are not whole for TMA.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .block_int8 import GatedResidual
from .block_int8_triton import gelu_tanh, tile_of
from .dispatch import hopper_gemm_takes
from .grid import cdiv
from .row_codes import RowCodes

# At most 72 KiB of shared memory (48 where compiled by Triton 3.6 and 3.9), which fit every GPU from sm80 on.
TILE_M, TILE_N, TILE_K, GROUP_M = 64, 128, 128, 8


@triton.jit(do_not_specialize=["M", "a_scale_ptr"])
def _linear_kernel(
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
    read_rows = tl.minimum(m_block * BLOCK_M + tl.arange(0, BLOCK_M), M - 1).to(tl.int64)
    read_columns = tl.minimum(n_block * BLOCK_N + tl.arange(0, BLOCK_N), N - 1).to(tl.int64)
    k_offsets = tl.arange(0, BLOCK_K)
    a_ptrs = a_ptr + read_rows[:, None] * K + k_offsets[None, :]
    w_ptrs = w_ptr + read_columns[None, :] * K + k_offsets[:, None]
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
    for start in range(0, K, BLOCK_K):
        total = tl.dot(tl.load(a_ptrs + start), tl.load(w_ptrs + start), total, out_dtype=tl.int32)
    rows = m_block * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = n_block * BLOCK_N + tl.arange(0, BLOCK_N)
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
    if hopper_gemm_takes(y, "run_channel_probe"):
        from .channel_int8_gluon import launch_gluon as launch
    else:
        launch = launch_plain
    gates = None if residual is None or residual.gate is None else residual.gate.to(torch.float32).contiguous()
    samples = 1 if gates is None else gates.shape[0]
    length = m // samples
    for sample in range(samples):
        rows = slice(sample * length, (sample + 1) * length)
        x = None if residual is None else residual.x.reshape(m, n)[rows]
        gate = None if gates is None else gates[sample]
        launch(RowCodes(a.codes[rows], a.scale[rows]), w, bias, gelu, x, gate, y[rows])
    return y


def launch_plain(
    a: RowCodes, w: RowCodes, bias: Tensor | None, gelu: bool, x: Tensor | None, gate: Tensor | None, y: Tensor
) -> None:
    """Write into y [M, N]; x [M, N] and gate fp32 [N] are the residual's."""
    (m, k), n = a.shape, w.shape[0]
    with torch.cuda.device_of(y):
        _linear_kernel[(cdiv(m, TILE_M) * cdiv(n, TILE_N),)](
            a.codes,
            w.codes.contiguous(),
            a.scale,
            w.scale.contiguous(),
            y if bias is None else bias,
            y if x is None else x,
            a.scale if gate is None else gate,
            y,
            m,
            n,
            k,
            HAS_BIAS=bias is not None,
            GELU=gelu,
            RESIDUAL=x is not None,
            GATE=gate is not None,
            BLOCK_M=TILE_M,
            BLOCK_N=TILE_N,
            BLOCK_K=TILE_K,
            GROUP_M=GROUP_M,
            num_warps=4,
            num_stages=3,
        )
