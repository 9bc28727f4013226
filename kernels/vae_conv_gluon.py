"""Hopper's kernel of `vae_conv`: an implicit GEMM by TMA and warpgroup MMA, in Gluon.

A program computes 128 output positions (8 x 16 of a frame) of two warpgroups, each 192 rows: the channels of
``FRAMES`` output frames below each other (two frames of 96 channels, or one of 192). For a tap (dy, dx) and 32 input
channels a stage in shared memory holds the tile shifted by the tap of every input frame that the program needs, and
the weights of the three time taps below each other, W2 over W1 over W0. Input frame f of a warpgroup adds

    accumulator[r, :] += S[(2 - f)·C + r, :] · tile_f,     r = t·C + c

because row (2 - f)·C + t·C + c of S is channel c of W_{f-t}: three (or four) frames share one copy of the weights,
and every tile serves up to three output frames. Rows of zeros above and below S fill the 64-row MMA where a frame's
channels end inside it (96 = 64 + 32, a tenth of the work).

One warp copies, two warpgroups multiply. Edges need no masks: TMA reads zeros outside the frame and writes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

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

from .hopper_gluon import (
    BLOCK_K,
    COPY_REGISTERS,
    GROUPS,
    MULTIPLY_REGISTERS,
    STAGES,
    TILE_H,
    TILE_W,
    VIEWS_GROW,
    barrier,
    barriers,
    block_room,
    load_tile,
    rows_descriptor,
    store_tile,
    tiles_descriptor,
    view,
)
from .vae_conv import ROWS, WEIGHT_ROWS

WEIGHT_BOX = 64  # rows of a weight copy
NO_SPLIT = 2**30  # frames of a first piece without a second


@gluon.jit
def _add_product(acc, weights, tile, unit, START: gl.constexpr, END: gl.constexpr):
    """acc += S[START : START + 64] · tile, where those rows lie inside S; ``unit`` is S's first 32 rows."""
    if START >= 0 and START + 64 <= END:
        first = unit + START // 32
        if VIEWS_GROW:
            rows = view(weights.index(first), [64, weights.shape[2]], weights.layout)
        else:
            ODD: gl.constexpr = START // 32 % 2
            PAIRS: gl.constexpr = weights.shape[0] // 2 - ODD
            pairs = view(weights.slice(ODD, 2 * PAIRS), [PAIRS, 64, weights.shape[2]], weights.layout)
            rows = pairs.index(first // 2)
        acc = warpgroup_mma(rows, tile, acc, is_async=True)
    return acc


@gluon.jit
def _finish_block(
    block: gl.constexpr,
    acc,
    group: gl.constexpr,
    tiles,
    full,
    bias_ptr,
    cout,
    iterations,
    CHANNELS: gl.constexpr,
    INPUTS: gl.constexpr,
    STAGES: gl.constexpr,
    RESIDUAL: gl.constexpr,
):
    """Bias and residual, and the result in shared memory.

    The outermost tiles of a stage are read by one warpgroup alone: two of them hold a block's 64 channels, first of
    the residual, which `_copy` brings there, then of the result.
    """
    rows = gl.arange(0, 64, layout=gl.SliceLayout(1, acc.type.layout))
    channel = cout + (64 * block + rows) % CHANNELS
    acc += gl.expand_dims(gl.load(bias_ptr + channel).to(gl.float32), 1)
    stage = (iterations + block) % STAGES
    room = block_room(tiles, stage * INPUTS + group * (INPUTS - 2))
    if RESIDUAL:
        mbarrier.wait(full.index(stage), ((iterations + block) // STAGES) & 1)
        acc += room.load(acc.type.layout).to(gl.float32)
    room.store(acc.to(tiles.dtype))


@gluon.jit
def _multiply(
    group: gl.constexpr,
    weights,  # [STAGES·STACK/32, 32, BLOCK_K]
    tiles,  # [STAGES·INPUTS, POSITIONS, BLOCK_K]
    full,
    empty,
    out_desc,  # [T, H, W, C_out]
    bias_ptr,
    t,
    y,
    x,
    cout,
    iterations,
    CHANNELS: gl.constexpr,
    FRAMES: gl.constexpr,
    STACK: gl.constexpr,
    PAD: gl.constexpr,
    STAGES: gl.constexpr,
    RESIDUAL: gl.constexpr,
):
    POSITIONS: gl.constexpr = tiles.shape[1]
    INPUTS: gl.constexpr = 2 * FRAMES + 2
    STACKED: gl.constexpr = 3 * CHANNELS + 2 * PAD
    mma: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, POSITIONS, 16])
    acc0 = gl.zeros((64, POSITIONS), gl.float32, mma)
    acc1 = gl.zeros((64, POSITIONS), gl.float32, mma)
    acc2 = gl.zeros((64, POSITIONS), gl.float32, mma)
    PENDING: gl.constexpr = 10 if FRAMES == 2 else 9
    for i in range(iterations):
        stage = i % STAGES
        mbarrier.wait(full.index(stage), (i // STAGES) & 1)
        unit = stage * (STACK // 32)
        for f in gl.static_range(FRAMES + 2):
            tile = tiles.index(stage * INPUTS + group * FRAMES + f).permute((1, 0))
            acc0 = _add_product(acc0, weights, tile, unit, PAD + (2 - f) * CHANNELS, STACKED)
            acc1 = _add_product(acc1, weights, tile, unit, PAD + (2 - f) * CHANNELS + 64, STACKED)
            acc2 = _add_product(acc2, weights, tile, unit, PAD + (2 - f) * CHANNELS + 128, STACKED)
        acc0, acc1, acc2 = warpgroup_mma_wait(PENDING, deps=(acc0, acc1, acc2))
        mbarrier.arrive(empty.index((i + STAGES - 1) % STAGES), pred=i > 0)
    acc0, acc1, acc2 = warpgroup_mma_wait(0, deps=(acc0, acc1, acc2))
    mbarrier.arrive(empty.index((iterations - 1) % STAGES))
    _finish_block(0, acc0, group, tiles, full, bias_ptr, cout, iterations, CHANNELS, INPUTS, STAGES, RESIDUAL)
    _finish_block(1, acc1, group, tiles, full, bias_ptr, cout, iterations, CHANNELS, INPUTS, STAGES, RESIDUAL)
    _finish_block(2, acc2, group, tiles, full, bias_ptr, cout, iterations, CHANNELS, INPUTS, STAGES, RESIDUAL)
    fence_async_shared()
    barrier()
    for half in gl.static_range(6):
        stage = (iterations + half // 2) % STAGES
        source = tiles.index(stage * INPUTS + group * (INPUTS - 2) + half % 2)
        source = view(source, out_desc.block_shape, out_desc.layout)
        frame = t + group * FRAMES + half * 32 // CHANNELS
        store_tile(out_desc, [frame, y, x, cout + half * 32 % CHANNELS], source)
    tma.store_wait(0)


@gluon.jit
def _copy(
    weights,
    tiles,
    full,
    empty,
    past_desc,  # [2, H, W, C_in]
    x_desc,  # [first frames, H, W, C_in]
    last_desc,  # [last frames, H, W, C_in]
    weight_desc,  # [parts·SIDE²·STACK, C_in]
    residual_desc,  # [T, H, W, C_out]
    t,
    y,
    x,
    cout,
    part,
    split,
    iterations,
    CHANNELS: gl.constexpr,
    FRAMES: gl.constexpr,
    STACK: gl.constexpr,
    STAGES: gl.constexpr,
    BLOCK_K: gl.constexpr,
    RESIDUAL: gl.constexpr,
    SIDE: gl.constexpr,
):
    POSITIONS: gl.constexpr = tiles.shape[1]
    INPUTS: gl.constexpr = 2 * FRAMES + 2
    WEIGHT_BOX: gl.constexpr = weight_desc.block_shape[0]
    flat: gl.constexpr = gl.NVMMASharedLayout(2 * BLOCK_K, 16, rank=2)
    boxes = view(weights, [weights.shape[0] * 32 // WEIGHT_BOX, WEIGHT_BOX, BLOCK_K], flat)
    chunks = iterations // (SIDE * SIDE)
    for i in range(iterations):
        stage = i % STAGES
        ready = full.index(stage)
        mbarrier.wait(empty.index(stage), ((i // STAGES) & 1) ^ 1)
        mbarrier.expect(ready, 2 * BLOCK_K * (INPUTS * POSITIONS + STACK))
        tap = i // chunks
        channel = (i % chunks) * BLOCK_K
        for box in gl.static_range(STACK // WEIGHT_BOX):
            room = boxes.index(stage * (STACK // WEIGHT_BOX) + box)
            row = (part * SIDE * SIDE + tap) * STACK + box * WEIGHT_BOX
            load_tile(weight_desc, [row, channel], ready, room)
        top = y + tap // SIDE - SIDE // 2
        left = x + tap % SIDE - SIDE // 2
        for f in gl.static_range(INPUTS):
            room = view(tiles.index(stage * INPUTS + f), x_desc.block_shape, x_desc.layout)
            frame = t + f - 2
            if frame < 0:
                load_tile(past_desc, [frame + 2, top, left, channel], ready, room)
            elif frame < split:
                load_tile(x_desc, [frame, top, left, channel], ready, room)
            else:
                load_tile(last_desc, [frame - split, top, left, channel], ready, room)
    if RESIDUAL:
        for block in gl.static_range(3):
            stage = (iterations + block) % STAGES
            ready = full.index(stage)
            mbarrier.wait(empty.index(stage), (((iterations + block) // STAGES) & 1) ^ 1)
            mbarrier.expect(ready, 2 * BLOCK_K * 4 * POSITIONS)
            for group in gl.static_range(2):
                for half in gl.static_range(2):
                    room = tiles.index(stage * INPUTS + group * (INPUTS - 2) + half)
                    room = view(room, residual_desc.block_shape, residual_desc.layout)
                    frame = t + group * FRAMES + (64 * block + 32 * half) // CHANNELS
                    column = cout + (64 * block + 32 * half) % CHANNELS
                    load_tile(residual_desc, [frame, y, x, column], ready, room)


@gluon.jit(do_not_specialize=["split", "frame_tiles", "tiles_in_row", "parts", "iterations"])
def _conv_kernel(
    past_desc,
    x_desc,
    last_desc,
    weight_desc,
    residual_desc,
    out_desc,
    bias_ptr,
    split,
    frame_tiles,
    tiles_in_row,
    parts,
    iterations,
    CHANNELS: gl.constexpr,
    FRAMES: gl.constexpr,
    STACK: gl.constexpr,
    PAD: gl.constexpr,
    STAGES: gl.constexpr,
    BLOCK_K: gl.constexpr,
    RESIDUAL: gl.constexpr,
    SIDE: gl.constexpr,
    TILE_H: gl.constexpr,
    TILE_W: gl.constexpr,
):
    INPUTS: gl.constexpr = 2 * FRAMES + 2
    POSITIONS: gl.constexpr = TILE_H * TILE_W
    dtype: gl.constexpr = x_desc.dtype
    flat: gl.constexpr = gl.NVMMASharedLayout(2 * BLOCK_K, 16, rank=2)
    tiles = gl.allocate_shared_memory(dtype, [STAGES * INPUTS, POSITIONS, BLOCK_K], flat)
    weights = gl.allocate_shared_memory(dtype, [STAGES * (STACK // 32), 32, BLOCK_K], flat)
    full, empty = barriers(STAGES, 2)
    fence_async_shared()

    program = gl.program_id(0)
    part = program % parts
    program = program // parts
    t = (program % frame_tiles) * (2 * FRAMES)
    program = program // frame_tiles
    x = (program % tiles_in_row) * TILE_W
    y = (program // tiles_in_row) * TILE_H
    cout = part * CHANNELS
    gl.warp_specialize(
        [
            (
                _multiply,
                (0, weights, tiles, full, empty, out_desc, bias_ptr, t, y, x, cout, iterations,
                 CHANNELS, FRAMES, STACK, PAD, STAGES, RESIDUAL),
            ),
            (
                _multiply,
                (1, weights, tiles, full, empty, out_desc, bias_ptr, t, y, x, cout, iterations,
                 CHANNELS, FRAMES, STACK, PAD, STAGES, RESIDUAL),
            ),
            (
                _copy,
                (weights, tiles, full, empty, past_desc, x_desc, last_desc, weight_desc, residual_desc, t, y, x, cout,
                 part, split, iterations, CHANNELS, FRAMES, STACK, STAGES, BLOCK_K, RESIDUAL, SIDE),
            ),
        ],
        [4, 1],
        [MULTIPLY_REGISTERS, COPY_REGISTERS],
    )  # fmt: skip


def causal_conv_gluon(
    pieces: Sequence[Tensor], past: Tensor, packed: Tensor, bias: Tensor, residual: Tensor | None, side: int
) -> Tensor:
    """`vae_conv.causal_conv_ref` for one sample, with the weights of `vae_conv.pack_weight`.

    One or two pieces [T, H, W, C_in], past [2, H, W, C_in], residual [T, H, W, C_out] or None, all contiguous.
    """
    first, last = pieces[0], pieces[-1]
    frames = sum(piece.shape[0] for piece in pieces)
    _, height, width, c_in = first.shape
    c_out = bias.shape[0]
    channels = min(c_out, ROWS)
    parts = c_out // channels
    out = torch.empty(frames, height, width, c_out, dtype=first.dtype, device=first.device)
    frame_tiles = triton.cdiv(frames, GROUPS * ROWS // channels)
    tiles_in_row = triton.cdiv(width, TILE_W)
    with torch.cuda.device_of(first):
        _conv_kernel[(parts * frame_tiles * tiles_in_row * triton.cdiv(height, TILE_H),)](
            tiles_descriptor(past),
            tiles_descriptor(first),
            tiles_descriptor(last),
            rows_descriptor(packed, WEIGHT_BOX),
            tiles_descriptor(out if residual is None else residual),
            tiles_descriptor(out),
            bias,
            first.shape[0] if len(pieces) > 1 else NO_SPLIT,
            frame_tiles,
            tiles_in_row,
            parts,
            side * side * c_in // BLOCK_K,
            CHANNELS=channels,
            FRAMES=ROWS // channels,
            STACK=packed.shape[0] // (side * side * parts),
            PAD=WEIGHT_ROWS if channels < ROWS else 0,
            STAGES=STAGES,
            BLOCK_K=BLOCK_K,
            RESIDUAL=residual is not None,
            SIDE=side,
            TILE_H=TILE_H,
            TILE_W=TILE_W,
            num_warps=4,
        )
    return out
