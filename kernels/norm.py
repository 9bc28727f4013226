"""Normalisations with what follows them in a Wan block, and the gated residual. Statistics are fp32.

    layer_norm        (x − mean) / √(var + eps) · multiplier + offset         multiplier = 1 + scale for adaLN
    rms_norm_rope     rotate(x / √(mean x² + eps) · weight)                    over the whole dim, before the heads
    gated_residual    x + y · gate

RoPE rotates interleaved pairs of each head: (a, b) → (a·cos − b·sin, a·sin + b·cos).
Each kernel reads its input once and writes its output once: 4 bytes an element in 16-bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .block_int8 import BLOCK, GatedResidual, QuantizedActivations, quantize_activations_ref
from .dispatch import Kernel
from .row_codes import RowCodes, quantize_rows_ref

NORM = Kernel(name="norms and residuals", last_dim_multiple=16)
NORM_QUANTIZED = Kernel(name="norm with int8 output", last_dim_multiple=BLOCK)
NORM_ROWS = {
    torch.int8: Kernel(name="norm with int8 rows", last_dim_multiple=16),
    torch.float8_e4m3fn: Kernel(name="norm with fp8 rows", last_dim_multiple=16, min_capability=(8, 9)),
}


@dataclass(frozen=True)
class Rotation:
    """RoPE tables, fp32 [L, D/2] each; row l holds the angles of token l, shared by heads and batch."""

    cos: Tensor
    sin: Tensor


def layer_norm_ref(
    x: Tensor, multiplier: Tensor, offset: Tensor, eps: float, dtype: torch.dtype | None = None
) -> Tensor:
    """x [B, L, C]; multiplier and offset [B or 1, C]. Returns `dtype`, x's own if not given."""
    normed = torch.nn.functional.layer_norm(x.to(torch.float32), x.shape[-1:], eps=eps)
    return torch.addcmul(offset.to(torch.float32)[:, None], normed, multiplier.to(torch.float32)[:, None]).to(
        dtype or x.dtype
    )


def rms_norm_rope_ref(x: Tensor, weight: Tensor, eps: float, rotation: Rotation | None) -> Tensor:
    """x [B, L, C] → [B, L, C]; without a rotation it is the norm alone. Returns x's dtype."""
    x32 = x.to(torch.float32)
    normed = x32 * torch.rsqrt(x32.square().mean(dim=-1, keepdim=True) + eps) * weight.to(torch.float32)
    if rotation is not None:
        normed = _rotate(normed, rotation)
    return normed.to(x.dtype)


def gated_residual_ref(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """x, y [B, L, C]; gate [B or 1, C]. Returns x's dtype."""
    return torch.addcmul(x.to(torch.float32), y.to(torch.float32), gate.to(torch.float32)[:, None]).to(x.dtype)


def _rotate(x: Tensor, rotation: Rotation) -> Tensor:
    half = rotation.cos.shape[-1]
    pairs = x.reshape(*x.shape[:2], -1, half, 2)
    a, b = pairs.unbind(-1)
    cos, sin = rotation.cos[:, None], rotation.sin[:, None]
    return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).reshape(x.shape)


def layer_norm(x: Tensor, multiplier: Tensor, offset: Tensor, eps: float, dtype: torch.dtype | None = None) -> Tensor:
    """`layer_norm_ref`, by the kernel where it runs."""
    if NORM.accepts(x):
        from .norm_triton import layer_norm_triton

        return layer_norm_triton(x, multiplier, offset, eps, dtype)
    return layer_norm_ref(x, multiplier, offset, eps, dtype)


def layer_norm_quantized(x: Tensor, multiplier: Tensor, offset: Tensor, eps: float) -> QuantizedActivations:
    """`layer_norm` quantized per row and 128 columns, never written unquantized."""
    if NORM_QUANTIZED.accepts(x):
        from .norm_triton import layer_norm_quantized_triton

        return layer_norm_quantized_triton(x, multiplier, offset, eps)
    return quantize_activations_ref(layer_norm_ref(x, multiplier, offset, eps, torch.float32))


def layer_norm_rows(x: Tensor, multiplier: Tensor, offset: Tensor, eps: float, dtype: torch.dtype) -> RowCodes:
    """`layer_norm` in codes of `dtype` with a scale per row, never written unquantized."""
    if NORM_ROWS[dtype].accepts(x):
        from .norm_triton import layer_norm_rows_triton

        return layer_norm_rows_triton(x, multiplier, offset, eps, dtype)
    return quantize_rows_ref(layer_norm_ref(x, multiplier, offset, eps, torch.float32), dtype)


def rms_norm_rope(x: Tensor, weight: Tensor, eps: float, rotation: Rotation | None = None) -> Tensor:
    """`rms_norm_rope_ref`, by the kernel where it runs."""
    if NORM.accepts(x):
        from .norm_triton import rms_norm_rope_triton

        return rms_norm_rope_triton(x, weight, eps, rotation)
    return rms_norm_rope_ref(x, weight, eps, rotation)


def add_to_residual(residual: GatedResidual, y: Tensor) -> Tensor:
    """`residual.x` plus y [B, L, C], gated where there is a gate; for products that could not do it themselves."""
    return residual.x + y if residual.gate is None else gated_residual(residual.x, y, residual.gate)


def gated_residual(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """`gated_residual_ref`, by the kernel where it runs."""
    if NORM.accepts(x):
        from .norm_triton import gated_residual_triton

        return gated_residual_triton(x, y, gate)
    return gated_residual_ref(x, y, gate)
