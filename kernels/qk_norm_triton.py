"""Triton kernel of `qk_norm`: one program walks through the tokens of one pooling block, a few rows at a time."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .block_int8_triton import round_to_codes
from .grid import cdiv
from .int8_heads import AMAX_FLOOR, CODE_MAX, QuantizedHeads
from .norm import Rotation
from .qk_norm import PooledHeads

# Elements that a program works on at once, where a row is not longer: 2 rows of the 1.3B model (padded to 2,048). One
# row of the 14B model (8,192) has twice the warps.
TILE_ELEMENTS = 4096


@triton.jit(do_not_specialize=["length", "blocks"])
def _qk_norm_kernel(
    x_ptr,  # [B, L, C] with any strides of B and L
    weight_ptr,  # [C]
    cos_ptr,  # fp32 [L, D/2]
    sin_ptr,  # fp32 [L, D/2]
    y_ptr,  # [B, L, C], contiguous
    means_ptr,  # fp32 [B, H, blocks, D]
    codes_ptr,  # int8 [B, L, C], contiguous
    scale_ptr,  # fp32 [B, H, L]
    length,
    blocks,
    heads,
    x_b,
    x_l,
    eps,
    AMAX_MIN: tl.constexpr,
    CODE_LIMIT: tl.constexpr,
    INT8: tl.constexpr,
    POOL: tl.constexpr,
    ROWS: tl.constexpr,
    HEADS: tl.constexpr,  # padded
    D: tl.constexpr,
):
    batch = tl.program_id(0).to(tl.int64) // blocks
    block = tl.program_id(0) % blocks
    width = heads * D
    columns = tl.arange(0, HEADS * D)
    head = tl.arange(0, HEADS)
    inside = columns < width
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    pairs = tl.arange(0, HEADS * D // 2) % (D // 2)
    sums = tl.zeros((ROWS, HEADS * D), dtype=tl.float32)
    row = tl.arange(0, ROWS)
    base = x_ptr + batch * x_b + columns[None, :]
    first = block * POOL
    tokens = first + row
    mask = (tokens < length)[:, None] & inside[None, :]
    following = tl.load(base + tokens.to(tl.int64)[:, None] * x_l, mask=mask, other=0.0)
    for start in range(0, POOL, ROWS):
        x = following.to(tl.float32)
        tokens = first + start + row
        present = tokens < length
        rows = tokens.to(tl.int64)
        mask = present[:, None] & inside[None, :]
        angles = rows[:, None] * (D // 2) + pairs[None, :]
        cos = tl.load(cos_ptr + angles, mask=present[:, None], other=0.0)
        sin = tl.load(sin_ptr + angles, mask=present[:, None], other=0.0)
        # The next rows are on their way while these are worked on.
        ahead = tokens + ROWS
        wanted = (ahead < tl.minimum(first + POOL, length))[:, None] & inside[None, :]
        following = tl.load(base + ahead.to(tl.int64)[:, None] * x_l, mask=wanted, other=0.0)
        norm = tl.rsqrt(tl.sum(x * x, axis=1) / width + eps)
        y = x * norm[:, None] * weight[None, :]
        a, b = tl.split(tl.reshape(y, (ROWS, HEADS * D // 2, 2)))
        rounded = tl.interleave(a * cos - b * sin, a * sin + b * cos).to(y_ptr.dtype.element_ty)
        own = (batch * length + rows)[:, None] * width + columns[None, :]
        tl.store(y_ptr + own, rounded, mask=mask)
        y = rounded.to(tl.float32)
        sums += y
        if INT8:
            y = tl.reshape(y, (ROWS, HEADS, D))
            amax = tl.maximum(tl.max(tl.abs(y), axis=2), AMAX_MIN)
            codes = round_to_codes(y * (CODE_LIMIT / amax)[:, :, None])
            # 8 bytes a thread, as its share of x: a wider store would move every tensor of the loop to another layout.
            tl.store(codes_ptr + tl.max_contiguous(own, [1, 8]), tl.reshape(codes, (ROWS, HEADS * D)), mask=mask)
            scale_ptrs = scale_ptr + (batch * heads + head)[None, :] * length + rows[:, None]
            tl.store(scale_ptrs, amax * (1.0 / CODE_LIMIT), mask=present[:, None] & (head < heads)[None, :])
    count = tl.minimum(length - block * POOL, POOL).to(tl.float32)
    slots = ((batch * heads + columns // D) * blocks + block) * D + columns % D
    tl.store(means_ptr + slots, tl.sum(sums, axis=0) / count, mask=inside)


def qk_norm_triton(
    x: Tensor, weight: Tensor, eps: float, rotation: Rotation, heads: int, block: int, int8: bool
) -> PooledHeads:
    """`qk_norm.qk_norm_ref` as a kernel; x may be a slice of wider rows."""
    batch, length, width = x.shape
    dim = width // heads
    if x.stride(2) != 1 or rotation.cos.shape != (length, dim // 2) or block & (block - 1):
        raise ValueError(
            f"norm of queries and keys: x {tuple(x.shape)} must be contiguous in its last dimension, RoPE tables "
            f"[{length}, {dim // 2}] and the block a power of 2, got stride {x.stride(2)}, tables "
            f"{tuple(rotation.cos.shape)} and block {block}"
        )
    blocks = cdiv(length, block)
    padded_heads = triton.next_power_of_2(heads)
    y = torch.empty(batch, length, heads, dim, dtype=x.dtype, device=x.device)
    means = torch.empty(batch, heads, blocks, dim, dtype=torch.float32, device=x.device)
    codes = None
    if int8:
        codes = QuantizedHeads(
            torch.empty(batch, length, heads, dim, dtype=torch.int8, device=x.device),
            torch.empty(batch, heads, length, dtype=torch.float32, device=x.device),
        )
    with torch.cuda.device_of(x):
        _qk_norm_kernel[(batch * blocks,)](
            x,
            weight,
            rotation.cos,
            rotation.sin,
            y,
            means,
            codes.codes if codes else y,
            codes.scale if codes else means,
            length,
            blocks,
            heads,
            *x.stride()[:2],
            eps,
            AMAX_MIN=AMAX_FLOOR,
            CODE_LIMIT=float(CODE_MAX),
            INT8=int8,
            POOL=block,
            ROWS=max(1, min(block, TILE_ELEMENTS // (padded_heads * dim))),
            HEADS=padded_heads,
            D=dim,
            num_warps=8 if padded_heads * dim <= TILE_ELEMENTS else 16,
        )
    return PooledHeads(y, means, codes)
