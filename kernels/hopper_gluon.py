"""Gluon's names by Triton version, and what the VAE's kernels for Hopper share: the shape of their tiles.

A program has one warp that copies by TMA and two warpgroups that multiply, each into three accumulators of 64 rows
(output channels) by 128 columns (8 x 16 positions). A stage of the pipeline holds ``BLOCK_K`` input channels of
tiles and weights in 64-byte swizzled rows.
"""

from __future__ import annotations

from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language._core import _unwrap_if_constexpr, builtin
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

BLOCK_K = 32  # channels of a stage
TILE_H, TILE_W = 8, 16
STAGES = 3
GROUPS = 2  # warpgroups that multiply
COPY_REGISTERS, MULTIPLY_REGISTERS = gl.constexpr(40), gl.constexpr(232)

# Triton 3.6 and 3.9 call these differently.
barrier = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier
load_tile = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared
store_tile = tma.async_store if hasattr(tma, "async_store") else tma.async_copy_shared_to_global
VIEWS_GROW = gl.constexpr(not hasattr(gl, "barrier"))  # whether a view may go on beyond the end of what it views


@builtin
def view(memory, shape, layout, dtype=None, _semantic=None):
    """Shared memory from where ``memory`` starts, in another shape and, where one is given, another type."""
    shape = [_unwrap_if_constexpr(side) for side in _unwrap_if_constexpr(shape)]
    dtype = _unwrap_if_constexpr(dtype) or memory.dtype
    return _semantic.memdesc_reinterpret(memory, dtype, shape, _unwrap_if_constexpr(layout))


@gluon.jit
def barriers(STAGES: gl.constexpr, GROUPS: gl.constexpr):
    """(full, empty): a barrier a stage for its copies, and one for the warpgroups that have read it."""
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=1)
        mbarrier.init(empty.index(stage), count=GROUPS)
    return full, empty


@gluon.jit
def block_room(tiles, slot):
    """Two neighbouring tiles, from an even ``slot`` on, as room for a block: [64 channels, positions]."""
    POSITIONS: gl.constexpr = tiles.shape[1]
    return view(tiles, [tiles.shape[0] // 2, POSITIONS, 64], tiles.layout).index(slot // 2).permute((1, 0))


def rows_descriptor(matrix: Tensor, rows: int) -> TensorDescriptor:
    """Boxes of ``rows`` x BLOCK_K of a matrix of weights."""
    return TensorDescriptor.from_tensor(matrix, [rows, BLOCK_K], gl.NVMMASharedLayout(2 * BLOCK_K, 16, rank=2))


def tiles_descriptor(frames: Tensor) -> TensorDescriptor:
    """Tiles of one frame and BLOCK_K channels of [T, H, W, C]."""
    layout = gl.NVMMASharedLayout(2 * BLOCK_K, 16, rank=4)
    return TensorDescriptor.from_tensor(frames, [1, TILE_H, TILE_W, BLOCK_K], layout)
