"""Triton kernels of `routing`: the keys' mean, the block scores, and the choice of the highest of each row.

The choice bisects on the scores' bits: read as integers with the negative ones mirrored, floats keep their order, so
that at most 32 counts of a row find the lowest score that is kept. It is exact, and the same on every run.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .grid import cdiv
from .routing import BLOCK_K

SCORE_TILE = 64
LOWEST = tl.constexpr(-(2**31))
# Rows are padded to one of these lengths, then times 4 …: 512 blocks are 480p, 2,048 are 131,072 tokens.
SMALLEST_ROW = 512
# The shortest row is one warp's, which waits for no other; longer ones go to 4, and to more where they fill registers.
WARPS, ELEMENTS_PER_WARP = 4, 2048


@triton.jit(do_not_specialize=["length", "blocks"])
def _key_mean_kernel(
    means_ptr,  # fp32 [B, H, blocks, D]
    out_ptr,  # fp32 [B, H, D]
    length,
    blocks,
    BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    D: tl.constexpr,
):
    batch_head = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for first in range(0, blocks, ROWS):
        block = first + tl.arange(0, ROWS)
        mean = tl.load(
            means_ptr + (batch_head * blocks + block)[:, None] * D + columns[None, :],
            mask=(block < blocks)[:, None],
            other=0.0,
        )
        total += mean * tl.minimum(length - block * BLOCK, BLOCK).to(tl.float32)[:, None]
    tl.store(out_ptr + batch_head * D + columns, tl.sum(total, axis=0) / length)


@triton.jit(do_not_specialize=["q_blocks", "k_blocks"])
def _score_kernel(
    q_ptr,  # fp32 [B, H, q_blocks, D]
    k_ptr,  # fp32 [B, H, k_blocks, D]
    mean_ptr,  # fp32 [B, H, D]
    score_ptr,  # fp32 [B, H, q_blocks, k_blocks]
    q_blocks,
    k_blocks,
    TILE: tl.constexpr,
    CHUNK: tl.constexpr,
    D: tl.constexpr,
):
    batch_head = tl.program_id(2).to(tl.int64)
    queries = tl.program_id(0) * TILE + tl.arange(0, TILE)
    keys = tl.program_id(1) * TILE + tl.arange(0, TILE)
    q_rows = q_ptr + (batch_head * q_blocks + tl.minimum(queries, q_blocks - 1))[:, None] * D
    k_rows = k_ptr + (batch_head * k_blocks + tl.minimum(keys, k_blocks - 1))[:, None] * D
    score = tl.zeros((TILE, TILE), dtype=tl.float32)
    for start in range(0, D, CHUNK):
        columns = start + tl.arange(0, CHUNK)
        q = tl.load(q_rows + columns[None, :])
        k = tl.load(k_rows + columns[None, :]) - tl.load(mean_ptr + batch_head * D + columns)[None, :]
        # Three TF32 products carry 22 bits of each factor, where "ieee" would multiply outside the tensor cores.
        score = tl.dot(q, tl.trans(k), score, input_precision="tf32x3")
    out = score_ptr + (batch_head * q_blocks + queries)[:, None] * k_blocks + keys[None, :]
    tl.store(out, score, mask=(queries < q_blocks)[:, None] & (keys < k_blocks)[None, :])


@triton.jit(do_not_specialize=["k_blocks", "kept"])
def _choose_kernel(
    score_ptr,  # fp32 [rows, k_blocks]
    chosen_ptr,  # int32 [rows, kept]
    k_blocks,
    kept,
    COLUMNS: tl.constexpr,  # at least k_blocks
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, COLUMNS)
    present = columns < k_blocks
    score = tl.load(score_ptr + row * k_blocks + columns, mask=present, other=0.0)
    bits = (score + 0.0).to(tl.int32, bitcast=True)  # −0 + 0 = +0: equal scores get equal bits
    order = tl.maximum(bits ^ ((bits >> 31) & 0x7FFFFFFF), LOWEST + 1)
    order = tl.where(present, order, LOWEST)

    # Invariant: at least `kept` scores reach `low`, fewer reach `high` + 1.
    low = tl.min(tl.where(present, order, 0x7FFFFFFF), axis=0)
    high = tl.max(order, axis=0)
    reached = k_blocks
    while (low < high) & (reached > kept):
        middle = (low | high) - ((low ^ high) >> 1)  # their mean, rounded up, without overflow
        count = tl.sum((order >= middle).to(tl.int32), axis=0)
        enough = count >= kept
        low = tl.where(enough, middle, low)
        reached = tl.where(enough, count, reached)
        high = tl.where(enough, high, middle - 1)

    # More than `kept` reach `low` only where several equal it: the last of those are left out.
    equal = (order == low).to(tl.int32)
    keep_equal = tl.sum(equal, axis=0) - (reached - kept)
    chosen = (order > low) | ((order == low) & (tl.cumsum(equal, axis=0) <= keep_equal))
    slot = tl.cumsum(chosen.to(tl.int32), axis=0) - 1
    tl.store(chosen_ptr + row * kept + slot, columns, mask=chosen)


def key_mean_triton(pooled_k: Tensor, length: int) -> Tensor:
    """`routing.key_mean_ref` as a kernel."""
    batch, heads, blocks, dim = pooled_k.shape
    out = torch.empty(batch, heads, dim, dtype=torch.float32, device=pooled_k.device)
    with torch.cuda.device_of(pooled_k):
        _key_mean_kernel[(batch * heads, dim // 32)](
            pooled_k.contiguous(), out, length, blocks, BLOCK=BLOCK_K, COLUMNS=32, ROWS=256, D=dim, num_warps=8
        )
    return out


def route_triton(pooled_q: Tensor, pooled_k: Tensor, k_mean: Tensor, kept: int) -> Tensor:
    """`routing.route_ref` as two kernels."""
    batch, heads, q_blocks, dim = pooled_q.shape
    k_blocks = pooled_k.shape[2]
    if not 1 <= kept <= k_blocks:
        raise ValueError(f"routing: kept must lie in 1 … {k_blocks} (key blocks), got {kept}; use kept_blocks")
    score = torch.empty(batch, heads, q_blocks, k_blocks, dtype=torch.float32, device=pooled_q.device)
    chosen = torch.empty(batch, heads, q_blocks, kept, dtype=torch.int32, device=pooled_q.device)
    columns = SMALLEST_ROW
    while columns < k_blocks:
        columns *= 4
    warps = 1 if columns == SMALLEST_ROW else max(WARPS, min(16, columns // ELEMENTS_PER_WARP))
    grid = (cdiv(q_blocks, SCORE_TILE), cdiv(k_blocks, SCORE_TILE), batch * heads)
    with torch.cuda.device_of(pooled_q):
        _score_kernel[grid](
            pooled_q.contiguous(),
            pooled_k.contiguous(),
            k_mean.contiguous(),
            score,
            q_blocks,
            k_blocks,
            TILE=SCORE_TILE,
            CHUNK=32,
            D=dim,
            num_warps=4,
        )
        _choose_kernel[(batch * heads * q_blocks,)](score, chosen, k_blocks, kept, COLUMNS=columns, num_warps=warps)
    return chosen
