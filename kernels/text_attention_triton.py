"""Triton kernels of `text_attention`: sums of squares of queries, norm of keys, attention over a prompt's keys.

A program attends from 128 tokens of one head, blocks of keys streaming past; on Hopper `text_attention_gluon` does.
Lengths are never specialised.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .block_int8 import AMAX_FLOOR, BLOCK, QuantizedActivations
from .block_int8_triton import encode_rows
from .dispatch import gluon_refusal, use_tma
from .grid import cdiv

# 4 warps on Hopper: two programs a multiprocessor, one at its products while the other is at its exponentials. At
# 32,760 tokens, 12 heads and 512 keys on an H200 260 µs; 320 with 256×64 (8 warps), 288 with 128×128 (8), 284 with
# 64×64, 309 with 128×32, 342 with a third stage. Elsewhere 8 warps, which spill nothing when compiled; not timed.
BLOCK_M, BLOCK_N = 128, 64
SQUARES_ROWS = 4


@triton.jit(do_not_specialize=["row_count"])
def _row_squares_kernel(
    q_ptr,  # [B·L, C]
    out_ptr,  # fp32 [B·L]
    row_count,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = rows < row_count
    squares = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for first in tl.static_range(0, C, COLUMNS):
        columns = first + tl.arange(0, COLUMNS)
        mask = inside[:, None] & (columns < C)[None, :]
        q = tl.load(q_ptr + rows[:, None] * C + columns[None, :], mask=mask, other=0.0).to(tl.float32)
        squares += q * q
    tl.store(out_ptr + rows, tl.sum(squares, axis=1), mask=inside)


@triton.jit
def _norm_keys_kernel(
    k_ptr,  # [B·S, C]
    q_weight_ptr,  # [C]
    k_weight_ptr,  # [C]
    out_ptr,  # [B·S, C]
    eps,
    C: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, COLUMNS)
    inside = columns < C
    k = tl.load(k_ptr + row * C + columns, mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(q_weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    weight *= tl.load(k_weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    k *= tl.rsqrt(tl.sum(k * k, axis=0) / C + eps) * weight
    tl.store(out_ptr + row * C + columns, k.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["length", "key_length", "row_count", "parts"])
def _text_attention_kernel(
    q_ptr,  # [B·L, C], a descriptor where TMA
    k_ptr,  # [B·S, C], a descriptor where TMA
    v_ptr,  # [B·S, C], a descriptor where TMA
    squares_ptr,  # fp32 [parts, B·L]
    repeats_ptr,  # int32 [B]
    out_ptr,  # [B·L, C], int8 codes where QUANTIZE
    out_scale_ptr,  # fp32 [C/128, B·L] where QUANTIZE
    score_scale,
    eps,
    length,
    key_length,
    row_count,
    parts,
    C: tl.constexpr,
    AMAX_MIN: tl.constexpr,
    QUANTIZE: tl.constexpr,
    TMA: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    D: tl.constexpr,
):
    first_token = tl.program_id(0) * BLOCK_M
    head = tl.program_id(1)
    sample = tl.program_id(2)
    tokens = first_token + tl.arange(0, BLOCK_M)
    inside = tokens < length
    rows = sample.to(tl.int64) * length + tl.minimum(tokens, length - 1)
    columns = head * D + tl.arange(0, D)
    if TMA:
        q = q_ptr.load([sample * length + first_token, head * D])
    else:
        q = tl.load(q_ptr + rows[:, None] * C + columns[None, :])
    square = tl.zeros((BLOCK_M,), dtype=tl.float32)
    square_ptrs = squares_ptr + rows
    for _ in range(parts):
        square += tl.load(square_ptrs)
        square_ptrs += row_count
    factor = tl.rsqrt(square / C + eps) * score_scale

    repeats = tl.load(repeats_ptr + sample)
    last = key_length - repeats
    first_key = sample.to(tl.int64) * key_length
    peak = tl.full((BLOCK_M,), -float("inf"), dtype=tl.float32)
    total = tl.zeros((BLOCK_M,), dtype=tl.float32)
    acc = tl.zeros((BLOCK_M, D), dtype=tl.float32)
    for start in range(0, last + 1, BLOCK_N):
        key = start + tl.arange(0, BLOCK_N)
        if TMA:
            k = k_ptr.load([sample * key_length + start, head * D]).T
            v = v_ptr.load([sample * key_length + start, head * D])
        else:
            key_rows = first_key + tl.minimum(key, last)
            k = tl.load(k_ptr + key_rows[None, :] * C + columns[:, None])
            v = tl.load(v_ptr + key_rows[:, None] * C + columns[None, :])
        # Keys after the last are the last one again: they may set the peak, and weigh nothing.
        weight = tl.where(key < last, 1.0, tl.where(key == last, repeats.to(tl.float32), 0.0))
        score = tl.dot(q, k)
        new_peak = tl.maximum(peak, tl.max(score, axis=1) * factor)
        p = tl.exp2(score * factor[:, None] - new_peak[:, None]) * weight[None, :]
        shrink = tl.exp2(peak - new_peak)
        total = total * shrink + tl.sum(p, axis=1)
        acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None])
        peak = new_peak
    acc = acc / total[:, None]

    out_ptrs = out_ptr + rows[:, None] * C + columns[None, :]
    if QUANTIZE:
        amax = tl.maximum(tl.max(tl.abs(acc), axis=1), AMAX_MIN)
        tl.store(out_ptrs, encode_rows(acc, amax), mask=inside[:, None])
        tl.store(out_scale_ptr + head.to(tl.int64) * row_count + rows, amax * (1.0 / 128.0), mask=inside)
    else:
        tl.store(out_ptrs, acc.to(out_ptr.dtype.element_ty), mask=inside[:, None])


def row_squares_triton(q: Tensor) -> Tensor:
    """`text_attention.row_squares_ref` as a kernel."""
    q = q.contiguous()
    rows, width = q.shape[0] * q.shape[1], q.shape[2] * q.shape[3]
    out = torch.empty(1, rows, dtype=torch.float32, device=q.device)
    with torch.cuda.device_of(q):
        _row_squares_kernel[(cdiv(rows, SQUARES_ROWS),)](
            q, out, rows, C=width, ROWS=SQUARES_ROWS, COLUMNS=min(512, triton.next_power_of_2(width)), num_warps=4
        )
    return out


def norm_keys_triton(k: Tensor, q_weight: Tensor, k_weight: Tensor, eps: float) -> Tensor:
    """`text_attention.norm_keys_ref` as a kernel."""
    k = k.contiguous()
    width = k.shape[2] * k.shape[3]
    out = torch.empty_like(k)
    with torch.cuda.device_of(k):
        _norm_keys_kernel[(k.shape[0] * k.shape[1],)](
            k, q_weight, k_weight, out, eps, C=width, COLUMNS=triton.next_power_of_2(width), num_warps=4
        )
    return out


def text_attention_triton(q: Tensor, k: Tensor, v: Tensor, eps: float, repeats: Tensor, squares: Tensor) -> Tensor:
    """`text_attention.text_attention_ref` as a kernel.

    Args:
        repeats: as `text_attention.trailing_repeats` gives it.
        squares: Σ q² of each token in any number of parts, fp32 [parts, B·L].
    """
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    _launch(q, k, v, eps, repeats, squares, out, None)
    return out


def text_attention_quantized_triton(
    q: Tensor, k: Tensor, v: Tensor, eps: float, repeats: Tensor, squares: Tensor
) -> QuantizedActivations:
    """The same kernel writing int8 codes and a scale per row and head."""
    rows, heads = q.shape[0] * q.shape[1], q.shape[2]
    codes = torch.empty(rows, heads * q.shape[3], dtype=torch.int8, device=q.device)
    scale = torch.empty(heads, rows, dtype=torch.float32, device=q.device)
    _launch(q, k, v, eps, repeats, squares, codes, scale)
    return QuantizedActivations(codes, scale)


def _launch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eps: float,
    repeats: Tensor,
    squares: Tensor,
    out: Tensor,
    out_scale: Tensor | None,
) -> None:
    batch, _, heads, dim = q.shape
    if dim != BLOCK or k.shape != (batch, k.shape[1], heads, dim) or v.shape != k.shape:
        raise ValueError(
            f"cross-attention: q, k and v must have {heads} heads of {BLOCK} and the same batch, got {tuple(q.shape)}, "
            f"{tuple(k.shape)} and {tuple(v.shape)}"
        )
    q, k, v = (x.contiguous() for x in (q, k, v))
    if gluon_refusal(q.device, "run_attention_probe") is None:
        from .text_attention_gluon import text_attention_gluon

        text_attention_gluon(q, k, v, eps, repeats, squares, out, out_scale)
    else:
        launch_plain(q, k, v, eps, repeats, squares, out, out_scale)


def launch_plain(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eps: float,
    repeats: Tensor,
    squares: Tensor,
    out: Tensor,
    out_scale: Tensor | None,
) -> None:
    """This module's kernel into `out`, whatever the GPU: 16-bit, or int8 with its `out_scale`."""
    batch, length, heads, dim = q.shape
    keys, width = k.shape[1], heads * dim
    q, k, v = (x.view(-1, width) for x in (q, k, v))
    on_hopper = use_tma(q.device)
    # A block that reached into the next sample would read keys that are not the last one again.
    tma = on_hopper and keys % BLOCK_N == 0
    if tma:
        from triton.tools.tensor_descriptor import TensorDescriptor

        q = TensorDescriptor.from_tensor(q, [BLOCK_M, dim])
        k, v = (TensorDescriptor.from_tensor(x, [BLOCK_N, dim]) for x in (k, v))
    with torch.cuda.device_of(out):
        _text_attention_kernel[(cdiv(length, BLOCK_M), heads, batch)](
            q,
            k,
            v,
            squares,
            repeats,
            out,
            out_scale if out_scale is not None else out,
            math.log2(math.e) / math.sqrt(dim),
            eps,
            length,
            keys,
            batch * length,
            squares.shape[0],
            C=width,
            AMAX_MIN=AMAX_FLOOR,
            QUANTIZE=out_scale is not None,
            TMA=tma,
            BLOCK_M=BLOCK_M,
            BLOCK_N=BLOCK_N,
            D=dim,
            num_warps=4 if on_hopper else 8,
            num_stages=2,
        )
