"""Hopper's kernel of `vae_upsample`: four small convolutions on the frame before it is doubled, in Gluon.

An output position (2·y + py, 2·x + px) sees two rows and two columns of the frame, so that a program of phase py
computes rows r = px·C + c (both px below each other where C is 96, else one) from the tiles shifted by
dy = py - 1, py and dx = -1, 0, 1. The result seen as [T, H, py, W, px·C + c] takes those rows side by side.
A third of the taps of the doubled frame, and neither it nor a shuffled copy of its frames is ever written.
The two warpgroups compute two frames. See `hopper_gluon` for the division of work.
"""

from __future__ import annotations

import math

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from .hopper_gluon import (
    BLOCK_K,
    COPY_REGISTERS,
    GROUPS,
    MULTIPLY_REGISTERS,
    STAGES,
    TILE_H,
    TILE_W,
    barrier,
    barriers,
    block_room,
    load_tile,
    rows_descriptor,
    store_tile,
    tiles_descriptor,
    view,
)
from .vae_conv import ROWS

WEIGHT_BOX = 128  # rows of a weight copy
INPUTS = gl.constexpr(4)  # tiles of a stage: two rows of two frames
STACK = gl.constexpr(2 * ROWS)  # rows of weights of a stage


@gluon.jit
def _add_product(acc, blocks, tile, block, WANTED: gl.constexpr):
    if WANTED:
        acc = warpgroup_mma(blocks.index(block), tile, acc, is_async=True)
    return acc


@gluon.jit
def _finish_block(
    block: gl.constexpr,
    acc,
    group: gl.constexpr,
    tiles,
    bias_ptr,
    part,
    C_OUT: gl.constexpr,
    ROWS: gl.constexpr,
):
    """Bias, and the result where this warpgroup's own tiles were: two hold a block's 64 channels."""
    rows = gl.arange(0, 64, layout=gl.SliceLayout(1, acc.type.layout))
    channel = (part * ROWS + 64 * block + rows) % C_OUT
    acc += gl.expand_dims(gl.load(bias_ptr + channel).to(gl.float32), 1)
    block_room(tiles, block * INPUTS + group * 2).store(acc.to(tiles.dtype))


