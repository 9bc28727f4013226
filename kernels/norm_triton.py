"""Triton kernels of `norm`: programs of one or a few rows (norms) or of a tile (residual), every edge masked."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .block_int8 import AMAX_FLOOR, QuantizedActivations
from .block_int8 import BLOCK as QUANT_BLOCK
from .grid import cdiv
from .norm import Rotation
from .row_codes import LARGEST, RowCodes
from .row_codes_triton import encode

# (rows, warps) of a layer norm's program; 512 columns are what 4 warps cover at 4 a thread.
LAYER_NORM_PIECE = 512
LAYER_NORM_NARROW, LAYER_NORM_WIDE = (4, 4), (2, 4)
LAYER_NORM_WIDE_FROM = 2048
RESIDUAL_ROWS = 16
RESIDUAL_COLUMNS = 256


@triton.jit
def _columns(FIRST: tl.constexpr, PIECES: tl.constexpr, PIECE: tl.constexpr):
    """Column numbers [PIECES, PIECE] from FIRST on.

    Contiguity is given as 4 so that 16-bit x, fp32 vectors and int8 codes all get the same layout, 4 columns a thread:
    with 8, 4 and 16, as the compiler would choose, every value crosses shared memory on its way.
    """
    inner = tl.max_contiguous(tl.arange(0, PIECE), 4)
    return FIRST + tl.arange(0, PIECES)[:, None] * PIECE + inner[None, :]


@triton.jit
def _load_pieces(x_ptr, rows, present, C: tl.constexpr, FIRST: tl.constexpr, PIECES: tl.constexpr, PIECE: tl.constexpr):
    """fp32 [ROWS, PIECES, PIECE]; absent rows and columns are 0."""
    columns = _columns(FIRST, PIECES, PIECE)
    inside = present[:, None, None]
    if FIRST + PIECES * PIECE > C:
        inside = inside & (columns < C)[None]
    return tl.load(x_ptr + rows[:, None, None] * C + columns[None], mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _centre(x, mean, C: tl.constexpr, FIRST: tl.constexpr, PIECES: tl.constexpr, PIECE: tl.constexpr):
    centred = x - mean[:, None, None]
    if FIRST + PIECES * PIECE > C:
        centred = tl.where((_columns(FIRST, PIECES, PIECE) < C)[None], centred, 0.0)
    return centred


@triton.jit
def _affine(
    normed, multiplier_ptr, offset_ptr, C: tl.constexpr, FIRST: tl.constexpr, PIECES: tl.constexpr, PIECE: tl.constexpr
):
    """Times multiplier plus offset; absent columns become 0."""
    columns = _columns(FIRST, PIECES, PIECE)
    multiplier = tl.load(multiplier_ptr + columns, mask=columns < C, other=0.0).to(tl.float32)
    offset = tl.load(offset_ptr + columns, mask=columns < C, other=0.0).to(tl.float32)
    return normed * multiplier[None] + offset[None]


@triton.jit
def _store_pieces(
    y_ptr, y, rows, present, C: tl.constexpr, FIRST: tl.constexpr, PIECES: tl.constexpr, PIECE: tl.constexpr
):
    columns = _columns(FIRST, PIECES, PIECE)
    inside = present[:, None, None]
    if FIRST + PIECES * PIECE > C:
        inside = inside & (columns < C)[None]
    tl.store(y_ptr + rows[:, None, None] * C + columns[None], y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _store_groups(
    y_ptr,
    y_scale_ptr,
    y,
    rows,
    present,
    row_count,
    AMAX_MIN: tl.constexpr,
    LARGEST: tl.constexpr,
    GROUP: tl.constexpr,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    FIRST: tl.constexpr,
    PIECES: tl.constexpr,
    PIECE: tl.constexpr,
):
    """Codes with a scale for each GROUP columns."""
    GROUPS: tl.constexpr = PIECES * PIECE // GROUP
    y = tl.reshape(y, (ROWS * GROUPS, GROUP))
    amax = tl.maximum(tl.max(tl.abs(y), axis=1), AMAX_MIN)
    codes = encode(y, (LARGEST / amax)[:, None], y_ptr.dtype.element_ty)
    _store_pieces(y_ptr, tl.reshape(codes, (ROWS, PIECES, PIECE)), rows, present, C, FIRST, PIECES, PIECE)
    group = FIRST // GROUP + tl.arange(0, GROUPS)
    scale_ptrs = y_scale_ptr + group.to(tl.int64)[None, :] * row_count + rows[:, None]
    scale = tl.reshape(amax * (1.0 / LARGEST), (ROWS, GROUPS))
    tl.store(scale_ptrs, scale, mask=present[:, None] & (group * GROUP < C)[None, :])


@triton.jit(do_not_specialize=["length", "row_count"])
def _layer_norm_kernel(
    x_ptr,  # [B·L, C]
    multiplier_ptr,  # [B or 1, C]
    offset_ptr,  # [B or 1, C]
    y_ptr,  # [B·L, C], codes where QUANTIZE
    y_scale_ptr,  # fp32 [groups, B·L] where QUANTIZE
    length,
    row_count,
    multiplier_stride,
    offset_stride,
    eps,
    AMAX_MIN: tl.constexpr,
    QUANTIZE: tl.constexpr,
    LARGEST: tl.constexpr,  # what an amax is mapped to
    GROUP: tl.constexpr,  # columns with a scale of their own; 0 for a scale per row
    C: tl.constexpr,
    ROWS: tl.constexpr,
    HEAD: tl.constexpr,
    TAIL: tl.constexpr,
    PIECE: tl.constexpr,
):
    sample = tl.program_id(1).to(tl.int64)
    tokens = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    present = tokens < length
    rows = sample * length + tokens
    multiplier_ptr += sample * multiplier_stride
    offset_ptr += sample * offset_stride
    # A row is HEAD + TAIL pieces, each a power of two: 1536 and 5120 columns fill both without a padded column.
    head = _load_pieces(x_ptr, rows, present, C, 0, HEAD, PIECE)
    total = tl.sum(head, axis=1)
    if TAIL:
        tail = _load_pieces(x_ptr, rows, present, C, HEAD * PIECE, TAIL, PIECE)
        total += tl.sum(tail, axis=1)
    mean = tl.sum(total, axis=1) / C
    head = _centre(head, mean, C, 0, HEAD, PIECE)
    squares = tl.sum(head * head, axis=1)
    if TAIL:
        tail = _centre(tail, mean, C, HEAD * PIECE, TAIL, PIECE)
        squares += tl.sum(tail * tail, axis=1)
    factor = tl.rsqrt(tl.sum(squares, axis=1) / C + eps)[:, None, None]
    head = _affine(head * factor, multiplier_ptr, offset_ptr, C, 0, HEAD, PIECE)
    if TAIL:
        tail = _affine(tail * factor, multiplier_ptr, offset_ptr, C, HEAD * PIECE, TAIL, PIECE)

    if QUANTIZE and GROUP:
        _store_groups(
            y_ptr, y_scale_ptr, head, rows, present, row_count, AMAX_MIN, LARGEST, GROUP, C, ROWS, 0, HEAD, PIECE
        )
        if TAIL:
            _store_groups(
                y_ptr,
                y_scale_ptr,
                tail,
                rows,
                present,
                row_count,
                AMAX_MIN,
                LARGEST,
                GROUP,
                C,
                ROWS,
                HEAD * PIECE,
                TAIL,
                PIECE,
            )
    else:
        if QUANTIZE:
            amax = tl.max(tl.abs(head), axis=1)
            if TAIL:
                amax = tl.maximum(amax, tl.max(tl.abs(tail), axis=1))
            amax = tl.maximum(tl.max(amax, axis=1), AMAX_MIN)
            tl.store(y_scale_ptr + rows, amax * (1.0 / LARGEST), mask=present)
            scaling = (LARGEST / amax)[:, None, None]
            head = encode(head, scaling, y_ptr.dtype.element_ty)
            if TAIL:
                tail = encode(tail, scaling, y_ptr.dtype.element_ty)
        _store_pieces(y_ptr, head, rows, present, C, 0, HEAD, PIECE)
        if TAIL:
            _store_pieces(y_ptr, tail, rows, present, C, HEAD * PIECE, TAIL, PIECE)


@triton.jit(do_not_specialize=["length"])
def _rms_norm_rope_kernel(
    x_ptr,  # [B·L, C]
    weight_ptr,  # fp32 [C]
    cos_ptr,  # fp32 [L, HALF]
    sin_ptr,  # fp32 [L, HALF]
    y_ptr,  # [B·L, C]
    length,
    C,
    eps,
    ROPE: tl.constexpr,
    HALF: tl.constexpr,
    PAIRS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    token = row % length
    columns = tl.arange(0, 2 * PAIRS)
    inside = columns < C
    x = tl.load(x_ptr + row * C + columns, mask=inside, other=0.0).to(tl.float32)
    norm = tl.rsqrt(tl.sum(x * x, axis=0) / C + eps)
    y = x * norm * tl.load(weight_ptr + columns, mask=inside, other=0.0)
    if ROPE:
        a, b = tl.split(tl.reshape(y, (PAIRS, 2)))
        angle = token * HALF + tl.arange(0, PAIRS) % HALF
        cos = tl.load(cos_ptr + angle)
        sin = tl.load(sin_ptr + angle)
        y = tl.interleave(a * cos - b * sin, a * sin + b * cos)
    tl.store(y_ptr + row * C + columns, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["length", "row_count"])
def _gated_residual_kernel(
    x_ptr,  # [B·L, C]
    y_ptr,  # [B·L, C]
    gate_ptr,  # fp32 [B or 1, C]
    out_ptr,  # [B·L, C]
    length,
    row_count,
    C,
    sample_stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (rows < row_count)[:, None] & (columns < C)[None, :]
    offsets = rows[:, None] * C + columns[None, :]
    x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(y_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + (rows // length)[:, None] * sample_stride + columns[None, :], mask=inside, other=0.0)
    tl.store(out_ptr + offsets, (x + y * gate).to(out_ptr.dtype.element_ty), mask=inside)


def per_sample(vector: Tensor, x: Tensor) -> tuple[Tensor, int]:
    """The vector with contiguous rows, and the stride from one sample of x to the next (0 where all share it)."""
    if vector.ndim != 2 or vector.shape[0] not in (1, x.shape[0]) or vector.shape[1] != x.shape[2]:
        raise ValueError(
            f"norm: a vector must be [1 or {x.shape[0]}, {x.shape[2]}] for x {tuple(x.shape)}, "
            f"got {tuple(vector.shape)}"
        )
    vector = vector if vector.stride(1) == 1 else vector.contiguous()
    return vector, vector.stride(0) if vector.shape[0] > 1 else 0


def layer_norm_triton(
    x: Tensor, multiplier: Tensor, offset: Tensor, eps: float, dtype: torch.dtype | None = None
) -> Tensor:
    """`norm.layer_norm_ref` as a kernel."""
    y = torch.empty(x.shape, dtype=dtype or x.dtype, device=x.device)
    _launch_layer_norm(x, multiplier, offset, eps, y)
    return y


def layer_norm_quantized_triton(x: Tensor, multiplier: Tensor, offset: Tensor, eps: float) -> QuantizedActivations:
    """The same kernel writing int8 codes and a scale per row and 128 columns."""
    rows, width = x.shape[0] * x.shape[1], x.shape[2]
    codes = torch.empty(rows, width, dtype=torch.int8, device=x.device)
    scale = torch.empty(width // QUANT_BLOCK, rows, dtype=torch.float32, device=x.device)
    _launch_layer_norm(x, multiplier, offset, eps, codes, scale, QUANT_BLOCK)
    return QuantizedActivations(codes, scale)


def layer_norm_rows_triton(x: Tensor, multiplier: Tensor, offset: Tensor, eps: float, dtype: torch.dtype) -> RowCodes:
    """The same kernel writing codes of `dtype` and a scale per row."""
    rows, width = x.shape[0] * x.shape[1], x.shape[2]
    codes = torch.empty(rows, width, dtype=dtype, device=x.device)
    scale = torch.empty(rows, dtype=torch.float32, device=x.device)
    _launch_layer_norm(x, multiplier, offset, eps, codes, scale, group=0)
    return RowCodes(codes, scale)


def _launch_layer_norm(
    x: Tensor,
    multiplier: Tensor,
    offset: Tensor,
    eps: float,
    y: Tensor,
    y_scale: Tensor | None = None,
    group: int = 0,
) -> None:
    """Into y; as codes where there are scales, one for `group` columns or, with 0, for the whole row."""
    x = x.contiguous()
    batch, length, width = x.shape
    multiplier, multiplier_stride = per_sample(multiplier, x)
    offset, offset_stride = per_sample(offset, x)
    piece = min(LAYER_NORM_PIECE, triton.next_power_of_2(width))
    pieces = cdiv(width, piece)
    head = 1 << (pieces.bit_length() - 1)
    rows, warps = LAYER_NORM_WIDE if width > LAYER_NORM_WIDE_FROM else LAYER_NORM_NARROW
    with torch.cuda.device_of(x):
        _layer_norm_kernel[(cdiv(length, rows), batch)](
            x,
            multiplier,
            offset,
            y,
            y_scale if y_scale is not None else y,
            length,
            batch * length,
            multiplier_stride,
            offset_stride,
            eps,
            AMAX_MIN=AMAX_FLOOR,
            QUANTIZE=y_scale is not None,
            LARGEST=LARGEST.get(y.dtype, 1.0),
            GROUP=group,
            C=width,
            ROWS=rows,
            HEAD=head,
            TAIL=triton.next_power_of_2(pieces - head) if pieces > head else 0,
            PIECE=piece,
            num_warps=warps,
        )


def rms_norm_rope_triton(x: Tensor, weight: Tensor, eps: float, rotation: Rotation | None) -> Tensor:
    """`norm.rms_norm_rope_ref` as a kernel."""
    x = x.contiguous()
    batch, length, width = x.shape
    y = torch.empty_like(x)
    block = triton.next_power_of_2(width)
    with torch.cuda.device_of(x):
        _rms_norm_rope_kernel[(batch * length,)](
            x,
            weight.to(torch.float32),
            rotation.cos if rotation else y,
            rotation.sin if rotation else y,
            y,
            length,
            width,
            eps,
            ROPE=rotation is not None,
            HALF=rotation.cos.shape[-1] if rotation else 1,
            PAIRS=block // 2,
            num_warps=2 if block <= 2048 else 8,
        )
    return y


def gated_residual_triton(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """`norm.gated_residual_ref` as a kernel."""
    x, y = x.contiguous(), y.contiguous()
    batch, length, width = x.shape
    gate, stride = per_sample(gate, x)
    out = torch.empty_like(x)
    grid = (cdiv(batch * length, RESIDUAL_ROWS), cdiv(width, RESIDUAL_COLUMNS))
    with torch.cuda.device_of(x):
        _gated_residual_kernel[grid](
            x,
            y,
            gate,
            out,
            length,
            batch * length,
            width,
            stride,
            ROWS=RESIDUAL_ROWS,
            COLUMNS=RESIDUAL_COLUMNS,
            num_warps=4,
        )
    return out
