"""The attention of `sla` for Hopper, in Gluon: warp-specialised and persistent.

A program owns a multiprocessor and walks through query blocks of 128 tokens. One warp copies the kept blocks of keys
and values to shared memory by TMA; two warpgroups of 64 tokens each multiply and exponentiate, the scores of one block
being computed while the probabilities of the block before meet their values; a fourth prepares what the next query
block needs besides: the bound of its scores and its weights of the linear branch. A kept block moves 24 KiB (32 KiB
with 16-bit keys) for 4·128·64·128 operations. The mathematics is that of `sla_triton`, decided per 64 tokens.
"""

from __future__ import annotations

import math

import torch
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

from .attention_gluon import (
    GROUP_ROWS,
    GROUPS,
    as_operand,
    attend_blocks,
    begin_scores,
    block_factor,
    head_descriptor,
    row_sums,
    shared_layout,
    take_queries,
    write_tile,
)
from .block_int8 import AMAX_FLOOR
from .dispatch import multiprocessors
from .hopper_gluon import Descriptor, barrier, barriers, load_tile, next_stage, view
from .routing import BLOCK_K
from .sla import SlaInputs

# With the queries, the linear branch's weights and its values, 226 KiB of the 227 there are, or 224 with 16-bit keys.
STAGES = {True: 6, False: 4}
# The entry count is 128 registers a thread (16 warps).
ATTEND_REGISTERS, PREPARE_REGISTERS, COPY_REGISTERS = 200, 88, 24
PREPARED_ROWS = 32  # at once, in registers

LANES = gl.constexpr(32)  # of the warp that copies
LOG2E = gl.constexpr(1.4426950408889634)
# A bound from 16-bit queries and keys holds for their int8 codes, whose rounding lengthens a vector by at most
# √128 / 254 = 4.5 %.
CODE_MARGIN = gl.constexpr(1.1)


@gluon.jit
def _next_blocks(chosen, scales, start, kept, lane, INT8: gl.constexpr):
    """Numbers of the kept blocks from `start` on, one a lane, and the bits of their keys' scales: last block first."""
    number = gl.minimum(start + lane, kept - 1)
    blocks = gl.load(chosen + gl.where(number == 0, kept, number) - 1)
    if INT8:
        block_scales = gl.load(scales + blocks).to(gl.int32, bitcast=True)
    else:
        block_scales = blocks  # unused
    return blocks, block_scales


@gluon.jit
def _copy_blocks(
    q_desc, k_desc, v_desc, values_desc, chosen_ptr, k_scale_ptr, q_tiles, k_tiles, v_tiles, values_tile, k_scales,
    q_ready, q_free, ready, free, values_ready, values_free, tiles, q_blocks, k_blocks, kept, heads,
    GROUPS: gl.constexpr, STAGES: gl.constexpr, INT8: gl.constexpr,
):  # fmt: skip
    ROWS: gl.constexpr = q_desc.block_shape[1]
    KEYS: gl.constexpr = k_desc.block_shape[1]
    D: gl.constexpr = k_desc.block_shape[2]
    ONE: gl.constexpr = gl.BlockedLayout([1], [LANES], [1], [0])
    K_BYTES: gl.constexpr = D if INT8 else 2 * D
    lane = gl.arange(0, LANES, ONE)
    stage = 0
    phase = 1  # a fresh barrier's previous phase: every stage is free at first
    turn = 1
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        batch_head = tile // q_blocks
        batch = batch_head // heads
        column = batch_head % heads * D
        chosen = chosen_ptr + tile.to(gl.int64) * kept
        scales = k_scale_ptr + batch_head.to(gl.int64) * k_blocks
        blocks, block_scales = _next_blocks(chosen, scales, 0, kept, lane, INT8)
        for group in gl.static_range(GROUPS):
            arrived = q_ready.index(group)
            mbarrier.wait(q_free.index(group), turn)
            mbarrier.expect(arrived, ROWS * K_BYTES)
            q_room = view(q_tiles.index(group), q_desc.block_shape, q_desc.layout)
            load_tile(q_desc, [batch, (tile % q_blocks * GROUPS + group) * ROWS, column], arrived, q_room)
        for start in range(0, kept, LANES):
            for i in range(gl.minimum(kept - start, LANES)):
                block = gl.sum(gl.where(lane == i, blocks, 0), axis=0)
                arrived = ready.index(stage)
                mbarrier.wait(free.index(stage), phase)
                if INT8:
                    scale = gl.sum(gl.where(lane == i, block_scales, 0), axis=0)
                    k_scales.index(stage).store(gl.full([1], scale, gl.int32, ONE).to(gl.float32, bitcast=True))
                mbarrier.expect(arrived, KEYS * (K_BYTES + 2 * D))
                k_room = view(k_tiles.index(stage), k_desc.block_shape, k_desc.layout)
                load_tile(k_desc, [batch, block * KEYS, column], arrived, k_room)
                v_room = view(v_tiles.index(stage), v_desc.block_shape, v_desc.layout)
                load_tile(v_desc, [batch, block * KEYS, column], arrived, v_room)
                stage, phase = next_stage(stage, phase, STAGES)
            blocks, block_scales = _next_blocks(chosen, scales, start + LANES, kept, lane, INT8)
        mbarrier.wait(values_free.index(0), turn)
        mbarrier.expect(values_ready.index(0), D * D * 2)
        load_tile(values_desc, [batch_head * D, 0], values_ready.index(0), values_tile)
        turn ^= 1


