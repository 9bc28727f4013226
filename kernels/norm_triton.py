"""Triton kernels of `norm`: one program per row (norms) or per tile (residual), every edge masked."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .norm import Rotation

RESIDUAL_ROWS = 16
RESIDUAL_COLUMNS = 256


@triton.jit(do_not_specialize=["length"])
def _layer_norm_kernel(
    x_ptr,  # [B·L, C]
    multiplier_ptr,  # fp32 [B or 1, C]
    offset_ptr,  # fp32 [B or 1, C]
    y_ptr,  # [B·L, C]
    length,
    C,
    sample_stride,
    eps,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    sample = row // length
    columns = tl.arange(0, BLOCK)
    inside = columns < C
    x = tl.load(x_ptr + row * C + columns, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(x, axis=0) / C
    centred = tl.where(inside, x - mean, 0.0)
    variance = tl.sum(centred * centred, axis=0) / C
    multiplier = tl.load(multiplier_ptr + sample * sample_stride + columns, mask=inside, other=0.0)
    offset = tl.load(offset_ptr + sample * sample_stride + columns, mask=inside, other=0.0)
    y = centred * tl.rsqrt(variance + eps) * multiplier + offset
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
    pair = tl.arange(0, PAIRS)
    inside = 2 * pair < C
    even = row * C + 2 * pair
    a = tl.load(x_ptr + even, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(x_ptr + even + 1, mask=inside, other=0.0).to(tl.float32)
    norm = tl.rsqrt(tl.sum(a * a + b * b, axis=0) / C + eps)
    a = a * norm * tl.load(weight_ptr + 2 * pair, mask=inside, other=0.0)
    b = b * norm * tl.load(weight_ptr + 2 * pair + 1, mask=inside, other=0.0)
    if ROPE:
        angle = token * HALF + pair % HALF
        cos = tl.load(cos_ptr + angle, mask=inside, other=0.0)
        sin = tl.load(sin_ptr + angle, mask=inside, other=0.0)
        rotated_a = a * cos - b * sin
        b = a * sin + b * cos
        a = rotated_a
    tl.store(y_ptr + even, a.to(y_ptr.dtype.element_ty), mask=inside)
    tl.store(y_ptr + even + 1, b.to(y_ptr.dtype.element_ty), mask=inside)


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


def _per_sample(vector: Tensor) -> tuple[Tensor, int]:
    """fp32, contiguous [B or 1, C], and the stride from one sample to the next (0 where all share it)."""
    vector = vector.to(torch.float32).contiguous()
    return vector, vector.shape[1] if vector.shape[0] > 1 else 0


def layer_norm_triton(x: Tensor, multiplier: Tensor, offset: Tensor, eps: float) -> Tensor:
    """`norm.layer_norm_ref` as a kernel."""
    x = x.contiguous()
    batch, length, width = x.shape
    multiplier, stride = _per_sample(multiplier)
    offset, _ = _per_sample(offset)
    y = torch.empty_like(x)
    block = triton.next_power_of_2(width)
    _layer_norm_kernel[(batch * length,)](
        x, multiplier, offset, y, length, width, stride, eps, BLOCK=block, num_warps=4 if block <= 2048 else 8
    )
    return y


def rms_norm_rope_triton(x: Tensor, weight: Tensor, eps: float, rotation: Rotation | None) -> Tensor:
    """`norm.rms_norm_rope_ref` as a kernel."""
    x = x.contiguous()
    batch, length, width = x.shape
    y = torch.empty_like(x)
    block = triton.next_power_of_2(width)
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
        num_warps=4 if block <= 2048 else 8,
    )
    return y


def gated_residual_triton(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """`norm.gated_residual_ref` as a kernel."""
    x, y = x.contiguous(), y.contiguous()
    batch, length, width = x.shape
    gate, stride = _per_sample(gate)
    out = torch.empty_like(x)
    grid = (triton.cdiv(batch * length, RESIDUAL_ROWS), triton.cdiv(width, RESIDUAL_COLUMNS))
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
