"""Triton kernels of `norm`: one program per row (norms) or per tile (residual), every edge masked."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .block_int8 import AMAX_FLOOR, QuantizedActivations
from .block_int8 import BLOCK as QUANT_BLOCK
from .norm import Rotation
from .row_codes import LARGEST, RowCodes
from .row_codes_triton import encode

RESIDUAL_ROWS = 16
RESIDUAL_COLUMNS = 256


@triton.jit(do_not_specialize=["length", "row_count"])
def _layer_norm_kernel(
    x_ptr,  # [B·L, C]
    multiplier_ptr,  # fp32 [B or 1, C]
    offset_ptr,  # fp32 [B or 1, C]
    y_ptr,  # [B·L, C], codes where QUANTIZE
    y_scale_ptr,  # fp32 [groups, B·L] where QUANTIZE
    length,
    row_count,
    C,
    multiplier_stride,
    offset_stride,
    eps,
    AMAX_MIN: tl.constexpr,
    QUANTIZE: tl.constexpr,
    LARGEST: tl.constexpr,  # what an amax is mapped to
    GROUPS: tl.constexpr,  # of columns with a scale of their own, in padded C
    BLOCK: tl.constexpr,  # padded C
):
    row = tl.program_id(0).to(tl.int64)
    sample = row // length
    columns = tl.arange(0, BLOCK)
    inside = columns < C
    x = tl.load(x_ptr + row * C + columns, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(x, axis=0) / C
    centred = tl.where(inside, x - mean, 0.0)
    variance = tl.sum(centred * centred, axis=0) / C
    multiplier = tl.load(multiplier_ptr + sample * multiplier_stride + columns, mask=inside, other=0.0)
    offset = tl.load(offset_ptr + sample * offset_stride + columns, mask=inside, other=0.0)
    y = centred * tl.rsqrt(variance + eps) * multiplier + offset
    if QUANTIZE:
        y = tl.reshape(y, (GROUPS, BLOCK // GROUPS))
        amax = tl.maximum(tl.max(tl.abs(y), axis=1), AMAX_MIN)
        group = tl.arange(0, GROUPS)
        scale_ptrs = y_scale_ptr + group.to(tl.int64) * row_count + row
        tl.store(scale_ptrs, amax * (1.0 / LARGEST), mask=group * (BLOCK // GROUPS) < C)
        codes = encode(y, (LARGEST / amax)[:, None], y_ptr.dtype.element_ty)
        tl.store(y_ptr + row * C + columns, tl.reshape(codes, (BLOCK,)), mask=inside)
    else:
        tl.store(y_ptr + row * C + columns, y.to(y_ptr.dtype.element_ty), mask=inside)


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


def _per_sample(vector: Tensor, x: Tensor) -> tuple[Tensor, int]:
    """fp32, contiguous [B or 1, C], and the stride from one sample of x to the next (0 where all share it)."""
    if vector.ndim != 2 or vector.shape[0] not in (1, x.shape[0]) or vector.shape[1] != x.shape[2]:
        raise ValueError(
            f"norm: a vector must be [1 or {x.shape[0]}, {x.shape[2]}] for x {tuple(x.shape)}, "
            f"got {tuple(vector.shape)}"
        )
    return vector.to(torch.float32).contiguous(), vector.shape[1] if vector.shape[0] > 1 else 0


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
    _launch_layer_norm(x, multiplier, offset, eps, codes, scale, group=QUANT_BLOCK)
    return QuantizedActivations(codes, scale)


def layer_norm_rows_triton(x: Tensor, multiplier: Tensor, offset: Tensor, eps: float, dtype: torch.dtype) -> RowCodes:
    """The same kernel writing codes of `dtype` and a scale per row."""
    rows, width = x.shape[0] * x.shape[1], x.shape[2]
    codes = torch.empty(rows, width, dtype=dtype, device=x.device)
    scale = torch.empty(rows, dtype=torch.float32, device=x.device)
    _launch_layer_norm(x, multiplier, offset, eps, codes, scale)
    return RowCodes(codes, scale)


def _launch_layer_norm(
    x: Tensor,
    multiplier: Tensor,
    offset: Tensor,
    eps: float,
    y: Tensor,
    y_scale: Tensor | None = None,
    group: int | None = None,
) -> None:
    """Into y; as codes where there are scales, one for `group` columns or for the whole row."""
    x = x.contiguous()
    batch, length, width = x.shape
    multiplier, multiplier_stride = _per_sample(multiplier, x)
    offset, offset_stride = _per_sample(offset, x)
    block = triton.next_power_of_2(width)
    with torch.cuda.device_of(x):
        _layer_norm_kernel[(batch * length,)](
            x,
            multiplier,
            offset,
            y,
            y_scale if y_scale is not None else y,
            length,
            batch * length,
            width,
            multiplier_stride,
            offset_stride,
            eps,
            AMAX_MIN=AMAX_FLOOR,
            QUANTIZE=y_scale is not None,
            LARGEST=LARGEST.get(y.dtype, 1.0),
            GROUPS=max(1, block // group) if group else 1,
            BLOCK=block,
            num_warps=2 if block <= 2048 else 8,
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
    gate, stride = _per_sample(gate, x)
    out = torch.empty_like(x)
    grid = (triton.cdiv(batch * length, RESIDUAL_ROWS), triton.cdiv(width, RESIDUAL_COLUMNS))
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
