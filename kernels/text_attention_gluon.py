"""The attention of `text_attention` for Hopper, in Gluon: warp-specialised and persistent.

A program owns a multiprocessor and walks through blocks of 128 tokens, all heads of a block after each other. One warp
copies queries and blocks of 64 keys and values to shared memory by TMA, two warpgroups of 64 tokens each attend
(`attention_gluon`), a fourth makes the factors of the next tokens' scores. A block of keys moves 32 KiB for
4·128·64·128 operations. The last distinct keys come first: they alone need a mask, and there the key that stands for r
gets its weight, as log2 r on its score.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma, warpgroup_mma_wait

from .attention_gluon import (
    GROUP_ROWS,
    GROUPS,
    as_operand,
    attend_blocks,
    begin_scores,
    head_descriptor,
    row_sums,
    take_queries,
    write_tile,
)
from .block_int8 import AMAX_FLOOR
from .dispatch import multiprocessors
from .hopper_gluon import barriers, load_tile, next_stage, view

KEYS = 64
STAGES = 4  # of 32 KiB, beside 32 KiB of queries and 32 of output
# The entry count is 128 registers a thread (16 warps).
ATTEND_REGISTERS, PREPARE_REGISTERS, COPY_REGISTERS = 216, 56, 24
PARTS = 16  # of a row's sum of squares that are loaded at once


@gluon.jit
def _copy_blocks(
    q_desc, k_desc, v_desc, repeats_ptr, q_tiles, k_tiles, v_tiles, q_ready, q_free, ready, free, tiles, q_blocks,
    key_length, heads,
    GROUPS: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    ROWS: gl.constexpr = q_desc.block_shape[1]
    KEYS: gl.constexpr = k_desc.block_shape[1]
    D: gl.constexpr = k_desc.block_shape[2]
    stage = 0
    phase = 1  # a fresh barrier's previous phase: every stage is free at first
    turn = 1
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        batch = tile // heads // q_blocks
        column = tile % heads * D
        first = tile // heads % q_blocks * (GROUPS * ROWS)
        for group in gl.static_range(GROUPS):
            mbarrier.wait(q_free.index(group), turn)
            mbarrier.expect(q_ready.index(group), ROWS * D * 2)
            q_room = view(q_tiles.index(group), q_desc.block_shape, q_desc.layout)
            load_tile(q_desc, [batch, first + group * ROWS, column], q_ready.index(group), q_room)
        blocks = (key_length - gl.load(repeats_ptr + batch)) // KEYS + 1
        for i in range(blocks):
            key = (i + blocks - 1) % blocks * KEYS  # the last block first
            arrived = ready.index(stage)
            mbarrier.wait(free.index(stage), phase)
            mbarrier.expect(arrived, 2 * KEYS * D * 2)
            k_room = view(k_tiles.index(stage), k_desc.block_shape, k_desc.layout)
            load_tile(k_desc, [batch, key, column], arrived, k_room)
            v_room = view(v_tiles.index(stage), v_desc.block_shape, v_desc.layout)
            load_tile(v_desc, [batch, key, column], arrived, v_room)
            stage, phase = next_stage(stage, phase, STAGES)
        turn ^= 1


@gluon.jit
def _prepare_factors(
    squares_ptr, factors, factors_ready, factors_free, score_scale, eps, tiles, q_blocks, heads, length, row_count,
    parts,
    WIDTH: gl.constexpr, GROUPS: gl.constexpr, PARTS: gl.constexpr,
):  # fmt: skip
    """factors: for each group, what makes its rows' scores base-2 logarithms. PARTS squares are under way at once."""
    ROWS: gl.constexpr = factors.shape[1]
    LAYOUT: gl.constexpr = gl.BlockedLayout([PARTS, 1], [1, 32], [1, 4], [1, 0])
    row = gl.arange(0, ROWS, gl.SliceLayout(0, LAYOUT))
    number = gl.arange(0, PARTS, gl.SliceLayout(1, LAYOUT))
    turn = 1
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        batch = tile // heads // q_blocks
        first = tile // heads % q_blocks * (GROUPS * ROWS)
        for group in gl.static_range(GROUPS):
            token = gl.minimum(first + group * ROWS + row, length - 1)
            own = squares_ptr + batch.to(gl.int64) * length + token
            square = gl.zeros([ROWS], gl.float32, gl.SliceLayout(0, LAYOUT))
            for start in range(0, parts, PARTS):
                part = start + number
                pointers = own[None, :] + part.to(gl.int64)[:, None] * row_count
                square += gl.sum(gl.load(pointers, mask=(part < parts)[:, None], other=0.0), axis=0)
            mbarrier.wait(factors_free.index(group), turn)
            factors.index(group).store(gl.rsqrt(square / WIDTH + eps) * score_scale)
            mbarrier.arrive(factors_ready.index(group))
        turn ^= 1


