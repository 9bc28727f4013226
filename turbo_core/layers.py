"""The network's parameterised layers, each lending its weights through one method.

A fused kernel needs weights, not modules; a host may keep those weights in system memory, patched or quantized.
So every layer has `lend`, a context manager that yields the weights on the right device for the duration of a
call. `TorchOperations` lends plain Parameters; a host passes its own `operations` with the same classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels import block_int8, channel_fp8, channel_int8
from ..kernels.block_int8 import BlockInt8, GatedResidual, QuantizedActivations
from ..kernels.norm import add_to_residual
from ..kernels.row_codes import RowCodes, quantize_rows

BLOCK_CODES = "block"  # int8 codes with a scale per row and 128 columns; other codes are named by their dtype
ROW_LINEARS = {torch.int8: channel_int8, torch.float8_e4m3fn: channel_fp8}  # a scale per row of both operands
ROWS_MULTIPLE = channel_int8.COLUMNS_MULTIPLE  # of input columns, for either
TOGETHER_BYTES = 16 * 2**20  # of weights that are copied below each other for one product
CODES_NAMES = {torch.int8: "int8_weight", torch.float8_e4m3fn: "fp8_weight"}  # of weights kept as codes

CodesFormat = Literal["block"] | torch.dtype


@dataclass(frozen=True)
class Lent:
    """Weights on loan: valid inside the `lend` block that yielded them."""

    weight: Tensor | BlockInt8 | RowCodes
    bias: Tensor | None = None


class Activation:
    """A layer's input [B, L, C]: the tensor, its 8-bit codes, or both; the missing one is made when it is asked for.

    Attributes:
        like: a tensor with the activation's device, dtype and [B, L].
    """

    def __init__(self, x: Tensor) -> None:
        self.like = x
        self._x: Tensor | None = x
        self._quantized: dict[int, QuantizedActivations] = {}
        self._rows: dict[torch.dtype, RowCodes] = {}

    @classmethod
    def of_codes(cls, codes: QuantizedActivations | RowCodes, like: Tensor) -> Activation:
        """Codes from a kernel that never wrote the tensor itself: a scale per row, with 128 columns or with all."""
        activation = cls(like)
        activation._x = None
        if isinstance(codes, RowCodes):
            activation._rows[codes.dtype] = codes
        else:
            activation._quantized[1] = codes
        return activation

    @property
    def x(self) -> Tensor:
        """[B, L, C] in `like`'s dtype."""
        if self._x is None:
            codes = self._quantized.get(1) or next(iter(self._rows.values()))
            self._x = codes.dequantize(self.like.dtype).reshape(*self.like.shape[:-1], -1)
        return self._x

    def quantized(self, rows: int) -> QuantizedActivations:
        """Int8 codes with one scale per `rows` rows and 128 columns, made at most once."""
        if rows not in self._quantized:
            self._quantized[rows] = block_int8.quantize_activations(self.x, rows)
        return self._quantized[rows]

    def rows(self, dtype: torch.dtype) -> RowCodes:
        """Codes of `dtype` with one scale per row, made at most once."""
        if dtype not in self._rows:
            self._rows[dtype] = quantize_rows(self.x, dtype)
        return self._rows[dtype]


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
    """y = x Wᵀ + b with a dense weight or one in codes: block-int8, or int8 or e4m3 with a scale per output channel.

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
        scale, bias = self.scale, self.bias  # asked for once: a module's tensors are behind its slow `__getattr__`
        if scale is None:
            with super().lend(x) as lent:
                yield lent
        else:
            codes = BlockInt8 if scale.ndim == 2 else RowCodes
            yield Lent(codes(self.weight, scale).to(x.device), None if bias is None else bias.to(x.device, x.dtype))

    @property
    def codes_format(self) -> CodesFormat | None:
        """How the weight is kept: `BLOCK_CODES`, a dtype of codes with a scale per output channel, or None if dense."""
        scale = self.scale
        if scale is None:
            return None
        return BLOCK_CODES if scale.ndim == 2 else self.weight.dtype

    @property
    def replaced(self) -> bool:
        """Whether a host put a forward of its own in front (ComfyUI's LoRA in bypass mode): it takes a tensor alone."""
        return getattr(self.forward, "__func__", None) is not type(self).forward

    @property
    def takes(self) -> CodesFormat | None:
        """The codes that are all this layer needs of its input, one scale a row; None if it needs the tensor."""
        if self.replaced:
            return None
        codes = self.codes_format
        if codes == BLOCK_CODES:
            return BLOCK_CODES if self.activation_rows == 1 else None
        return codes if self.in_features % ROWS_MULTIPLE == 0 else None

    def __call__(self, x: Tensor | Activation, *, gelu: bool = False, residual: GatedResidual | None = None) -> Tensor:
        """`forward`, or what replaced it, with GELU and residual behind it."""
        if not self.replaced:
            return super().__call__(x, gelu=gelu, residual=residual)
        return _finished(super().__call__(x.x if isinstance(x, Activation) else x), gelu, residual)

    def forward(self, x: Tensor | Activation, *, gelu: bool = False, residual: GatedResidual | None = None) -> Tensor:
        """x [..., in_features] → [..., out_features]; `gelu` applies GELU(tanh), then `residual` is added to."""
        activation = x if isinstance(x, Activation) else Activation(x)
        with self.lend(activation.like) as lent:
            return linear(activation, lent, gelu=gelu, rows=self.activation_rows, residual=residual)

    def forward_with_squares(self, x: Activation) -> tuple[Tensor, Tensor | None]:
        """`forward`, and Σ y² of its rows in parts, fp32 [parts, B·L], where the product leaves them."""
        if self.replaced:
            return self(x), None
        like = x.like
        with self.lend(like) as lent:
            if isinstance(lent.weight, BlockInt8) and block_int8.LINEAR.accepts(like):
                codes = x.quantized(self.activation_rows)
                y, squares = block_int8.linear_with_squares(codes, lent.weight, lent.bias, like=like)
                return y.reshape(*like.shape[:-1], -1), squares
            return linear(x, lent, gelu=False, rows=self.activation_rows), None

    def feed(self, reader: Linear, activation: Activation, *, gelu: bool) -> Activation:
        """`forward` for one reader: kept as codes alone where both layers and the kernel allow it."""
        if self.replaced:
            return Activation(self(activation, gelu=gelu))
        like, taken = activation.like, reader.takes
        whole_blocks = self.out_features % block_int8.BLOCK == 0
        with self.lend(like) as lent:
            if (
                isinstance(lent.weight, BlockInt8)
                and self.takes == taken == BLOCK_CODES
                and whole_blocks
                and block_int8.LINEAR.accepts(like)
            ):
                codes = activation.quantized(1)
                out = block_int8.linear_quantized(codes, lent.weight, lent.bias, gelu=gelu, like=like)
                return Activation.of_codes(out, like)
            if taken in ROW_LINEARS and ROW_LINEARS[taken].LINEAR.accepts(like):
                # A row's scale needs the whole row, which no tile of the GEMM sees; GELU costs that pass nothing.
                y = linear(activation, lent, gelu=False, rows=self.activation_rows)
                return Activation.of_codes(quantize_rows(y, taken, gelu=gelu), like)
            return Activation(linear(activation, lent, gelu=gelu, rows=self.activation_rows))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        codes = pop_codes(state_dict, prefix)
        if codes is not None:
            state_dict[prefix + "weight"] = codes
            self.weight = nn.Parameter(torch.empty_like(codes, device="meta"), requires_grad=False)
            scale = state_dict.get(prefix + "scale")
            self.scale = torch.empty(0, device="meta") if scale is None else torch.empty_like(scale, device="meta")
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.scale is not None:
            destination[prefix + CODES_NAMES[self.weight.dtype]] = destination.pop(prefix + "weight")


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

    Where the kernel for a weight's codes cannot run, the weight is dequantized for the call and activations stay as
    they are, which is more accurate and faster than emulating the kernel. `rows=128` asks for the published
    arithmetic of block-int8 and gets it everywhere.
    """
    weight, like = lent.weight, activation.like
    if isinstance(weight, BlockInt8):
        if rows == block_int8.BLOCK or block_int8.LINEAR.accepts(like):
            codes = activation.quantized(rows)
            y = block_int8.linear(codes, weight, lent.bias, gelu=gelu, like=like, residual=residual)
            return y.reshape(*like.shape[:-1], y.shape[-1])
        weight = weight.dequantize(like.dtype)
    elif isinstance(weight, RowCodes):
        backend = ROW_LINEARS[weight.dtype]
        if weight.shape[1] % ROWS_MULTIPLE == 0 and backend.LINEAR.accepts(like):
            codes = activation.rows(weight.dtype)
            y = backend.linear(codes, weight, lent.bias, gelu=gelu, like=like, residual=residual)
            return y.reshape(*like.shape[:-1], y.shape[-1])
        weight = weight.dequantize(like.dtype)
    return _finished(F.linear(activation.x, weight, lent.bias), gelu, residual)


def _finished(y: Tensor, gelu: bool, residual: GatedResidual | None) -> Tensor:
    y = F.gelu(y, approximate="tanh") if gelu else y
    return y if residual is None else add_to_residual(residual, y)


def linear_together(layers: Sequence[Linear], activation: Activation) -> tuple[Tensor, ...]:
    """Outputs [B, L, out] of layers that read one input; of small block-int8 layers as slices of one product.

    A product of N = 4608 leaves fewer multiprocessors idle at its end than three of 1536. The weights are copied below
    each other for it, so that there is nothing to gain where they are large.
    """
    like = activation.like
    if (
        all(layer.takes == BLOCK_CODES and layer.out_features % block_int8.BLOCK == 0 for layer in layers)
        and sum(layer.in_features * layer.out_features for layer in layers) <= TOGETHER_BYTES
        and block_int8.LINEAR.accepts(like)
    ):
        return _one_product(layers, activation)
    return tuple(layer(activation) for layer in layers)


def _one_product(layers: Sequence[Linear], activation: Activation) -> tuple[Tensor, ...]:
    """Weights and biases below each other, each copied during its own loan: a host may lend every second layer the same
    memory. One that it lends dense (a LoRA on a streamed layer) multiplies by itself, during that loan too."""
    like, columns = activation.like, layers[0].in_features
    rows = sum(layer.out_features for layer in layers)
    codes = torch.empty(rows, columns, dtype=torch.int8, device=like.device)
    scale = torch.empty(rows // block_int8.BLOCK, columns // block_int8.BLOCK, dtype=torch.float32, device=like.device)
    bias = torch.empty(rows, dtype=like.dtype, device=like.device)
    alone: dict[Linear, Tensor] = {}
    first = 0
    for layer in layers:
        last = first + layer.out_features
        with layer.lend(like) as lent:
            if not isinstance(lent.weight, BlockInt8) or lent.bias is None:
                alone[layer] = linear(activation, lent, gelu=False, rows=1)
                continue
            codes[first:last] = lent.weight.codes
            scale[first // block_int8.BLOCK : last // block_int8.BLOCK] = lent.weight.scale
            bias[first:last] = lent.bias
        first = last
    widths = [layer.out_features for layer in layers if layer not in alone]
    if not widths:
        return tuple(alone.values())
    weight = BlockInt8(codes[:first], scale[: first // block_int8.BLOCK])
    y = block_int8.linear(activation.quantized(1), weight, bias[:first], gelu=False, like=like)
    parts = iter(y.reshape(*like.shape[:-1], -1).split(widths, dim=-1))
    return tuple(alone[layer] if layer in alone else next(parts) for layer in layers)


def pop_codes(state_dict: dict[str, Any], prefix: str) -> Tensor | None:
    """Take a layer's weight in codes out of a state dict; None if it is not there or dense."""
    return next((state_dict.pop(prefix + name) for name in CODES_NAMES.values() if prefix + name in state_dict), None)


def _parameter(*shape: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> nn.Parameter:
    return nn.Parameter(torch.empty(*shape, device=device, dtype=dtype), requires_grad=False)
