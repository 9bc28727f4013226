"""The block's norms, each in the form that the layers behind it read: a tensor, or 8-bit codes alone."""

from __future__ import annotations

from torch import Tensor

from ..kernels.norm import (
    NORM_QUANTIZED,
    NORM_ROWS,
    Rotation,
    layer_norm,
    layer_norm_quantized,
    layer_norm_rows,
    rms_norm_rope,
)
from .layers import BLOCK_CODES, ROW_LINEARS, Activation, LayerNorm, Linear, RMSNorm


def rms_norm(norm: RMSNorm, x: Tensor, rotation: Rotation | None = None) -> Tensor:
    """RMS norm of queries or keys [B, L, C], then RoPE where there are tables."""
    with norm.lend(x) as lent:
        return rms_norm_rope(x, lent.weight, norm.eps, rotation)


def modulated_layer_norm(
    x: Tensor, multiplier: Tensor, offset: Tensor, eps: float, readers: tuple[Linear, ...]
) -> Activation:
    """Layer norm · multiplier + offset for the layers that read it: as codes alone where that is all they need."""
    formats = {reader.takes for reader in readers}
    taken = formats.pop() if len(formats) == 1 else None
    if taken == BLOCK_CODES and NORM_QUANTIZED.accepts(x):
        return Activation.of_codes(layer_norm_quantized(x, multiplier, offset, eps), x)
    if taken in ROW_LINEARS and NORM_ROWS[taken].accepts(x) and ROW_LINEARS[taken].LINEAR.accepts(x):
        return Activation.of_codes(layer_norm_rows(x, multiplier, offset, eps, taken), x)
    return Activation(layer_norm(x, multiplier, offset, eps))


def affine_layer_norm(norm: LayerNorm, x: Tensor, readers: tuple[Linear, ...]) -> Activation:
    """The same with a layer's own weight and bias."""
    with norm.lend(x) as lent:
        return modulated_layer_norm(x, lent.weight[None], lent.bias[None], norm.eps, readers)