@gluon.jit
def _prepare_rows(
    q_ptr, q_scale_ptr, centre_ptr, radius_ptr, k_mean_ptr, chosen_ptr, facts, first_keys, w_tiles, facts_ready,
    facts_free, w_ready, w_free, score_scale, linear_eps, tiles, q_blocks, length, key_length, kept, heads, q_b, q_l,
    q_h,
    GROUPS: gl.constexpr, KEYS: gl.constexpr, PART: gl.constexpr, INT8: gl.constexpr,
):  # fmt: skip
    """What the attending warpgroups need of a tile besides q kᵀ and v.

    facts: for each group, the rows' factors of the scores (INT8) and their bounds, both in powers of 2; first_keys: how
    many keys the first block has; w_tiles: the rows' weights of the linear branch, φ(q)_d m_d / (ε + Σ φ(q) m).
    """
    ROWS: gl.constexpr = w_tiles.shape[1]
    D: gl.constexpr = w_tiles.shape[2]
    LAYOUT: gl.constexpr = gl.BlockedLayout([1, 8], [2, 16], [4, 1], [1, 0])
    ONE: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    columns = gl.arange(0, D, gl.SliceLayout(0, LAYOUT))
    row = gl.arange(0, PART, gl.SliceLayout(1, LAYOUT))
    turn = 1
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        batch_head = tile // q_blocks
        batch = (batch_head // heads).to(gl.int64)
        first = tile % q_blocks * (GROUPS * ROWS)
        base = q_ptr + batch * q_b + batch_head % heads * q_h
        radius = gl.load(radius_ptr + batch_head)
        centre = gl.load(centre_ptr + batch_head * D + columns)
        k_mean = gl.load(k_mean_ptr + batch_head * D + columns)
        block = gl.load(chosen_ptr + tile.to(gl.int64) * kept + kept - 1 + gl.arange(0, 1, ONE))
        for group in gl.static_range(GROUPS):
            mbarrier.wait(facts_free.index(group), turn)
            first_keys.index(group).store(key_length - block * KEYS)
            for part in gl.static_range(ROWS // PART):
                rows = gl.minimum(first + group * ROWS + part * PART + row, length - 1).to(gl.int64)
                q = gl.load(base + rows[:, None] * q_l + columns[None, :]).to(gl.float32)
                reach = gl.sqrt(gl.sum(q * q, axis=1)) * radius
                if INT8:
                    reach *= CODE_MARGIN
                    factor = gl.load(q_scale_ptr + batch_head.to(gl.int64) * length + rows) * score_scale
                    facts.index(2 * group).slice(part * PART, PART).store(factor)
                else:
                    reach += gl.sum(q * centre[None, :], axis=1)
                facts.index(2 * group + 1).slice(part * PART, PART).store(reach * score_scale)
            mbarrier.arrive(facts_ready.index(group))
        for group in gl.static_range(GROUPS):
            mbarrier.wait(w_free.index(group), turn)
            for part in gl.static_range(ROWS // PART):
                rows = gl.minimum(first + group * ROWS + part * PART + row, length - 1).to(gl.int64)
                q = gl.load(base + rows[:, None] * q_l + columns[None, :]).to(gl.float32)
                e = gl.exp2((q - gl.max(q, axis=1)[:, None]) * LOG2E)
                share = 1.0 / gl.sum(e * (k_mean + linear_eps)[None, :], axis=1)
                weights = e * share[:, None] * k_mean[None, :]
                w_tiles.index(group).slice(part * PART, PART).store(weights.to(w_tiles.dtype))
            fence_async_shared()
            mbarrier.arrive(w_ready.index(group))
        turn ^= 1


@gluon.jit
def _attend_tiles(
    q_tile, w_tile, row_factors, row_bounds, first_keys, k_tiles, v_tiles, values_tile, k_scales,
    q_ready, q_free, facts_ready, facts_free, w_ready, w_free, ready, free, values_ready, values_free,
    out_desc, out_scale_ptr, bias_ptr, score_scale, amax_min, tiles, q_blocks, length, token_count, kept, heads,
    group: gl.constexpr, HEADROOM: gl.constexpr, GAP: gl.constexpr, GROUPS: gl.constexpr, STAGES: gl.constexpr,
    INT8: gl.constexpr, QUANTIZE: gl.constexpr,
):  # fmt: skip
    ROWS: gl.constexpr = w_tile.shape[0]
    D: gl.constexpr = w_tile.shape[1]
    KEYS: gl.constexpr = k_tiles.shape[1]
    S: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, KEYS, 32 if INT8 else 16])
    ACC: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    S_ROWS: gl.constexpr = gl.SliceLayout(1, S)
    S_COLUMNS: gl.constexpr = gl.SliceLayout(0, S)
    columns = gl.arange(0, D, gl.SliceLayout(0, ACC))
    stage = 0
    phase = 0
    turn = 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        batch_head = tile // q_blocks
        batch, head = batch_head // heads, batch_head % heads
        mbarrier.wait(q_ready, turn)
        q = take_queries(q_tile, q_free, gl.DotOperandLayout(0, S, 4 if INT8 else 2))
        mbarrier.wait(facts_ready, turn)
        if INT8:
            row_factor = row_factors.load(S_ROWS)
        else:
            row_factor = gl.full([1], score_scale, gl.float32, S_ROWS)
        bound = row_bounds.load(S_ROWS)
        present = gl.arange(0, KEYS, S_COLUMNS) < first_keys.load(S_COLUMNS)
        mbarrier.arrive(facts_free)

        # The last block first: it alone can be the tail, and its scores tell how close the bound is.
        mbarrier.wait(ready.index(stage), phase)
        scores = begin_scores(q, k_tiles.index(stage))
        factor = block_factor(row_factor, k_scales, stage, INT8)
        score = warpgroup_mma_wait(0, deps=[scores]).to(gl.float32) * factor
        score = gl.where(present[None, :], score, -float("inf"))
        peak = gl.max(score, axis=1)
        near = gl.max(bound - peak, axis=0) <= GAP
        peak = gl.where(near, bound - HEADROOM, peak)
        probability = gl.exp2(score - peak[:, None])
        total = row_sums(probability)
        p = as_operand(probability, v_tiles.dtype, ACC)
        stage, phase = next_stage(stage, phase, STAGES)
        tma.store_wait(0)  # the last tile's output has left w_tile
        mbarrier.arrive(w_free, pred=tile >= gl.num_programs(0))
        if near:
            acc, stage, phase = attend_blocks(
                q, row_factor, peak, p, total, k_tiles, v_tiles, k_scales, ready, free, stage, phase, kept,
                STAGES, INT8, True,
            )  # fmt: skip
        else:
            acc, stage, phase = attend_blocks(
                q, row_factor, peak, p, total, k_tiles, v_tiles, k_scales, ready, free, stage, phase, kept,
                STAGES, INT8, False,
            )  # fmt: skip

        mbarrier.wait(w_ready, turn)
        mbarrier.wait(values_ready.index(0), turn)
        acc = warpgroup_mma(w_tile, values_tile, acc, is_async=True)
        bias = gl.load(bias_ptr + columns).to(gl.float32)
        acc = warpgroup_mma_wait(0, deps=[acc])
        mbarrier.arrive(values_free.index(0))
        barrier()  # all warps have read w_tile
        first = (tile % q_blocks * GROUPS + group) * ROWS
        write_tile(
            acc + bias[None, :], w_tile, out_desc, out_scale_ptr, batch, head, first, length, token_count, amax_min,
            QUANTIZE,
        )  # fmt: skip
        turn ^= 1
    tma.store_wait(0)


@gluon.jit(do_not_specialize=["length", "key_length", "kept", "q_blocks", "k_blocks", "token_count", "tiles"])
def _sparse_linear_kernel(
    q_desc,  # [B, L, H·D] codes or 16-bit, blocks of 64 rows of a head
    k_desc,  # [B, S, H·D] likewise
    v_desc,  # [B, S, H·D] 16-bit, likewise
    values_desc,  # [B·H·D, D]
    out_desc,  # [B, L, H·D], int8 codes where QUANTIZE
    q_ptr,  # [B, L, H, D] 16-bit
    q_scale_ptr,  # fp32 [B, H, L]
    k_scale_ptr,  # fp32 [B, H, k_blocks]
    centre_ptr,  # fp32 [B, H, D]
    radius_ptr,  # fp32 [B, H]
    chosen_ptr,  # int32 [B, H, q_blocks, kept], ascending
    k_mean_ptr,  # fp32 [B, H, D]
    bias_ptr,  # [D]
    out_scale_ptr,  # fp32 [H, B·L] where QUANTIZE
    score_scale,
    linear_eps,
    amax_min,
    length,
    key_length,
    token_count,
    heads,
    kept,
    q_blocks,
    k_blocks,
    tiles,
    q_b,
    q_l,
    q_h,
    HEADROOM: gl.constexpr,
    GAP: gl.constexpr,
    INT8: gl.constexpr,
    QUANTIZE: gl.constexpr,
    GROUPS: gl.constexpr,
    STAGES: gl.constexpr,
    PART: gl.constexpr,
    ATTEND_REGISTERS: gl.constexpr,
    PREPARE_REGISTERS: gl.constexpr,
    COPY_REGISTERS: gl.constexpr,
):
    ROWS: gl.constexpr = q_desc.block_shape[1]
    KEYS: gl.constexpr = k_desc.block_shape[1]
    D: gl.constexpr = k_desc.block_shape[2]
    CODES: gl.constexpr = gl.NVMMASharedLayout(128, 8, rank=2)
    HALF: gl.constexpr = gl.NVMMASharedLayout(128, 16, rank=2)
    K_LAYOUT: gl.constexpr = CODES if INT8 else HALF
    PLAIN: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    q_tiles = gl.allocate_shared_memory(q_desc.dtype, [GROUPS, ROWS, D], K_LAYOUT)
    k_tiles = gl.allocate_shared_memory(k_desc.dtype, [STAGES, KEYS, D], K_LAYOUT)
    v_tiles = gl.allocate_shared_memory(v_desc.dtype, [STAGES, KEYS, D], HALF)
    values_tile = gl.allocate_shared_memory(values_desc.dtype, [D, D], HALF)
    w_tiles = gl.allocate_shared_memory(values_desc.dtype, [GROUPS, ROWS, D], HALF)
    facts = gl.allocate_shared_memory(gl.float32, [2 * GROUPS, ROWS], PLAIN)
    first_keys = gl.allocate_shared_memory(gl.int32, [GROUPS, 1], PLAIN)
    k_scales = gl.allocate_shared_memory(gl.float32, [STAGES, 1], PLAIN)
    ready, free = barriers(STAGES, GROUPS)
    q_ready, q_free = barriers(GROUPS, 1)
    facts_ready, facts_free = barriers(GROUPS, 1)
    w_ready, w_free = barriers(GROUPS, 1)
    values_ready, values_free = barriers(1, GROUPS)
    fence_async_shared()  # copies must find the barriers as they begin

    # One argument list a partition: a tuple bound to a name would turn its constants into run-time values.
    # fmt: off
    gl.warp_specialize(
        [
            (_attend_tiles, (
                q_tiles.index(0), w_tiles.index(0), facts.index(0), facts.index(1), first_keys.index(0), k_tiles,
                v_tiles, values_tile, k_scales, q_ready.index(0), q_free.index(0), facts_ready.index(0),
                facts_free.index(0), w_ready.index(0), w_free.index(0), ready, free, values_ready, values_free,
                out_desc, out_scale_ptr, bias_ptr, score_scale, amax_min, tiles, q_blocks, length, token_count, kept,
                heads, 0, HEADROOM, GAP, GROUPS, STAGES, INT8, QUANTIZE,
            )),
            (_attend_tiles, (
                q_tiles.index(1), w_tiles.index(1), facts.index(2), facts.index(3), first_keys.index(1), k_tiles,
                v_tiles, values_tile, k_scales, q_ready.index(1), q_free.index(1), facts_ready.index(1),
                facts_free.index(1), w_ready.index(1), w_free.index(1), ready, free, values_ready, values_free,
                out_desc, out_scale_ptr, bias_ptr, score_scale, amax_min, tiles, q_blocks, length, token_count, kept,
                heads, 1, HEADROOM, GAP, GROUPS, STAGES, INT8, QUANTIZE,
            )),
            (_prepare_rows, (
                q_ptr, q_scale_ptr, centre_ptr, radius_ptr, k_mean_ptr, chosen_ptr, facts, first_keys, w_tiles,
                facts_ready, facts_free, w_ready, w_free, score_scale, linear_eps, tiles, q_blocks, length, key_length,
                kept, heads, q_b, q_l, q_h, GROUPS, KEYS, PART, INT8,
            )),
            (_copy_blocks, (
                q_desc, k_desc, v_desc, values_desc, chosen_ptr, k_scale_ptr, q_tiles, k_tiles, v_tiles, values_tile,
                k_scales, q_ready, q_free, ready, free, values_ready, values_free, tiles, q_blocks, k_blocks, kept,
                heads, GROUPS, STAGES, INT8,
            )),
        ],
        [4, 4, 1],
        [ATTEND_REGISTERS, PREPARE_REGISTERS, COPY_REGISTERS],
    )
    # fmt: on


def attend_gluon(inputs: SlaInputs, out: Tensor, out_scale: Tensor | None, bound_range: tuple[float, float]) -> None:
    """Launch the attention into `out` [B, L, H, D]: 16-bit, or int8 with its `out_scale` fp32 [H, B·L]."""
    q, v, blocks, keys = inputs.q, inputs.v, inputs.blocks, inputs.keys
    q8, k8 = inputs.q_codes, keys.codes
    k = k8.codes if k8 else inputs.k
    batch, length, heads, dim = q.shape
    tiles = blocks.shape[2] * batch * heads
    headroom, gap = bound_range
    values = keys.branch.values.to(q.dtype).contiguous().view(-1, dim)
    with torch.cuda.device_of(q):
        _sparse_linear_kernel[(min(tiles, multiprocessors(q.device)),)](
            head_descriptor(q8.codes if q8 else q, GROUP_ROWS),
            head_descriptor(k, BLOCK_K),
            head_descriptor(v, BLOCK_K),
            Descriptor(values, values.shape, values.stride(), [dim, dim], shared_layout(values.dtype, 2)),
            head_descriptor(out.view(q.shape), GROUP_ROWS),
            q,
            q8.scale if q8 else keys.ball.radius,
            k8.scale if k8 else keys.ball.radius,
            keys.ball.centre,
            keys.ball.radius,
            blocks.contiguous(),
            keys.branch.k_mean.contiguous(),
            keys.branch.bias,
            out_scale if out_scale is not None else keys.ball.radius,
            math.log2(math.e) / math.sqrt(dim),
            keys.branch.eps,
            AMAX_FLOOR,
            length,
            k.shape[1],
            batch * length,
            heads,
            blocks.shape[3],
            blocks.shape[2],
            -(-k.shape[1] // BLOCK_K),
            tiles,
            *q.stride()[:3],
            HEADROOM=headroom,
            GAP=gap,
            INT8=q8 is not None,
            QUANTIZE=out_scale is not None,
            GROUPS=GROUPS,
            STAGES=STAGES[q8 is not None],
            PART=PREPARED_ROWS,
            ATTEND_REGISTERS=ATTEND_REGISTERS,
            PREPARE_REGISTERS=PREPARE_REGISTERS,
            COPY_REGISTERS=COPY_REGISTERS,
            num_warps=4,
        )
