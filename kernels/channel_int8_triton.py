"""Triton kernels of `channel_int8`: a persistent GEMM by tensor descriptors (Hopper), and one by pointers.

2·M·N·K operations. The persistent one keeps an int32 tile of 128×256 in the registers of 8 warps, where block-int8
needs as much again for its fp32 sums. M is never specialised: other token counts do not recompile.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from .block_int8_triton import gelu_tanh, tile_of
from .dispatch import use_tma
from .row_codes import RowCodes

TILE_M, TILE_N, TILE_K, TILE_GROUP_M = 128, 128, 64, 8  # 3 stages are 48 KiB: they fit every GPU from sm80 on
PERSISTENT_M, PERSISTENT_N, PERSISTENT_K, PERSISTENT_GROUP_M = 128, 256, 128, 8


@triton.jit
def _finish(
    total,  # int32 [BLOCK_M, BLOCK_N]
    m_block,
    n_block,
    a_scale_ptr,
    w_scale_ptr,
    bias_ptr,
    y_ptr,
    M,
    N,
    HAS_BIAS: tl.constexpr,
    GELU: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
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
    y_ptrs = y_ptr + rows.to(tl.int64)[:, None] * N + columns[None, :]
    tl.store(y_ptrs, y.to(y_ptr.dtype.element_ty), mask=(rows < M)[:, None] & (columns < N)[None, :])


@triton.jit(do_not_specialize=["M"])
def _persistent_kernel(
    a_source,  # descriptor of int8 [M, K], blocks of BLOCK_M x BLOCK_K
    w_source,  # descriptor of int8 [N, K], blocks of BLOCK_N x BLOCK_K
    a_scale_ptr,  # fp32 [M]
    w_scale_ptr,  # fp32 [N]
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
    tiles = tl.cdiv(M, BLOCK_M) * tl.cdiv(N, BLOCK_N)
    # Flattened, so that the next tile's copies are under way while this one is written.
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=True):
        m_block, n_block = tile_of(tile, M, N, BLOCK_M, BLOCK_N, GROUP_M)
        total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
        for k_block in range(K // BLOCK_K):
            a = a_source.load([m_block * BLOCK_M, k_block * BLOCK_K])
            w = w_source.load([n_block * BLOCK_N, k_block * BLOCK_K])
            total = tl.dot(a, w.T, total, out_dtype=tl.int32)
        _finish(
            total, m_block, n_block, a_scale_ptr, w_scale_ptr, bias_ptr, y_ptr, M, N, HAS_BIAS, GELU, BLOCK_M, BLOCK_N
        )


@triton.jit(do_not_specialize=["M"])
def _tile_kernel(
    a_ptr,  # int8 [M, K]
    w_ptr,  # int8 [N, K]
    a_scale_ptr,  # fp32 [M]
    w_scale_ptr,  # fp32 [N]
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
    _finish(total, m_block, n_block, a_scale_ptr, w_scale_ptr, bias_ptr, y_ptr, M, N, HAS_BIAS, GELU, BLOCK_M, BLOCK_N)


def linear_triton(a: RowCodes, w: RowCodes, bias: Tensor | None, gelu: bool, dtype: torch.dtype) -> Tensor:
    """Launch the GEMM; see `channel_int8.linear_ref` for the mathematics. Returns [M, N] `dtype`."""
    y = torch.empty(a.shape[0], w.shape[0], dtype=dtype, device=a.device)
    launch(a, w, bias, gelu, y, persistent=use_tma(a.device))
    return y


def launch(a: RowCodes, w: RowCodes, bias: Tensor | None, gelu: bool, y: Tensor, persistent: bool) -> None:
    """Write the linear's output into y [M, N], by the persistent kernel or by the other."""
    (m, k), n = a.shape, w.shape[0]
    if w.shape[1] != k:
        raise ValueError(f"channel-int8 linear: weight must have {k} columns, got {tuple(w.shape)}")
    w_codes = w.codes.contiguous()
    rest = (a.scale, w.scale.contiguous(), bias if bias is not None else y, y, m, n, k)
    with torch.cuda.device_of(a.codes):
        if persistent:
            from triton.tools.tensor_descriptor import TensorDescriptor

            tiles = triton.cdiv(m, PERSISTENT_M) * triton.cdiv(n, PERSISTENT_N)
            _persistent_kernel[(min(tiles, _multiprocessors(a.device)),)](
                TensorDescriptor.from_tensor(a.codes, [PERSISTENT_M, PERSISTENT_K]),
                TensorDescriptor.from_tensor(w_codes, [PERSISTENT_N, PERSISTENT_K]),
                *rest,
                HAS_BIAS=bias is not None,
                GELU=gelu,
                BLOCK_M=PERSISTENT_M,
                BLOCK_N=PERSISTENT_N,
                BLOCK_K=PERSISTENT_K,
                GROUP_M=PERSISTENT_GROUP_M,
                num_warps=8,
                num_stages=4,
            )
        else:
            _tile_kernel[(triton.cdiv(m, TILE_M) * triton.cdiv(n, TILE_N),)](
                a.codes,
                w_codes,
                *rest,
                HAS_BIAS=bias is not None,
                GELU=gelu,
                BLOCK_M=TILE_M,
                BLOCK_N=TILE_N,
                BLOCK_K=TILE_K,
                GROUP_M=TILE_GROUP_M,
                num_warps=4,
                num_stages=3,
            )


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    """How many programs run at once; a few where the kernel is interpreted, so that each takes several tiles."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 3
