"""What the int8 GEMMs for Hopper share (`block_int8_gluon`, `channel_int8_gluon`): tiles, their order, their copies.

A program owns a multiprocessor and walks through 192×128 tiles of y. One warp copies tiles of codes to shared memory
by TMA; three warpgroups of 64 rows each multiply (wgmma s8 → s32), and finish a tile (`gemm_finish_gluon`) while the
first K block of the next one multiplies. A K block of 128 moves 40 KiB for 2·192·128·128 operations.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier

from .block_int8 import BLOCK
from .dispatch import multiprocessors
from .grid import cdiv
from .hopper_gluon import Descriptor, barriers, load_tile, next_stage

GROUPS = 3  # warpgroups that multiply, 64 rows each
GROUP_ROWS = 64
# 40 KiB a stage; the finished tile takes 48 KiB in 16 bit and 24 KiB in int8 of the 227 KiB there are.
STAGES, STAGES_CODES = 4, 5
# The entry count is 128 registers a thread (16 warps); the copying warp hands its share to the multiplying ones.
MULTIPLY_REGISTERS, COPY_REGISTERS = 160, 24
L2_ROWS = 8  # row blocks walked together, so that their weight tiles stay in the L2 cache

_RESIDUAL_BLOCK = gl.constexpr(5)  # late enough for the last tile to have left the room, early enough to arrive


@gluon.jit
def residual_block(k_blocks):
    """The K block during which a tile's residual is fetched: the fifth, or the last."""
    return gl.minimum(k_blocks, _RESIDUAL_BLOCK) - 1


@gluon.jit
def rooms(a_desc, w_desc, y_desc, RESIDUAL: gl.constexpr, GROUPS: gl.constexpr, STAGES: gl.constexpr):
    """(a_tiles, w_tiles, y_tiles, ready, free, x_arrived): shared memory for tiles, and its barriers, initialised."""
    rows: gl.constexpr = a_desc.block_shape[0]
    columns: gl.constexpr = w_desc.block_shape[0]
    depth: gl.constexpr = a_desc.block_shape[1]
    a_tiles = gl.allocate_shared_memory(gl.int8, [STAGES * GROUPS, rows, depth], a_desc.layout)
    w_tiles = gl.allocate_shared_memory(gl.int8, [STAGES, columns, depth], w_desc.layout)
    y_tiles = gl.allocate_shared_memory(y_desc.dtype, [GROUPS, rows, columns], y_desc.layout)
    ready, free = barriers(STAGES, GROUPS)
    # Without a residual nobody asks: an idle barrier's memory would be given away, and it may come back over that.
    x_arrived = ready
    if RESIDUAL:
        x_arrived = gl.allocate_shared_memory(gl.int64, [GROUPS, 1], mbarrier.MBarrierLayout())
        for group in gl.static_range(GROUPS):
            mbarrier.init(x_arrived.index(group), count=1)
    fence_async_shared()  # copies must find the barriers as they begin
    return a_tiles, w_tiles, y_tiles, ready, free, x_arrived


@gluon.jit
def place(band, index, m_blocks, n_blocks, L2_ROWS: gl.constexpr):
    """Row and column block of a tile, given as its band of L2_ROWS row blocks and its index there: columns last."""
    rows = gl.minimum(m_blocks - band * L2_ROWS, L2_ROWS)
    if rows == L2_ROWS:
        n_block = index // L2_ROWS
    else:
        rows = gl.maximum(rows, 1)  # behind the last tile there may be none
        n_block = gl.minimum(index // rows, n_blocks - 1)
    m_block = band * L2_ROWS + index - n_block * rows
    return m_block, n_block


@gluon.jit
def first_tile(n_blocks, L2_ROWS: gl.constexpr):
    """(band, index, band_step, index_step, band_tiles): where this program begins, and what `next_tile` goes on by."""
    band_tiles = L2_ROWS * n_blocks
    band = gl.program_id(0) // band_tiles
    index = gl.program_id(0) % band_tiles
    band_step = gl.num_programs(0) // band_tiles
    index_step = gl.num_programs(0) % band_tiles
    return band, index, band_step, index_step, band_tiles


@gluon.jit
def next_tile(band, index, band_step, index_step, band_tiles):
    """The tile that this program works on next, found without a division."""
    band += band_step
    index += index_step
    if index >= band_tiles:
        index -= band_tiles
        band += 1
    return band, index


@gluon.jit
def copy_tiles(
    a_desc, w_desc, a_tiles, w_tiles, ready, free, m_blocks, n_blocks, k_blocks,
    GROUPS: gl.constexpr, STAGES: gl.constexpr, L2_ROWS: gl.constexpr,
):  # fmt: skip
    """The copying warp's part."""
    rows: gl.constexpr = a_desc.block_shape[0]
    columns: gl.constexpr = w_desc.block_shape[0]
    depth: gl.constexpr = a_desc.block_shape[1]
    stage = 0
    phase = 1  # a fresh barrier's previous phase: every stage is free at first
    band, index, band_step, index_step, band_tiles = first_tile(n_blocks, L2_ROWS)
    for _ in range(gl.program_id(0), m_blocks * n_blocks, gl.num_programs(0)):
        m_block, n_block = place(band, index, m_blocks, n_blocks, L2_ROWS)
        for k_block in range(k_blocks):
            mbarrier.wait(free.index(stage), phase)
            arrived = ready.index(stage)
            mbarrier.expect(arrived, (GROUPS * rows + columns) * depth)
            load_tile(w_desc, [n_block * columns, k_block * depth], arrived, w_tiles.index(stage))
            for group in gl.static_range(GROUPS):
                first = (m_block * GROUPS + group) * rows
                load_tile(a_desc, [first, k_block * depth], arrived, a_tiles.index(stage * GROUPS + group))
            stage, phase = next_stage(stage, phase, STAGES)
        band, index = next_tile(band, index, band_step, index_step, band_tiles)


def programs(rows: int, columns: int, device: torch.device) -> int:
    """How many walk through the tiles of y [rows, columns]."""
    return min(cdiv(rows, GROUPS * GROUP_ROWS) * cdiv(columns, BLOCK), multiprocessors(device))


def descriptor(x: Tensor, rows: int) -> Descriptor:
    """Of a matrix, in boxes of `rows` rows and 128 columns."""
    return Descriptor(x, x.shape, x.stride(), [rows, BLOCK], _layout(x.dtype, rows))


@functools.cache
def _layout(dtype: torch.dtype, rows: int) -> gl.NVMMASharedLayout:
    element = {torch.int8: gl.int8, torch.float16: gl.float16, torch.bfloat16: gl.bfloat16}[dtype]
    return gl.NVMMASharedLayout.get_default_for([rows, BLOCK], element)
