"""What the attentions for Hopper in Gluon share: how a warpgroup attends from 64 tokens of a head to blocks of keys.

Tiles of keys and values come through a ring of stages in shared memory, each with a barrier `ready` for its copies and
one, `free`, for the warpgroups that have read it. The scores of a block are computed while the probabilities of the
block before meet their values, and both while the other warpgroup exponentiates:

    s = q kᵀ · factor          a base-2 logarithm; factor of a row, and of a block where keys are codes
    p = exp2(s − peak)         peak: the running maximum, or a number that no score is far from
    acc ← acc · shrink + p v,  total ← total · shrink + Σ p,   shrink = exp2(old peak − new peak)

The output is acc / total. It leaves in 16-bit or as int8 codes with a scale per row and head.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from .hopper_gluon import Descriptor, barrier, codes_of_rows, next_stage, store_tile, view

GROUPS = 2  # warpgroups that attend
GROUP_ROWS = 64


@gluon.jit
def take_queries(q_tile, q_free, LAYOUT: gl.constexpr):
    """q_tile in registers, and its room given back to the copies.

    Without the fence a copy, which goes another way to shared memory, may come before loads that still queue.
    """
    q = q_tile.load(LAYOUT)
    fence_async_shared()
    mbarrier.arrive(q_free)
    return q


@gluon.jit
def begin_scores(q, k_tile):
    """q kᵀ, to be waited for: [ROWS, KEYS] int32 or fp32. q is a left operand in registers, k_tile [KEYS, D]."""
    ROWS: gl.constexpr = q.shape[0]
    KEYS: gl.constexpr = k_tile.shape[0]
    S: gl.constexpr = q.type.layout.parent
    TYPE: gl.constexpr = gl.int32 if q.dtype == gl.int8 else gl.float32
    unused = gl.zeros([ROWS, KEYS], TYPE, S)
    return warpgroup_mma(q, k_tile.permute((1, 0)), unused, use_acc=False, is_async=True)


@gluon.jit
def block_factor(row_factor, k_scales, stage, SCALED: gl.constexpr):
    """The factor [ROWS or 1, 1] of a stage's scores."""
    if SCALED:
        row_factor = row_factor * k_scales.index(stage).load(row_factor.type.layout)
    return gl.expand_dims(row_factor, 1)


@gluon.jit
def row_sums(p):
    """[ROWS, 8] partial sums: over registers of a thread alone, so that a loop needs no shuffles."""
    return gl.sum(gl.reshape(p, (p.shape[0], p.shape[1] // 8, 8)), axis=1)


@gluon.jit
def as_operand(p, dtype: gl.constexpr, ACC: gl.constexpr):
    """Probabilities as the left operand of their product with values, whose result has the layout ACC."""
    return gl.convert_layout(p.to(dtype), gl.DotOperandLayout(0, ACC, 2))


@gluon.jit
def attend_blocks(
    q, row_factor, peak, p, total, k_tiles, v_tiles, k_scales, ready, free, stage, phase, blocks,
    STAGES: gl.constexpr, SCALED: gl.constexpr, BOUNDED: gl.constexpr,
):  # fmt: skip
    """The blocks behind the first, whose probabilities p have not met their values yet.

    BOUNDED: peak [ROWS] stays. Returns acc / total [ROWS, D], stage and phase.
    """
    ROWS: gl.constexpr = q.shape[0]
    D: gl.constexpr = v_tiles.shape[2]
    ACC: gl.constexpr = p.type.layout.parent
    ACC_ROWS: gl.constexpr = gl.SliceLayout(1, ACC)
    acc = gl.zeros([ROWS, D], gl.float32, ACC)
    for _ in range(1, blocks):
        mbarrier.wait(ready.index(stage), phase)
        scores = begin_scores(q, k_tiles.index(stage))
        before = (stage + STAGES - 1) % STAGES
        acc = warpgroup_mma(p, v_tiles.index(before), acc, is_async=True)
        factor = block_factor(row_factor, k_scales, stage, SCALED)
        score = warpgroup_mma_wait(1, deps=[scores]).to(gl.float32)
        if BOUNDED:
            probability = gl.exp2(score * factor - peak[:, None])
            total += row_sums(probability)
            acc = warpgroup_mma_wait(0, deps=[acc])
        else:
            score *= factor
            new_peak = gl.maximum(peak, gl.max(score, axis=1))
            shrink = gl.exp2(peak - new_peak)
            peak = new_peak
            probability = gl.exp2(score - peak[:, None])
            sums = row_sums(probability)
            total = total * gl.expand_dims(gl.convert_layout(shrink, gl.SliceLayout(1, sums.type.layout)), 1) + sums
            acc = warpgroup_mma_wait(0, deps=[acc])
            acc *= gl.expand_dims(gl.convert_layout(shrink, ACC_ROWS), 1)
        mbarrier.arrive(free.index(before))
        p = as_operand(probability, v_tiles.dtype, ACC)
        stage, phase = next_stage(stage, phase, STAGES)
    last = (stage + STAGES - 1) % STAGES
    acc = warpgroup_mma(p, v_tiles.index(last), acc, is_async=True)
    share = gl.expand_dims(gl.convert_layout(1.0 / gl.sum(total, axis=1), ACC_ROWS), 1)
    acc = warpgroup_mma_wait(0, deps=[acc])
    mbarrier.arrive(free.index(last))
    return acc * share, stage, phase


@gluon.jit
def write_tile(
    acc, room, out_desc, out_scale_ptr, batch, head, first, length, token_count, amax_min, QUANTIZE: gl.constexpr
):
    """Begin to copy acc [ROWS, D] from shared memory, 16-bit [ROWS, D], to out; nobody may be reading that memory."""
    ROWS: gl.constexpr = acc.shape[0]
    D: gl.constexpr = acc.shape[1]
    if QUANTIZE:
        ACC_ROWS: gl.constexpr = gl.SliceLayout(1, acc.type.layout)
        amax = gl.maximum(gl.max(gl.abs(acc), axis=1), amax_min)
        CODES: gl.constexpr = gl.NVMMASharedLayout(128, 8, rank=2)
        room = view(room, [ROWS, D], CODES, gl.int8)
        room.store(codes_of_rows(acc, amax))
        tokens = first + gl.arange(0, ROWS, ACC_ROWS)
        own = out_scale_ptr + head.to(gl.int64) * token_count + batch.to(gl.int64) * length + tokens
        gl.store(own, amax * (1.0 / 128.0), mask=tokens < length)
    else:
        room.store(acc.to(room.dtype))
    fence_async_shared()
    barrier()
    store_tile(out_desc, [batch, first, head * D], view(room, out_desc.block_shape, out_desc.layout))


@functools.cache
def shared_layout(dtype: torch.dtype, rank: int) -> gl.NVMMASharedLayout:
    """Rows of 128 bytes, swizzled; rows of more as several panels."""
    return gl.NVMMASharedLayout(128, 8 * dtype.itemsize, rank=rank)


def head_descriptor(x: Tensor, rows: int) -> Descriptor:
    """Blocks of `rows` tokens of a head of x [B, L, H, D]; past a sample's end they read zeros and write nothing."""
    batch, length, heads, dim = x.shape
    shape, strides = [batch, length, heads * dim], [*x.stride()[:2], 1]
    return Descriptor(x, shape, strides, [1, rows, dim], shared_layout(x.dtype, 3))
