"""Queries and keys for SLA: RMS norm and RoPE, and in the same pass what SLA needs of each head.

    y      = rotate(x / √(mean x² + eps) · weight), rounded to x's dtype       as `norm.rms_norm_rope`
    means  = mean of y over blocks of tokens, per head                          routing
    codes  = round(y · 127 / max|y|) per token and head                         queries of sagesla

One read and one write of the tensor, 4 bytes an element in 16-bit and 5 with codes.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .dispatch import Kernel
from .int8_heads import QuantizedHeads, quantize_queries
from .norm import Rotation, rms_norm_rope_ref
from .routing import mean_pool

QK_NORM = Kernel(name="norm of queries and keys", last_dim_multiple=128)


@dataclass(frozen=True)
class PooledHeads:
    """Queries or keys and their means over blocks of tokens.

    Attributes:
        x: [B, L, H, D].
        means: fp32 [B, H, ceil(L/block), D].
        codes: x in int8, for queries of sagesla.
    """

    x: Tensor
    means: Tensor
    codes: QuantizedHeads | None = None


def pooled(x: Tensor, block: int, int8: bool = False) -> PooledHeads:
    """The means, and the codes where `int8`, of finished queries or keys [B, L, H, D]."""
    return PooledHeads(x, mean_pool(x, block), quantize_queries(x) if int8 else None)


def qk_norm_ref(
    x: Tensor, weight: Tensor, eps: float, rotation: Rotation, heads: int, block: int, int8: bool = False
) -> PooledHeads:
    """x [B, L, C], normalised over C, rotated, split into heads and pooled over `block` tokens."""
    return pooled(rms_norm_rope_ref(x, weight, eps, rotation).unflatten(2, (heads, -1)), block, int8)


def qk_norm(
    x: Tensor, weight: Tensor, eps: float, rotation: Rotation, heads: int, block: int, int8: bool = False
) -> PooledHeads:
    """`qk_norm_ref`, by the kernel where it runs."""
    if QK_NORM.accepts(x):
        from .qk_norm_triton import qk_norm_triton

        return qk_norm_triton(x, weight, eps, rotation, heads, block, int8)
    return qk_norm_ref(x, weight, eps, rotation, heads, block, int8)
