"""The network's parameterised layers, each lending its weights through one method.

A fused kernel needs weights, not modules; a host may keep those weights in system memory, patched or quantized.
So every layer has `lend`, a context manager that yields the weights on the right device for the duration of a
call. `TorchOperations` lends plain Parameters; a host passes its own `operations` with the same classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels import block_int8
from ..kernels.block_int8 import BlockInt8, GatedResidual, QuantizedActivations
from ..kernels.norm import gated_residual


@dataclass(frozen=True)
class Lent:
    """Weights on loan: valid inside the `lend` block that yielded them."""

    weight: Tensor | BlockInt8
    bias: Tensor | None = None


class Activation:
    """A layer's input [B, L, C]: the tensor, its int8 codes, or both; the missing one is made when it is asked for.

    Attributes:
        like: a tensor with the activation's device, dtype and [B, L].
    """

    def __init__(self, x: Tensor) -> None:
        self.like = x
        self._x: Tensor | None = x
        self._quantized: dict[int, QuantizedActivations] = {}

    @classmethod
    def of_codes(cls, codes: QuantizedActivations, like: Tensor) -> Activation:
        """Codes with a scale per row and 128 columns, from a kernel that never wrote the tensor itself."""
        activation = cls(like)
        activation._x = None
        activation._quantized[1] = codes
        return activation

    @property
    def x(self) -> Tensor:
        """[B, L, C] in `like`'s dtype."""
        if self._x is None:
            self._x = self._quantized[1].dequantize(self.like.dtype).reshape(*self.like.shape[:-1], -1)
        return self._x

    def quantized(self, rows: int) -> QuantizedActivations:
        """Int8 codes with one scale per `rows` rows and 128 columns, made at most once."""
        if rows not in self._quantized:
            self._quantized[rows] = block_int8.quantize_activations(self.x, rows)
        return self._quantized[rows]


class Lending(nn.Module):
    """A module that owns `weight` and perhaps `bias`."""

    weight: nn.Parameter
    bias: nn.Parameter | None

    @contextmanager
    def lend(self, x: Tensor) -> Iterator[Lent]:
        """Yield weight and bias on x's device and in x's dtype."""
        bias = None if self.bias is None else self.bias.to(x.device, x.dtype)
        yield Lent(self.weight.to(x.device, x.dtype), bias)


