"""What the kernels for Hopper share: Gluon's names by Triton version, a ring's next stage, codes; the VAE's tiles.

A program of the VAE's has one warp that copies by TMA and two warpgroups that multiply, each into three accumulators of
64 rows (output channels) by 128 columns (8 x 16 positions). A stage of the pipeline holds ``BLOCK_K`` input channels of
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

# 1.5·2^23: adding it leaves an integer of magnitude < 2^22 in the low bits of an fp32, rounded to nearest even.
_ROUND_MAGIC = gl.constexpr(12582912.0)
_CODE_MAX = gl.constexpr(12582912.0 + 127.0)


@builtin
def view(memory, shape, layout, dtype=None, _semantic=None):
    """Shared memory from where ``memory`` starts, in another shape and, where one is given, another type."""
    shape = [_unwrap_if_constexpr(side) for side in _unwrap_if_constexpr(shape)]
    dtype = _unwrap_if_constexpr(dtype) or memory.dtype
    return _semantic.memdesc_reinterpret(memory, dtype, shape, _unwrap_if_constexpr(layout))


@gluon.jit
def next_stage(stage, phase, STAGES: gl.constexpr):
    """What follows in a ring of stages, and the phase of its barriers."""
    stage += 1
    if stage == STAGES:
        stage = 0
        phase ^= 1
    return stage, phase


@gluon.jit
def codes_of_rows(x, amax):
    """Int8 codes of x [M, N] for a scale of amax/128 a row, amax the largest magnitude: nearest, ties to even."""
    codes = gl.minimum(x * (128.0 / amax)[:, None] + _ROUND_MAGIC, _CODE_MAX)
    return codes.to(gl.int32, bitcast=True).to(gl.int8)


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


class Descriptor(TensorDescriptor):
    """A descriptor that its launcher answers for: Triton's own checks alignment, shape and layout in Python, 4 µs each.

    What they would refuse, Triton's launcher or the driver refuses as the descriptor is encoded.
    """

    def __post_init__(self) -> None:
        pass


def rows_descriptor(matrix: Tensor, rows: int) -> TensorDescriptor:
    """Boxes of ``rows`` x BLOCK_K of a matrix of weights."""
    return TensorDescriptor.from_tensor(matrix, [rows, BLOCK_K], gl.NVMMASharedLayout(2 * BLOCK_K, 16, rank=2))


def tiles_descriptor(frames: Tensor) -> TensorDescriptor:
    """Tiles of one frame and BLOCK_K channels of [T, H, W, C]."""
    layout = gl.NVMMASharedLayout(2 * BLOCK_K, 16, rank=4)
    return TensorDescriptor.from_tensor(frames, [1, TILE_H, TILE_W, BLOCK_K], layout)