@gluon.jit
def _multiply(
    group: gl.constexpr,
    weights,  # [STAGES·6, 64, BLOCK_K]
    tiles,  # [STAGES·INPUTS, POSITIONS, BLOCK_K]
    full,
    empty,
    out_desc,  # [T, H, 2, W, 2·C_out]
    bias_ptr,
    t,
    y,
    x,
    phase,
    part,
    chunks,
    C_OUT: gl.constexpr,
    TAPS: gl.constexpr,
    STAGES: gl.constexpr,
    ROWS: gl.constexpr,
):
    POSITIONS: gl.constexpr = tiles.shape[1]
    mma: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, POSITIONS, 16])
    acc0 = gl.zeros((64, POSITIONS), gl.float32, mma)
    acc1 = gl.zeros((64, POSITIONS), gl.float32, mma)
    acc2 = gl.zeros((64, POSITIONS), gl.float32, mma)
    for dx in gl.static_range(TAPS):
        for k in range(chunks):
            i = dx * chunks + k
            stage = i % STAGES
            mbarrier.wait(full.index(stage), (i // STAGES) & 1)
            for dy in gl.static_range(2):
                tile = tiles.index(stage * INPUTS + group * 2 + dy).permute((1, 0))
                block = (stage * 2 + dy) * 3
                # Of three columns the left one adds nothing to the right pixel's rows, nor the right to the left's.
                acc0 = _add_product(acc0, weights, tile, block, TAPS == 2 or dx < 2)
                acc1 = _add_product(acc1, weights, tile, block + 1, True)
                acc2 = _add_product(acc2, weights, tile, block + 2, TAPS == 2 or dx > 0)
            acc0, acc1, acc2 = warpgroup_mma_wait(4, deps=(acc0, acc1, acc2))
            mbarrier.arrive(empty.index((i + STAGES - 1) % STAGES), pred=i > 0)
    acc0, acc1, acc2 = warpgroup_mma_wait(0, deps=(acc0, acc1, acc2))

    _finish_block(0, acc0, group, tiles, bias_ptr, part, C_OUT, ROWS)
    _finish_block(1, acc1, group, tiles, bias_ptr, part, C_OUT, ROWS)
    _finish_block(2, acc2, group, tiles, bias_ptr, part, C_OUT, ROWS)
    fence_async_shared()
    barrier()
    for half in gl.static_range(6):
        source = tiles.index(half // 2 * INPUTS + group * 2 + half % 2)
        source = view(source, out_desc.block_shape, out_desc.layout)
        store_tile(out_desc, [t + group, y, phase, x, part * ROWS + half * 32], source)
    tma.store_wait(0)


@gluon.jit
def _copy(
    weights,
    tiles,
    full,
    empty,
    x_desc,  # [T/COPIES, H, W, COPIES·C_in]
    weight_desc,  # [parts·2·TAPS·STACK, C_in]
    t,
    y,
    x,
    phase,
    part,
    chunks,
    C_OUT: gl.constexpr,
    COPIES: gl.constexpr,
    TAPS: gl.constexpr,
    STAGES: gl.constexpr,
    ROWS: gl.constexpr,
    WEIGHT_BOX: gl.constexpr,
):
    POSITIONS: gl.constexpr = tiles.shape[1]
    BLOCK_K: gl.constexpr = tiles.shape[2]
    BOXES: gl.constexpr = STACK // WEIGHT_BOX
    boxes = view(weights, [STAGES * BOXES, WEIGHT_BOX, BLOCK_K], weights.layout)
    left = x - 1
    if TAPS == 2:
        left += part * ROWS // C_OUT  # a part is one pixel of the two
    for i in range(TAPS * chunks):
        stage = i % STAGES
        ready = full.index(stage)
        mbarrier.wait(empty.index(stage), ((i // STAGES) & 1) ^ 1)
        mbarrier.expect(ready, 2 * BLOCK_K * (INPUTS * POSITIONS + STACK))
        tap = i // chunks
        channel = (i % chunks) * BLOCK_K
        row = ((part * 2 + phase) * TAPS + tap) * STACK
        for box in gl.static_range(BOXES):
            load_tile(weight_desc, [row + box * WEIGHT_BOX, channel], ready, boxes.index(stage * BOXES + box))
        for tile in gl.static_range(INPUTS):
            frame = t + tile // 2
            room = view(tiles.index(stage * INPUTS + tile), x_desc.block_shape, x_desc.layout)
            corner = [
                frame // COPIES,
                y + phase - 1 + tile % 2,
                left + tap,
                frame % COPIES * chunks * BLOCK_K + channel,
            ]
            load_tile(x_desc, corner, ready, room)


@gluon.jit(do_not_specialize=["frame_tiles", "tiles_in_row", "parts", "chunks"])
def _upsample_kernel(
    x_desc,
    weight_desc,
    out_desc,
    bias_ptr,
    frame_tiles,
    tiles_in_row,
    parts,
    chunks,
    C_OUT: gl.constexpr,
    COPIES: gl.constexpr,
    TAPS: gl.constexpr,
    STAGES: gl.constexpr,
    BLOCK_K: gl.constexpr,
    ROWS: gl.constexpr,
    TILE_H: gl.constexpr,
    TILE_W: gl.constexpr,
    WEIGHT_BOX: gl.constexpr,
):
    layout: gl.constexpr = gl.NVMMASharedLayout(2 * BLOCK_K, 16, rank=2)
    tiles = gl.allocate_shared_memory(x_desc.dtype, [STAGES * INPUTS, TILE_H * TILE_W, BLOCK_K], layout)
    weights = gl.allocate_shared_memory(x_desc.dtype, [STAGES * STACK // 64, 64, BLOCK_K], layout)
    full, empty = barriers(STAGES, 2)
    fence_async_shared()
    program = gl.program_id(0)
    phase = program % 2
    part = program // 2 % parts
    program = program // 2 // parts
    t = program % frame_tiles * 2
    program = program // frame_tiles
    x = program % tiles_in_row * TILE_W
    y = program // tiles_in_row * TILE_H
    gl.warp_specialize(
        [
            (_multiply, (0, weights, tiles, full, empty, out_desc, bias_ptr, t, y, x, phase, part, chunks,
                               C_OUT, TAPS, STAGES, ROWS)),
            (_multiply, (1, weights, tiles, full, empty, out_desc, bias_ptr, t, y, x, phase, part, chunks,
                                C_OUT, TAPS, STAGES, ROWS)),
            (_copy, (weights, tiles, full, empty, x_desc, weight_desc, t, y, x, phase, part, chunks,
                     C_OUT, COPIES, TAPS, STAGES, ROWS, WEIGHT_BOX)),
        ],
        [4, 1],
        [MULTIPLY_REGISTERS, COPY_REGISTERS],
    )  # fmt: skip


def upsample_gluon(x: Tensor, packed: Tensor, bias: Tensor, copies: int) -> Tensor:
    """`vae_upsample.upsample_conv_ref` for one sample: x [T, H, W, copies·C_in] to [copies·T, 2·H, 2·W, C_out]."""
    frames, height, width, _ = x.shape
    c_out, c_in = bias.shape[0], packed.shape[1]
    out = torch.empty(copies * frames, 2 * height, 2 * width, c_out, dtype=x.dtype, device=x.device)
    folded = out.view(copies * frames, height, 2, width, 2 * c_out)
    layout = gl.NVMMASharedLayout(2 * BLOCK_K, 16, rank=5)
    parts = 2 * c_out // ROWS
    grid = triton.cdiv(copies * frames, GROUPS), triton.cdiv(height, TILE_H), triton.cdiv(width, TILE_W)
    with torch.cuda.device_of(x):
        _upsample_kernel[(2 * parts * math.prod(grid),)](
            tiles_descriptor(x),
            rows_descriptor(packed, WEIGHT_BOX),
            TensorDescriptor.from_tensor(folded, [1, TILE_H, 1, TILE_W, BLOCK_K], layout),
            bias,
            grid[0],
            grid[2],
            parts,
            c_in // BLOCK_K,
            C_OUT=c_out,
            COPIES=copies,
            TAPS=3 if 2 * c_out == ROWS else 2,
            STAGES=STAGES,
            BLOCK_K=BLOCK_K,
            ROWS=ROWS,
            TILE_H=TILE_H,
            TILE_W=TILE_W,
            WEIGHT_BOX=WEIGHT_BOX,
            num_warps=4,
        )
    return out
