"""Triton kernel of `sla`, scores in 16-bit or int8: attention over the kept key blocks, the linear branch at its end.

Per kept block 4·128·64·D operations, and one [128, D]×[D, D] product per query block for the linear branch. The
softmax needs no running maximum where a bound is close enough: with every key inside a ball (centre c, radius R),
Cauchy–Schwarz gives q·k ≤ q·c + |q| R, and a softmax may be shifted by any number that neither overflows nor
underflows. A tile whose bound exceeds the scores of its first block by too much takes the loop with a running maximum.
Inputs are [B, L, H, D] with any strides whose last is 1; lengths, block counts and the strides made of them are never
specialised. On Hopper `sla_gluon` takes its place.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .block_int8 import AMAX_FLOOR, QuantizedActivations
from .block_int8_triton import encode_rows
from .dispatch import gluon_refusal, use_tma
from .grid import cdiv
from .routing import BLOCK_K, BLOCK_Q
from .sla import SlaInputs

LOG2E = tl.constexpr(1.4426950408889634)
# Features of the linear branch that are in registers at once, beside the accumulators of the whole tile.
EPILOGUE_CHUNK = 64
# Where the softmax is shifted by a bound, in powers of 2: how far below the bound its origin lies, and how far the
# highest score of the first block may lie below the bound. Probabilities then stay normal numbers of their dtype.
BOUND_RANGE = {torch.bfloat16: (0.0, 100.0), torch.float16: (12.0, 12.0)}
# A bound from 16-bit queries and keys holds for their int8 codes, whose rounding lengthens a vector by at most
# √128 / 254 = 4.5 %.
CODE_MARGIN = tl.constexpr(1.1)


@triton.jit
def _tokens(
    source,
    batch,
    head,
    first,
    length,
    s_b,
    s_l,
    s_h,
    TAIL: tl.constexpr,
    TMA: tl.constexpr,
    ROWS: tl.constexpr,
    D: tl.constexpr,
):
    """ROWS tokens of one head, [ROWS, D]; past the end zeros (TMA) or the last token again (TAIL)."""
    if TMA:
        x = source.load([batch, first, head * D]).reshape(ROWS, D)
    else:
        tokens = first + tl.arange(0, ROWS)
        if TAIL:
            tokens = tl.minimum(tokens, length - 1)
        base = source + batch.to(tl.int64) * s_b + head * s_h
        x = tl.load(base + tokens.to(tl.int64)[:, None] * s_l + tl.arange(0, D)[None, :])
    return x


@triton.jit
def _row_sums(p, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """[ROWS, 8] partial sums: over registers of a thread alone, so that a loop needs no shuffles."""
    return tl.sum(tl.reshape(p, (ROWS, COLUMNS // 8, 8)), axis=1)


@triton.jit
def _scores(q, q_factor, k_scales, block, k, INT8: tl.constexpr):
    """q kᵀ as the hardware gives it, in fp32, and the factor [ROWS, 1] that makes it a base-2 logarithm."""
    if INT8:
        score = tl.dot(q, k.T, out_dtype=tl.int32).to(tl.float32)
        factor = (q_factor * tl.load(k_scales + block))[:, None]
    else:
        score = tl.dot(q, k.T)
        factor = q_factor[:, None]
    return score, factor


@triton.jit(do_not_specialize=["length", "key_length", "kept", "q_blocks", "k_blocks", "token_count"])
def _sparse_linear_kernel(
    q_ptr,  # [B, L, H, D]
    k_ptr,  # [B, S, H, D], int8 codes where INT8; a tensor descriptor where TMA
    v_ptr,  # [B, S, H, D]; a tensor descriptor where TMA
    q_codes_ptr,  # int8 [B, L, H, D], contiguous
    q_scale_ptr,  # fp32 [B, H, L]
    k_scale_ptr,  # fp32 [B, H, k_blocks]
    centre_ptr,  # fp32 [B, H, D]
    radius_ptr,  # fp32 [B, H]
    chosen_ptr,  # int32 [B, H, q_blocks, kept], ascending
    values_ptr,  # [B, H, D, D] in q's dtype
    k_mean_ptr,  # fp32 [B, H, D]
    bias_ptr,  # [D]
    out_ptr,  # [B, L, H, D], contiguous; int8 codes where QUANTIZE
    out_scale_ptr,  # fp32 [H, B·L] where QUANTIZE
    score_scale,
    linear_eps,
    length,
    key_length,
    token_count,
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
    AMAX_MIN: tl.constexpr,
    HEADROOM: tl.constexpr,
    GAP: tl.constexpr,
    INT8: tl.constexpr,
    QUANTIZE: tl.constexpr,
    TMA: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    D: tl.constexpr,
):
    q_block = tl.program_id(0)
    batch_head = tl.program_id(1)
    batch, head = batch_head // heads, batch_head % heads
    tokens = q_block * BLOCK_M + tl.arange(0, BLOCK_M)
    rows = tl.minimum(tokens, length - 1).to(tl.int64)
    inside = tokens < length
    columns = tl.arange(0, D)
    q_rows = q_ptr + batch.to(tl.int64) * q_b + head * q_h + rows * q_l

    wide = tl.load(q_rows[:, None] + columns[None, :]).to(tl.float32)
    reach = tl.sqrt(tl.sum(wide * wide, axis=1)) * tl.load(radius_ptr + batch_head)
    if INT8:
        reach *= CODE_MARGIN
    else:
        reach += tl.sum(wide * tl.load(centre_ptr + batch_head * D + columns)[None, :], axis=1)
    bound = reach * score_scale
    top = tl.max(wide, axis=1) * LOG2E
    e = tl.exp2(wide * LOG2E - top[:, None])
    k_mean = tl.load(k_mean_ptr + batch_head * D + columns)
    # log2 of ε + Σ φ(q) m, times the softmax's own denominator, which is the sum of the same exponentials.
    shift = top + tl.log2(tl.sum(e * (k_mean + linear_eps)[None, :], axis=1))

    if INT8:
        own = ((batch.to(tl.int64) * length + rows) * heads + head) * D
        q = tl.load(q_codes_ptr + own[:, None] + columns[None, :])
        q_factor = tl.load(q_scale_ptr + batch_head.to(tl.int64) * length + rows) * score_scale
    else:
        q = tl.load(q_rows[:, None] + columns[None, :])
        q_factor = tl.full((1,), score_scale, dtype=tl.float32)
    chosen = chosen_ptr + (batch_head.to(tl.int64) * q_blocks + q_block) * kept
    k_scales = k_scale_ptr + batch_head.to(tl.int64) * k_blocks

    # The last block first: it alone can be the tail, and its scores tell how close the bound is.
    block = tl.load(chosen + kept - 1)
    k = _tokens(k_ptr, batch, head, block * BLOCK_N, key_length, k_b, k_l, k_h, True, TMA, BLOCK_N, D)
    score, factor = _scores(q, q_factor, k_scales, block, k, INT8)
    present = block * BLOCK_N + tl.arange(0, BLOCK_N) < key_length
    score = tl.where(present[None, :], score * factor, -float("inf"))
    peak = tl.max(score, axis=1)
    near = tl.max(bound - peak, axis=0) <= GAP
    peak = tl.where(near, bound - HEADROOM, peak)
    p = tl.exp2(score - peak[:, None])
    total = _row_sums(p, BLOCK_M, BLOCK_N)
    v = _tokens(v_ptr, batch, head, block * BLOCK_N, key_length, v_b, v_l, v_h, True, TMA, BLOCK_N, D)
    acc = tl.dot(p.to(v.dtype), v)

    if near:
        for i in range(kept - 1):
            block = tl.load(chosen + i)
            k = _tokens(k_ptr, batch, head, block * BLOCK_N, key_length, k_b, k_l, k_h, False, TMA, BLOCK_N, D)
            score, factor = _scores(q, q_factor, k_scales, block, k, INT8)
            p = tl.exp2(score * factor - peak[:, None])
            total += _row_sums(p, BLOCK_M, BLOCK_N)
            v = _tokens(v_ptr, batch, head, block * BLOCK_N, key_length, v_b, v_l, v_h, False, TMA, BLOCK_N, D)
            acc = tl.dot(p.to(v.dtype), v, acc)
    else:
        for i in range(kept - 1):
            block = tl.load(chosen + i)
            k = _tokens(k_ptr, batch, head, block * BLOCK_N, key_length, k_b, k_l, k_h, False, TMA, BLOCK_N, D)
            score, factor = _scores(q, q_factor, k_scales, block, k, INT8)
            new_peak = tl.maximum(peak, tl.max(score, axis=1) * factor.reshape(factor.shape[0]))
            p = tl.exp2(score * factor - new_peak[:, None])
            shrink = tl.exp2(peak - new_peak)
            total = total * shrink[:, None] + _row_sums(p, BLOCK_M, BLOCK_N)
            v = _tokens(v_ptr, batch, head, block * BLOCK_N, key_length, v_b, v_l, v_h, False, TMA, BLOCK_N, D)
            acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None])
            peak = new_peak
    acc = acc * (1.0 / tl.sum(total, axis=1))[:, None]

    for start in tl.static_range(0, D, CHUNK):
        part = start + tl.arange(0, CHUNK)
        x = tl.load(q_rows[:, None] + part[None, :]).to(tl.float32)
        weights = tl.exp2(x * LOG2E - shift[:, None]) * tl.load(k_mean_ptr + batch_head * D + part)[None, :]
        values = tl.load(values_ptr + batch_head.to(tl.int64) * D * D + part[:, None] * D + columns[None, :])
        acc = tl.dot(weights.to(values.dtype), values, acc)
    acc += tl.load(bias_ptr + columns).to(tl.float32)[None, :]
    row = batch.to(tl.int64) * length + tokens
    out = out_ptr + (row * heads + head)[:, None] * D + columns[None, :]
    if QUANTIZE:
        amax = tl.maximum(tl.max(tl.abs(acc), axis=1), AMAX_MIN)
        tl.store(out, encode_rows(acc, amax), mask=inside[:, None])
        tl.store(out_scale_ptr + head.to(tl.int64) * token_count + row, amax * (1.0 / 128.0), mask=inside)
    else:
        tl.store(out, acc.to(out_ptr.dtype.element_ty), mask=inside[:, None])


def attend_triton(inputs: SlaInputs) -> Tensor:
    """`sla.attend_ref` as a kernel."""
    out = torch.empty(inputs.q.shape, dtype=inputs.q.dtype, device=inputs.q.device)
    _launch(inputs, out, None)
    return out


def attend_quantized_triton(inputs: SlaInputs) -> QuantizedActivations:
    """The same kernel writing int8 codes and a scale per row and head."""
    batch, length, heads, dim = inputs.q.shape
    codes = torch.empty(batch * length, heads * dim, dtype=torch.int8, device=inputs.q.device)
    scale = torch.empty(heads, batch * length, dtype=torch.float32, device=inputs.q.device)
    _launch(inputs, codes, scale)
    return QuantizedActivations(codes, scale)


def _launch(inputs: SlaInputs, out: Tensor, out_scale: Tensor | None) -> None:
    q, k, v = inputs.q, inputs.k, inputs.v
    if any(x.stride(-1) != 1 for x in (q, k, v)):
        raise ValueError(
            "sparse-linear attention: the last dimension of q, k and v must be contiguous, got strides "
            f"{q.stride()}, {k.stride()} and {v.stride()}"
        )
    if all(_whole_rows(x) for x in (q, k, v)) and gluon_refusal(q.device, "run_attention_probe") is None:
        from .sla_gluon import attend_gluon

        attend_gluon(inputs, out, out_scale, BOUND_RANGE[q.dtype])
    else:
        launch_plain(inputs, out, out_scale)


def launch_plain(inputs: SlaInputs, out: Tensor, out_scale: Tensor | None) -> None:
    """This module's kernel into `out`, whatever the GPU: 16-bit, or int8 with its `out_scale`."""
    q, v, blocks, keys = inputs.q, inputs.v, inputs.blocks, inputs.keys
    q8, k8 = inputs.q_codes, keys.codes
    k = k8.codes if k8 else inputs.k
    batch, length, heads, dim = q.shape
    on_hopper = use_tma(q.device)
    tma = on_hopper and all(_whole_rows(x) for x in (k, v))
    headroom, gap = BOUND_RANGE[q.dtype]
    with torch.cuda.device_of(q):
        _sparse_linear_kernel[(blocks.shape[2], batch * heads)](
            q,
            _descriptor(k) if tma else k,
            _descriptor(v) if tma else v,
            q8.codes if q8 else q,
            q8.scale if q8 else keys.ball.radius,
            k8.scale if k8 else keys.ball.radius,
            keys.ball.centre,
            keys.ball.radius,
            blocks.contiguous(),
            keys.branch.values.to(q.dtype).contiguous(),
            keys.branch.k_mean.contiguous(),
            keys.branch.bias,
            out,
            out_scale if out_scale is not None else keys.ball.radius,
            math.log2(math.e) / math.sqrt(dim),
            keys.branch.eps,
            length,
            k.shape[1],
            batch * length,
            heads,
            blocks.shape[3],
            blocks.shape[2],
            cdiv(k.shape[1], BLOCK_K),
            *q.stride()[:3],
            *k.stride()[:3],
            *v.stride()[:3],
            AMAX_MIN=AMAX_FLOOR,
            HEADROOM=headroom,
            GAP=gap,
            INT8=q8 is not None,
            QUANTIZE=out_scale is not None,
            TMA=tma,
            CHUNK=EPILOGUE_CHUNK,
            BLOCK_M=BLOCK_Q,
            BLOCK_N=BLOCK_K,
            D=dim,
            # Measured on Hopper. Elsewhere 4 warps spill up to 1.2 kB a thread when compiled, and 8 next to nothing.
            num_warps=4 if on_hopper else 8,
            num_stages=2,
        )


def _whole_rows(x: Tensor) -> bool:
    """Whether tensor descriptors can describe x [B, L, H, D]: heads side by side, strides of whole 16 bytes."""
    return x.stride(2) == x.shape[3] and all(
        n % 16 == 0 for n in (x.data_ptr(), *(s * x.element_size() for s in x.stride()[:2]))
    )


def _descriptor(x: Tensor):
    from triton.tools.tensor_descriptor import TensorDescriptor

    batch, length, heads, dim = x.shape
    return TensorDescriptor(x, [batch, length, heads * dim], [*x.stride()[:2], 1], [1, BLOCK_K, dim])