@gluon.jit
def _attend_tiles(
    q_tile, out_tile, row_factors, k_tiles, v_tiles, q_ready, q_free, factors_ready, factors_free, ready, free,
    out_desc, out_scale_ptr, repeats_ptr, amax_min, tiles, q_blocks, length, key_length, row_count, heads,
    group: gl.constexpr, GROUPS: gl.constexpr, STAGES: gl.constexpr, QUANTIZE: gl.constexpr,
):  # fmt: skip
    ROWS: gl.constexpr = q_tile.shape[0]
    D: gl.constexpr = q_tile.shape[1]
    KEYS: gl.constexpr = k_tiles.shape[1]
    S: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, KEYS, 16])
    ACC: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    stage = 0
    phase = 0
    turn = 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        batch, head = tile // heads // q_blocks, tile % heads
        repeats = gl.load(repeats_ptr + batch)
        last = key_length - repeats
        blocks = last // KEYS + 1
        key = (blocks - 1) * KEYS + gl.arange(0, KEYS, gl.SliceLayout(0, S))
        weight = gl.where(key < last, 0.0, gl.where(key == last, gl.log2(repeats.to(gl.float32)), -float("inf")))
        mbarrier.wait(q_ready, turn)
        q = take_queries(q_tile, q_free, gl.DotOperandLayout(0, S, 2))
        mbarrier.wait(factors_ready, turn)
        row_factor = row_factors.load(gl.SliceLayout(1, S))
        mbarrier.arrive(factors_free)

        mbarrier.wait(ready.index(stage), phase)
        scores = warpgroup_mma_wait(0, deps=[begin_scores(q, k_tiles.index(stage))])
        score = scores * row_factor[:, None] + weight[None, :]
        peak = gl.max(score, axis=1)
        probability = gl.exp2(score - peak[:, None])
        total = row_sums(probability)
        p = as_operand(probability, v_tiles.dtype, ACC)
        stage, phase = next_stage(stage, phase, STAGES)
        acc, stage, phase = attend_blocks(
            q, row_factor, peak, p, total, k_tiles, v_tiles, k_tiles, ready, free, stage, phase, blocks,
            STAGES, False, False,
        )  # fmt: skip
        tma.store_wait(0)  # the last tile has left out_tile
        first = (tile // heads % q_blocks * GROUPS + group) * ROWS
        write_tile(
            acc, out_tile, out_desc, out_scale_ptr, batch, head, first, length, row_count, amax_min, QUANTIZE
        )  # fmt: skip
        turn ^= 1
    tma.store_wait(0)


@gluon.jit(do_not_specialize=["length", "key_length", "row_count", "parts", "q_blocks", "tiles"])
def _text_attention_kernel(
    q_desc,  # [B, L, C], blocks of 64 rows of a head
    k_desc,  # [B, S, C], likewise
    v_desc,  # [B, S, C], likewise
    out_desc,  # [B, L, C], int8 codes where QUANTIZE
    squares_ptr,  # fp32 [parts, B·L]
    repeats_ptr,  # int32 [B]
    out_scale_ptr,  # fp32 [H, B·L] where QUANTIZE
    score_scale,
    eps,
    amax_min,
    length,
    key_length,
    row_count,
    parts,
    q_blocks,
    tiles,
    WIDTH: gl.constexpr,
    QUANTIZE: gl.constexpr,
    GROUPS: gl.constexpr,
    STAGES: gl.constexpr,
    PARTS: gl.constexpr,
    ATTEND_REGISTERS: gl.constexpr,
    PREPARE_REGISTERS: gl.constexpr,
    COPY_REGISTERS: gl.constexpr,
):
    ROWS: gl.constexpr = q_desc.block_shape[1]
    KEYS: gl.constexpr = k_desc.block_shape[1]
    D: gl.constexpr = k_desc.block_shape[2]
    HEADS: gl.constexpr = WIDTH // D
    HALF: gl.constexpr = gl.NVMMASharedLayout(128, 16, rank=2)
    q_tiles = gl.allocate_shared_memory(q_desc.dtype, [GROUPS, ROWS, D], HALF)
    k_tiles = gl.allocate_shared_memory(k_desc.dtype, [STAGES, KEYS, D], HALF)
    v_tiles = gl.allocate_shared_memory(v_desc.dtype, [STAGES, KEYS, D], HALF)
    out_tiles = gl.allocate_shared_memory(q_desc.dtype, [GROUPS, ROWS, D], HALF)
    factors = gl.allocate_shared_memory(gl.float32, [GROUPS, ROWS], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    ready, free = barriers(STAGES, GROUPS)
    q_ready, q_free = barriers(GROUPS, 1)
    factors_ready, factors_free = barriers(GROUPS, 1)
    fence_async_shared()  # copies must find the barriers as they begin

    # One argument list a partition: a tuple bound to a name would turn its constants into run-time values.
    # fmt: off
    gl.warp_specialize(
        [
            (_attend_tiles, (
                q_tiles.index(0), out_tiles.index(0), factors.index(0), k_tiles, v_tiles, q_ready.index(0),
                q_free.index(0), factors_ready.index(0), factors_free.index(0), ready, free, out_desc, out_scale_ptr,
                repeats_ptr, amax_min, tiles, q_blocks, length, key_length, row_count, HEADS, 0, GROUPS, STAGES,
                QUANTIZE,
            )),
            (_attend_tiles, (
                q_tiles.index(1), out_tiles.index(1), factors.index(1), k_tiles, v_tiles, q_ready.index(1),
                q_free.index(1), factors_ready.index(1), factors_free.index(1), ready, free, out_desc, out_scale_ptr,
                repeats_ptr, amax_min, tiles, q_blocks, length, key_length, row_count, HEADS, 1, GROUPS, STAGES,
                QUANTIZE,
            )),
            (_prepare_factors, (
                squares_ptr, factors, factors_ready, factors_free, score_scale, eps, tiles, q_blocks, HEADS, length,
                row_count, parts, WIDTH, GROUPS, PARTS,
            )),
            (_copy_blocks, (
                q_desc, k_desc, v_desc, repeats_ptr, q_tiles, k_tiles, v_tiles, q_ready, q_free, ready, free, tiles,
                q_blocks, key_length, HEADS, GROUPS, STAGES,
            )),
        ],
        [4, 4, 1],
        [ATTEND_REGISTERS, PREPARE_REGISTERS, COPY_REGISTERS],
    )
    # fmt: on


def text_attention_gluon(
    q: Tensor, k: Tensor, v: Tensor, eps: float, repeats: Tensor, squares: Tensor, out: Tensor, out_scale: Tensor | None
) -> None:
    """Launch the attention into `out` [B, L, H, D]: 16-bit, or int8 with its `out_scale` fp32 [H, B·L]."""
    batch, length, heads, dim = q.shape
    q_blocks = -(-length // (GROUPS * GROUP_ROWS))
    tiles = batch * q_blocks * heads
    with torch.cuda.device_of(q):
        _text_attention_kernel[(min(tiles, multiprocessors(q.device)),)](
            head_descriptor(q, GROUP_ROWS),
            head_descriptor(k, KEYS),
            head_descriptor(v, KEYS),
            head_descriptor(out.view(q.shape), GROUP_ROWS),
            squares,
            repeats,
            squares if out_scale is None else out_scale,
            math.log2(math.e) / math.sqrt(dim),
            eps,
            AMAX_FLOOR,
            length,
            k.shape[1],
            batch * length,
            squares.shape[0],
            q_blocks,
            tiles,
            WIDTH=heads * dim,
            QUANTIZE=out_scale is not None,
            GROUPS=GROUPS,
            STAGES=STAGES,
            PARTS=PARTS,
            ATTEND_REGISTERS=ATTEND_REGISTERS,
            PREPARE_REGISTERS=PREPARE_REGISTERS,
            COPY_REGISTERS=COPY_REGISTERS,
            num_warps=4,
        )