class Linear(Lending):
    """y = x Wᵀ + b with a dense or block-int8 weight.

    Attributes:
        activation_rows: rows that share an activation scale where the weight is block-int8: 1, or 128 as published.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.activation_rows = 1
        self.weight = _parameter(out_features, in_features, device=device, dtype=dtype)
        self.register_parameter("bias", _parameter(out_features, device=device, dtype=dtype) if bias else None)
        self.register_buffer("scale", None)

    @contextmanager
    def lend(self, x: Tensor) -> Iterator[Lent]:
        if self.scale is None:
            with super().lend(x) as lent:
                yield lent
        else:
            bias = None if self.bias is None else self.bias.to(x.device, x.dtype)
            yield Lent(BlockInt8(self.weight, self.scale).to(x.device), bias)

    @property
    def is_quantized(self) -> bool:
        """Whether the weight is kept as block-int8."""
        return self.scale is not None

    @property
    def takes_codes(self) -> bool:
        """Whether int8 codes with a scale per row are all this layer needs of its input."""
        return self.is_quantized and self.activation_rows == 1

    def forward(self, x: Tensor | Activation, *, gelu: bool = False, residual: GatedResidual | None = None) -> Tensor:
        """x [..., in_features] → [..., out_features]; `gelu` applies GELU(tanh), then `residual` is added to."""
        activation = x if isinstance(x, Activation) else Activation(x)
        with self.lend(activation.like) as lent:
            return linear(activation, lent, gelu=gelu, rows=self.activation_rows, residual=residual)

    def feed(self, reader: Linear, activation: Activation, *, gelu: bool) -> Activation:
        """`forward` for one reader: written as int8 codes alone where both layers and the kernel allow it."""
        whole_blocks = self.out_features % block_int8.BLOCK == 0
        with self.lend(activation.like) as lent:
            if (
                isinstance(lent.weight, BlockInt8)
                and self.takes_codes
                and reader.takes_codes
                and whole_blocks
                and block_int8.LINEAR.accepts(activation.like)
            ):
                codes = activation.quantized(1)
                out = block_int8.linear_quantized(codes, lent.weight, lent.bias, gelu=gelu, like=activation.like)
                return Activation.of_codes(out, activation.like)
            return Activation(linear(activation, lent, gelu=gelu, rows=self.activation_rows))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        codes = state_dict.pop(prefix + "int8_weight", None)
        if codes is not None:
            state_dict[prefix + "weight"] = codes
            self.weight = nn.Parameter(torch.empty_like(codes, device="meta"), requires_grad=False)
            scale = state_dict.get(prefix + "scale")
            self.scale = torch.empty(0, device="meta") if scale is None else torch.empty_like(scale, device="meta")
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.scale is not None:
            destination[prefix + "int8_weight"] = destination.pop(prefix + "weight")


class RMSNorm(Lending):
    """Holds an RMS norm's weight; `kernels.norm.rms_norm_rope` computes it."""

    def __init__(
        self, dim: int, eps: float, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.eps = eps
        self.weight = _parameter(dim, device=device, dtype=dtype)
        self.register_parameter("bias", None)


class LayerNorm(Lending):
    """Holds an affine layer norm's weight and bias; `kernels.norm.layer_norm` computes it."""

    def __init__(
        self, dim: int, eps: float, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.eps = eps
        self.weight = _parameter(dim, device=device, dtype=dtype)
        self.bias = _parameter(dim, device=device, dtype=dtype)


class PatchEmbedding(Lending):
    """A convolution whose stride is its kernel, as native Wan stores it: weight [dim, in, kt, kh, kw]."""

    def __init__(
        self,
        in_dim: int,
        dim: int,
        patch_size: tuple[int, int, int],
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.weight = _parameter(dim, in_dim, *patch_size, device=device, dtype=dtype)
        self.bias = _parameter(dim, device=device, dtype=dtype)

    def forward(self, patches: Tensor) -> Tensor:
        """patches [B, L, in·kt·kh·kw], columns ordered (c kt kh kw) → [B, L, dim]."""
        with self.lend(patches) as lent:
            return F.linear(patches, lent.weight.flatten(1), lent.bias)


class TorchOperations:
    """The layer classes that a `TurboWan` is built from, on plain torch."""

    Linear = Linear
    RMSNorm = RMSNorm
    LayerNorm = LayerNorm
    PatchEmbedding = PatchEmbedding


def linear(
    activation: Activation, lent: Lent, *, gelu: bool, rows: int, residual: GatedResidual | None = None
) -> Tensor:
    """x Wᵀ + b, then GELU(tanh) and the gated residual if asked; x's shape and dtype, the last dimension replaced.

    Where the block-int8 kernel cannot run, the weight is dequantized for the call and activations stay as they
    are, which is more accurate and faster than emulating the kernel. `rows=128` asks for the published arithmetic
    and gets it everywhere.
    """
    weight, like = lent.weight, activation.like
    if isinstance(weight, BlockInt8):
        if rows == block_int8.BLOCK or block_int8.LINEAR.accepts(like):
            codes = activation.quantized(rows)
            y = block_int8.linear(codes, weight, lent.bias, gelu=gelu, like=like, residual=residual)
            return y.reshape(*like.shape[:-1], y.shape[-1])
        weight = weight.dequantize(like.dtype)
    y = F.linear(activation.x, weight, lent.bias)
    y = F.gelu(y, approximate="tanh") if gelu else y
    if residual is None:
        return y
    return residual.x + y if residual.gate is None else gated_residual(residual.x, y, residual.gate)


def _parameter(*shape: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> nn.Parameter:
    return nn.Parameter(torch.empty(*shape, device=device, dtype=dtype), requires_grad=False)
