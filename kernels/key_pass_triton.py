"""Triton kernels of `key_pass`: the sums of one stretch of keys per program, then their total with `proj_l` folded in.

The first reads k and v once (4 bytes a key and channel) and does 2·B·H·L·D² operations; it writes codes (1 byte) for
sagesla and one [D, D] sum a program. A head is cut into as many stretches as fill the multiprocessors, whatever the
batch, so that a sample's rounding does not depend on its neighbours.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .block_int8_triton import round_to_codes
from .dispatch import multiprocessors
from .grid import cdiv
from .int8_heads import AMAX_FLOOR, CODE_MAX, QuantizedHeads
from .key_pass import LINEAR_EPS, KeyBall, KeyPass, LinearBranch
from .routing import BLOCK_K

# With 8 warps: nothing spills on Hopper when compiled, and 64 KiB of shared memory fit every GPU from sm80 on. No more
# than one such program has room on a multiprocessor.
TILE = 64
PROGRAMS_PER_MULTIPROCESSOR = 1
FEATURE_SUMS = 32
FOLD_ROWS = 16
LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit(do_not_specialize=["length", "stretch", "stretches", "k_blocks"])
def _key_sums_kernel(
    k_ptr,  # [B, L, H, D]
    v_ptr,  # [B, L, H, D]
    centre_ptr,  # fp32 [B, H, D]
    vk_ptr,  # fp32 [B, H, stretches, D, D], vᵀ D·φ(k)
    feature_ptr,  # fp32 [B, H, stretches, D]
    reach_ptr,  # fp32 [B, H, stretches], the largest |k − centre|²
    codes_ptr,  # int8 [B, L, H, D], contiguous
    scale_ptr,  # fp32 [B, H, k_blocks]
    length,
    stretch,
    stretches,
    k_blocks,
    heads,
    k_b,
    k_l,
    k_h,
    v_b,
    v_l,
    v_h,
    AMAX_MIN: tl.constexpr,
    CODE_LIMIT: tl.constexpr,
    INT8: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    SUMS: tl.constexpr,  # how many partial sums of features a loop keeps: those of one thread need no exchange
    D: tl.constexpr,
):
    number = tl.program_id(0)
    batch_head = tl.program_id(1)
    batch, head = (batch_head // heads).to(tl.int64), batch_head % heads
    columns = tl.arange(0, D)
    k_base = k_ptr + batch * k_b + head * k_h + columns[None, :]
    v_base = v_ptr + batch * v_b + head * v_h + columns[None, :]
    centre = tl.load(centre_ptr + batch_head * D + columns)
    vk = tl.zeros((D, D), dtype=tl.float32)
    feature_sums = tl.zeros((SUMS, D), dtype=tl.float32)
    reach = tl.zeros((TILE,), dtype=tl.float32)
    first = number * stretch
    for start in range(first, tl.minimum(first + stretch, length), TILE):
        tokens = start + tl.arange(0, TILE)
        # Past the end the last key again, which changes no maximum; its features are zeros.
        rows = tl.minimum(tokens, length - 1).to(tl.int64)[:, None]
        k = tl.load(k_base + rows * k_l).to(tl.float32)
        v = tl.load(v_base + rows * v_l)
        centred = k - centre[None, :]
        reach = tl.maximum(reach, tl.sum(centred * centred, axis=1))
        if INT8:
            blocks = tl.reshape(centred, (TILE // BLOCK, BLOCK, D))
            amax = tl.maximum(tl.max(tl.max(tl.abs(blocks), axis=2), axis=1), AMAX_MIN)
            codes = round_to_codes(blocks * (CODE_LIMIT / amax)[:, None, None])
            own = codes_ptr + ((batch * length + rows) * heads + head) * D + columns[None, :]
            tl.store(own, tl.reshape(codes, (TILE, D)), mask=(tokens < length)[:, None])
            block = start // BLOCK + tl.arange(0, TILE // BLOCK)
            scale_ptrs = scale_ptr + batch_head.to(tl.int64) * k_blocks + block
            tl.store(scale_ptrs, amax * (1.0 / CODE_LIMIT), mask=block < k_blocks)
        e = tl.exp2(k * LOG2E - (tl.max(k, axis=1) * LOG2E)[:, None])
        features = e * tl.where(tokens < length, D / tl.sum(e, axis=1), 0.0)[:, None]
        feature_sums += tl.sum(tl.reshape(features, (TILE // SUMS, SUMS, D)), axis=0)
        # Values on the left: they come transposed out of shared memory, where features would have to be moved first.
        vk = tl.dot(tl.trans(v), features.to(v.dtype), vk)
    slot = batch_head.to(tl.int64) * stretches + number
    tl.store(reach_ptr + slot, tl.max(reach, axis=0))
    tl.store(feature_ptr + slot * D + columns, tl.sum(feature_sums, axis=0))
    tl.store(vk_ptr + slot * D * D + columns[:, None] * D + columns[None, :], vk)


@triton.jit(do_not_specialize=["length", "stretches"])
def _fold_kernel(
    vk_ptr,  # fp32 [B, H, stretches, D, D], vᵀ D·φ(k)
    feature_ptr,  # fp32 [B, H, stretches, D]
    reach_ptr,  # fp32 [B, H, stretches]
    weight_ptr,  # [D, D]
    values_ptr,  # [B, H, D, D]
    k_mean_ptr,  # fp32 [B, H, D]
    radius_ptr,  # fp32 [B, H]
    length,
    stretches,
    ROWS: tl.constexpr,
    D: tl.constexpr,
):
    batch_head = tl.program_id(0).to(tl.int64)
    features = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, D)
    vk = tl.zeros((D, ROWS), dtype=tl.float32)
    total = tl.zeros((ROWS,), dtype=tl.float32)
    reach = 0.0
    for i in range(stretches):
        slot = batch_head * stretches + i
        vk += tl.load(vk_ptr + slot * D * D + columns[:, None] * D + features[None, :])
        total += tl.load(feature_ptr + slot * D + features)
        reach = tl.maximum(reach, tl.load(reach_ptr + slot))
    means = vk / tl.maximum(total, 1.1754943508222875e-38)[None, :]
    weight = tl.load(weight_ptr + columns[:, None] * D + columns[None, :]).to(tl.float32)
    values = tl.dot(tl.trans(means), tl.trans(weight), input_precision="tf32x3")
    out = values_ptr + (batch_head * D + features)[:, None] * D + columns[None, :]
    tl.store(out, values.to(values_ptr.dtype.element_ty))
    tl.store(k_mean_ptr + batch_head * D + features, total / length)
    if tl.program_id(1) == 0:
        tl.store(radius_ptr + batch_head, tl.sqrt(reach))


def key_pass_triton(k: Tensor, v: Tensor, k_mean: Tensor, weight: Tensor, bias: Tensor, int8: bool) -> KeyPass:
    """`key_pass.key_pass_ref` as two kernels; the branch's values come out in v's dtype."""
    batch, length, heads, dim = k.shape
    if k.stride(3) != 1 or v.stride(3) != 1 or v.shape != k.shape:
        raise ValueError(
            f"pass over SLA's keys: k and v must have one shape and a contiguous last dimension, got {tuple(k.shape)} "
            f"and {tuple(v.shape)} with last strides {k.stride(3)} and {v.stride(3)}"
        )
    single = {"dtype": torch.float32, "device": k.device}
    values = torch.empty(batch, heads, dim, dim, dtype=v.dtype, device=k.device)
    feature_mean, radius = torch.empty(batch, heads, dim, **single), torch.empty(batch, heads, **single)
    codes = None
    if int8:
        scale = torch.empty(batch, heads, cdiv(length, BLOCK_K), **single)
        codes = QuantizedHeads(torch.empty(k.shape, dtype=torch.int8, device=k.device), scale)
    centre = k_mean.contiguous()
    with torch.cuda.device_of(k):
        vk, feature_sums, reach = _launch_sums(k, v, centre, codes)
        _fold_kernel[(batch * heads, dim // FOLD_ROWS)](
            vk,
            feature_sums,
            reach,
            weight.contiguous(),
            values,
            feature_mean,
            radius,
            length,
            reach.shape[2],
            ROWS=FOLD_ROWS,
            D=dim,
            num_warps=4,
        )
    branch = LinearBranch(values, feature_mean, bias, LINEAR_EPS * dim / length)
    return KeyPass(branch, KeyBall(centre, radius), codes)


def _launch_sums(k: Tensor, v: Tensor, centre: Tensor, codes: QuantizedHeads | None) -> tuple[Tensor, Tensor, Tensor]:
    """The sums of each stretch, [B, H, stretches, …] as the kernel names them; writes the codes if they are wanted."""
    batch, length, heads, dim = k.shape
    wanted = max(1, PROGRAMS_PER_MULTIPROCESSOR * multiprocessors(k.device) // heads)
    stretch = cdiv(cdiv(length, wanted), TILE) * TILE
    stretches = cdiv(length, stretch)
    shapes = (dim, dim), (dim,), ()
    vk, feature_sums, reach = (
        torch.empty(batch, heads, stretches, *shape, dtype=torch.float32, device=k.device) for shape in shapes
    )
    _key_sums_kernel[(stretches, batch * heads)](
        k,
        v,
        centre,
        vk,
        feature_sums,
        reach,
        codes.codes if codes else vk,
        codes.scale if codes else vk,
        length,
        stretch,
        stretches,
        cdiv(length, BLOCK_K),
        heads,
        *k.stride()[:3],
        *v.stride()[:3],
        AMAX_MIN=AMAX_FLOOR,
        CODE_LIMIT=float(CODE_MAX),
        INT8=codes is not None,
        BLOCK=BLOCK_K,
        TILE=TILE,
        SUMS=FEATURE_SUMS,
        D=dim,
        num_warps=8,
        num_stages=2,
    )
    return vk, feature_sums, reach
