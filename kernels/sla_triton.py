"""Triton kernels of `sla` and `sage`: pooling, feature sums, int8 quantization and the sparse-linear attention.

The attention kernel does 4·B·H·L·kept·64·D operations for the kept blocks and one [128, D]×[D, D] product per query
block for the linear branch. Inputs and output are [B, L, H, D] with any strides whose last is 1; lengths, block
counts and the strides made of them are never specialised.
"""

from __future__ import annotations

import functools
import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .block_int8_triton import round_even
from .sage import AMAX_FLOOR, CODE_MAX, QuantizedHeads
from .sla import BLOCK_K, BLOCK_Q, LinearBranch

# Keys that one program of the feature sums walks through: enough programs for every multiprocessor, few enough [D, D]
# stores. 0.156 ms at 32,760 keys and 12 heads on an H200; 0.247 ms with 2,048 keys in blocks of 64.
FEATURE_CHUNK = 512


@triton.jit(do_not_specialize=["length", "blocks"])
def _mean_pool_kernel(
    x_ptr,  # [B, L, H, D]
    out_ptr,  # fp32 [B, H, blocks, D]
    length,
    blocks,
    heads,
    x_b,
    x_l,
    x_h,
    BLOCK: tl.constexpr,
    D: tl.constexpr,
):
    block = tl.program_id(0)
    batch_head = tl.program_id(1)
    batch, head = (batch_head // heads).to(tl.int64), batch_head % heads
    tokens = block * BLOCK + tl.arange(0, BLOCK)
    columns = tl.arange(0, D)
    base = x_ptr + batch * x_b + head * x_h
    x = tl.load(
        base + tokens.to(tl.int64)[:, None] * x_l + columns[None, :], mask=(tokens < length)[:, None], other=0.0
    )
    count = tl.minimum(length - block * BLOCK, BLOCK).to(tl.float32)
    mean = tl.sum(x.to(tl.float32), axis=0) / count
    tl.store(out_ptr + (batch_head.to(tl.int64) * blocks + block) * D + columns, mean)


@triton.jit
def _softmax_rows(x):
    x = x.to(tl.float32)
    e = tl.exp2((x - tl.max(x, axis=1)[:, None]) * 1.4426950408889634)
    return e / tl.sum(e, axis=1)[:, None]


@triton.jit(do_not_specialize=["length", "chunks"])
def _feature_sums_kernel(
    k_ptr,  # [B, L, H, D]
    v_ptr,  # [B, L, H, D]
    kv_ptr,  # fp32 [B, H, chunks, D, D]
    k_sum_ptr,  # fp32 [B, H, chunks, D]
    length,
    chunks,
    heads,
    k_b,
    k_l,
    k_h,
    v_b,
    v_l,
    v_h,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    D: tl.constexpr,
):
    chunk = tl.program_id(0)
    batch_head = tl.program_id(1)
    batch, head = (batch_head // heads).to(tl.int64), batch_head % heads
    columns = tl.arange(0, D)
    k_base = k_ptr + batch * k_b + head * k_h + columns[None, :]
    v_base = v_ptr + batch * v_b + head * v_h + columns[None, :]
    kv = tl.zeros((D, D), dtype=tl.float32)
    k_sum = tl.zeros((D,), dtype=tl.float32)
    first = chunk * CHUNK
    for start in range(first, tl.minimum(first + CHUNK, length), BLOCK):
        tokens = start + tl.arange(0, BLOCK)
        inside = (tokens < length)[:, None]
        rows = tokens.to(tl.int64)[:, None]
        k = tl.load(k_base + rows * k_l, mask=inside, other=0.0)
        v = tl.load(v_base + rows * v_l, mask=inside, other=0.0)
        features = tl.where(inside, _softmax_rows(k) * D, 0.0)
        k_sum += tl.sum(features, axis=0)
        kv += tl.dot(tl.trans(features.to(v.dtype)), v)
    slot = batch_head.to(tl.int64) * chunks + chunk
    tl.store(k_sum_ptr + slot * D + columns, k_sum)
    tl.store(kv_ptr + slot * D * D + columns[:, None] * D + columns[None, :], kv)


@triton.jit(do_not_specialize=["length", "blocks"])
def _quantize_heads_kernel(
    x_ptr,  # [B, L, H, D]
    mean_ptr,  # fp32 [B, H, D], subtracted where SMOOTH
    codes_ptr,  # int8 [B, L, H, D], contiguous
    scale_ptr,  # fp32 [B, H, L] or [B, H, blocks]
    length,
    blocks,
    heads,
    x_b,
    x_l,
    x_h,
    AMAX_MIN: tl.constexpr,
    CODE_LIMIT: tl.constexpr,
    SMOOTH: tl.constexpr,
    BLOCK: tl.constexpr,
    D: tl.constexpr,
):
    block = tl.program_id(0)
    batch_head = tl.program_id(1)
    batch, head = (batch_head // heads).to(tl.int64), batch_head % heads
    tokens = block * BLOCK + tl.arange(0, BLOCK)
    columns = tl.arange(0, D)
    inside = tokens < length
    rows = tokens.to(tl.int64)
    x_ptrs = x_ptr + batch * x_b + head * x_h + rows[:, None] * x_l + columns[None, :]
    x = tl.load(x_ptrs, mask=inside[:, None], other=0.0).to(tl.float32)
    if SMOOTH:
        mean = tl.load(mean_ptr + batch_head.to(tl.int64) * D + columns)
        x = tl.where(inside[:, None], x - mean[None, :], 0.0)
    amax = tl.maximum(tl.max(tl.abs(x), axis=1), AMAX_MIN)
    if SMOOTH:
        shared = tl.max(amax, axis=0)
        amax = tl.zeros_like(amax) + shared
        tl.store(scale_ptr + batch_head.to(tl.int64) * blocks + block, shared * (1.0 / CODE_LIMIT))
    else:
        tl.store(scale_ptr + batch_head.to(tl.int64) * length + rows, amax * (1.0 / CODE_LIMIT), mask=inside)
    scaled = x * (CODE_LIMIT / amax)[:, None]
    codes = round_even(scaled).to(tl.int8)
    out = codes_ptr + ((batch * length + rows) * heads + head)[:, None] * D + columns[None, :]
    tl.store(out, codes, mask=inside[:, None])


@triton.jit(do_not_specialize=["length", "key_length", "kept", "q_blocks", "k_blocks"])
def _sparse_linear_kernel(
    q_ptr,  # [B, L, H, D]
    k_ptr,  # [B, S, H, D]
    v_ptr,  # [B, S, H, D]
    q_codes_ptr,  # int8 [B, L, H, D]
    k_codes_ptr,  # int8 [B, S, H, D]
    q_scale_ptr,  # fp32 [B, H, L]
    k_scale_ptr,  # fp32 [B, H, k_blocks]
    chosen_ptr,  # int32 [B, H, q_blocks, kept]
    values_ptr,  # [B, H, D, D] in q's dtype
    k_mean_ptr,  # fp32 [B, H, D]
    bias_ptr,  # fp32 [D]
    out_ptr,  # [B, L, H, D], contiguous
    score_scale,
    linear_eps,
    length,
    key_length,
    heads,
    kept,
    q_blocks,
    k_blocks,
    q_b,
    q_l,
    q_h,
    k_b,
    k_l,
    k_h,
    v_b,
    v_l,
    v_h,
    INT8: tl.constexpr,
    LINEAR: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    D: tl.constexpr,
):
    q_block = tl.program_id(0)
    batch_head = tl.program_id(1).to(tl.int64)
    batch, head = batch_head // heads, batch_head % heads
    tokens = q_block * BLOCK_M + tl.arange(0, BLOCK_M)
    rows = tl.minimum(tokens, length - 1).to(tl.int64)
    inside = tokens < length
    columns = tl.arange(0, D)
    keys = tl.arange(0, BLOCK_N)
    q_ptrs = q_ptr + batch * q_b + head * q_h + rows[:, None] * q_l + columns[None, :]
    v_base = v_ptr + batch * v_b + head * v_h + columns[None, :]
    if INT8:
        own = ((batch * length + rows) * heads + head)[:, None] * D + columns[None, :]
        q = tl.load(q_codes_ptr + own)
        q_factor = tl.load(q_scale_ptr + batch_head * length + rows) * score_scale
        k_base = k_codes_ptr + (batch * key_length * heads + head) * D + columns[:, None]
        k_stride = heads * D
    else:
        q = tl.load(q_ptrs)
        k_base = k_ptr + batch * k_b + head * k_h + columns[:, None]
        k_stride = k_l
    chosen = chosen_ptr + (batch_head * q_blocks + q_block) * kept

    peak = tl.full((BLOCK_M,), -float("inf"), dtype=tl.float32)
    total = tl.zeros((BLOCK_M,), dtype=tl.float32)
    acc = tl.zeros((BLOCK_M, D), dtype=tl.float32)
    for i in range(kept):
        block = tl.load(chosen + i)
        key = block * BLOCK_N + keys
        safe = tl.minimum(key, key_length - 1).to(tl.int64)
        k = tl.load(k_base + safe[None, :] * k_stride)
        if INT8:
            k_factor = tl.load(k_scale_ptr + batch_head * k_blocks + block)
            score = tl.dot(q, k, out_dtype=tl.int32).to(tl.float32) * (q_factor * k_factor)[:, None]
        else:
            score = tl.dot(q, k) * score_scale
        score = tl.where((key < key_length)[None, :], score, -float("inf"))
        new_peak = tl.maximum(peak, tl.max(score, axis=1))
        p = tl.exp2(score - new_peak[:, None])
        shrink = tl.exp2(peak - new_peak)
        v = tl.load(v_base + safe[:, None] * v_l)
        total = total * shrink + tl.sum(p, axis=1)
        acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None])
        peak = new_peak
    acc = acc / total[:, None]

    if LINEAR:
        k_mean = tl.load(k_mean_ptr + batch_head * D + columns)
        weights = _softmax_rows(tl.load(q_ptrs)) * k_mean[None, :]
        weights = weights / (linear_eps + tl.sum(weights, axis=1))[:, None]
        values = tl.load(values_ptr + batch_head * D * D + columns[:, None] * D + columns[None, :])
        acc = tl.dot(weights.to(values.dtype), values, acc) + tl.load(bias_ptr + columns)[None, :]
    out = out_ptr + ((batch * length + rows) * heads + head)[:, None] * D + columns[None, :]
    tl.store(out, acc.to(out_ptr.dtype.element_ty), mask=inside[:, None])


def mean_pool_triton(x: Tensor, block: int) -> Tensor:
    """`sla.mean_pool_ref` as a kernel."""
    batch, length, heads, dim = x.shape
    blocks = triton.cdiv(length, block)
    out = torch.empty(batch, heads, blocks, dim, dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        _mean_pool_kernel[(blocks, batch * heads)](
            x, out, length, blocks, heads, *x.stride()[:3], BLOCK=block, D=dim, num_warps=4
        )
    return out


def feature_sums_triton(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Means over keys of D·φ(k)ᵀv, fp32 [B, H, D, D], and of D·φ(k), fp32 [B, H, D]."""
    batch, length, heads, dim = k.shape
    chunks = triton.cdiv(length, FEATURE_CHUNK)
    kv = torch.empty(batch, heads, chunks, dim, dim, dtype=torch.float32, device=k.device)
    k_sum = torch.empty(batch, heads, chunks, dim, dtype=torch.float32, device=k.device)
    with torch.cuda.device_of(k):
        _feature_sums_kernel[(chunks, batch * heads)](
            k,
            v,
            kv,
            k_sum,
            length,
            chunks,
            heads,
            *k.stride()[:3],
            *v.stride()[:3],
            CHUNK=FEATURE_CHUNK,
            BLOCK=128 if _on_hopper(k.device) else 64,
            D=dim,
            num_warps=4,
            num_stages=2,
        )
    return kv.sum(dim=2) / length, k_sum.sum(dim=2) / length


def quantize_queries_triton(q: Tensor) -> QuantizedHeads:
    """`sage.quantize_queries_ref` as a kernel."""
    batch, length, heads, _ = q.shape
    scale = torch.empty(batch, heads, length, dtype=torch.float32, device=q.device)
    return _quantize_heads(q, scale, None, BLOCK_Q)


def quantize_keys_triton(k: Tensor, k_mean: Tensor) -> QuantizedHeads:
    """`sage.quantize_keys_ref` as a kernel."""
    batch, length, heads, _ = k.shape
    blocks = triton.cdiv(length, BLOCK_K)
    scale = torch.empty(batch, heads, blocks, dtype=torch.float32, device=k.device)
    return _quantize_heads(k, scale, k_mean.contiguous(), BLOCK_K)


def _quantize_heads(x: Tensor, scale: Tensor, mean: Tensor | None, block: int) -> QuantizedHeads:
    batch, length, heads, dim = x.shape
    codes = torch.empty(batch, length, heads, dim, dtype=torch.int8, device=x.device)
    blocks = triton.cdiv(length, block)
    with torch.cuda.device_of(x):
        _quantize_heads_kernel[(blocks, batch * heads)](
            x,
            mean if mean is not None else scale,
            codes,
            scale,
            length,
            blocks,
            heads,
            *x.stride()[:3],
            AMAX_MIN=AMAX_FLOOR,
            CODE_LIMIT=float(CODE_MAX),
            SMOOTH=mean is not None,
            BLOCK=block,
            D=dim,
            num_warps=4,
        )
    return QuantizedHeads(codes, scale)


def sparse_linear_attention_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    blocks: Tensor,
    branch: LinearBranch | None,
    quantized: tuple[QuantizedHeads, QuantizedHeads] | None = None,
) -> Tensor:
    """Launch the attention: 16-bit scores, or int8 ones where `quantized` holds queries and keys."""
    batch, length, heads, dim = q.shape
    if blocks.shape[:3] != (batch, heads, triton.cdiv(length, BLOCK_Q)) or any(x.stride(-1) != 1 for x in (q, k, v)):
        raise ValueError(
            f"sparse-linear attention: blocks must be [batch, heads, query blocks, kept] for q {tuple(q.shape)} and "
            f"the last dimension contiguous, got blocks {tuple(blocks.shape)}"
        )
    out = torch.empty(batch, length, heads, dim, dtype=q.dtype, device=q.device)
    q8, k8 = quantized if quantized is not None else (None, None)
    with torch.cuda.device_of(q):
        _sparse_linear_kernel[(blocks.shape[2], batch * heads)](
            q,
            k,
            v,
            q8.codes if q8 else q,
            k8.codes if k8 else k,
            q8.scale if q8 else out,
            k8.scale if k8 else out,
            blocks.contiguous(),
            branch.values.to(q.dtype).contiguous() if branch else out,
            branch.k_mean.contiguous() if branch else out,
            branch.bias if branch else out,
            out,
            math.log2(math.e) / math.sqrt(dim),
            branch.eps if branch else 0.0,
            length,
            k.shape[1],
            heads,
            blocks.shape[3],
            blocks.shape[2],
            triton.cdiv(k.shape[1], BLOCK_K),
            *q.stride()[:3],
            *k.stride()[:3],
            *v.stride()[:3],
            INT8=quantized is not None,
            LINEAR=branch is not None,
            BLOCK_M=BLOCK_Q,
            BLOCK_N=BLOCK_K,
            D=dim,
            num_warps=4 if _on_hopper(q.device) else 8,
            num_stages=2,
        )
    return out


@functools.cache
def _on_hopper(device: torch.device) -> bool:
    """Where launch shapes were measured. Elsewhere those that spill nothing when compiled are taken, not timed: the
    attention spills up to 1.2 kB a thread with 4 warps and nothing with 8, the feature sums 0.5 kB in blocks of 128."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device)[0] == 9
