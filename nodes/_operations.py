"""Layers whose weights ComfyUI manages: streamed from system memory, LoRA-patched, quantized.

The core asks every layer for its weights through `lend`; here that goes through the host's cast-and-stream
functions, and a quantized weight is one Parameter holding the host's QuantizedTensor (see `_layout`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import comfy.model_management
import comfy.ops
import comfy.utils
from comfy_kitchen.tensor import QuantizedTensor
from torch import Tensor, nn

from ..turbo_core import layers
from ..turbo_core.errors import SettingsError
from ..turbo_core.layers import BLOCK_CODES, CodesFormat, Lent, TorchOperations
from . import _layout

_CAST_OPTIONS = frozenset(inspect.signature(comfy.ops.cast_bias_weight).parameters)


def is_interrupted() -> bool:
    """Whether the user cancelled."""
    return comfy.model_management.processing_interrupted()


def throw_if_interrupted() -> None:
    """Raise the host's interruption if the user cancelled."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def progress_bar() -> Callable[[int, int], None]:
    """Reports (done, in all) to the host's progress bar, which learns its total from the first report."""
    bar = None

    def report(done: int, total: int) -> None:
        nonlocal bar
        if bar is None:
            bar = comfy.utils.ProgressBar(total)
        bar.update_absolute(done, total)

    return report


class _Hosted(comfy.ops.CastWeightBiasOp):
    """Lends weights through the host; mixed in before one of the core's layers."""

    @contextmanager
    def lend(self, x: Tensor) -> Iterator[Lent]:
        throw_if_interrupted()
        own = self.weight
        quantized = isinstance(own, QuantizedTensor)
        options = {"compute_dtype": x.dtype, "want_requant": quantized}
        weight, bias, loan = comfy.ops.cast_bias_weight(
            self,
            dtype=own.dtype if quantized else x.dtype,
            device=x.device,
            bias_dtype=x.dtype,
            offloadable=True,
            **{name: value for name, value in options.items() if name in _CAST_OPTIONS},
        )
        try:
            if isinstance(weight, QuantizedTensor):
                yield Lent(_layout.unwrap(weight), bias)
            else:
                yield Lent(weight.to(x.dtype), bias)
        finally:
            comfy.ops.uncast_bias_weight(self, weight, bias, loan)


class _Linear(_Hosted, layers.Linear):
    """A Linear whose weight is a dense Parameter or a Parameter holding a QuantizedTensor of `_layout`.

    `state_dict` names a quantized weight `weight` and `weight_scale`: the host finds LoRA targets by `weight`.
    """

    layout_type: str | None = None

    @property
    def weight_scale(self) -> Tensor | None:
        """The scale under the name that `state_dict` gives it; the host looks tensors up by those names."""
        return self.weight._params.scale if isinstance(self.weight, QuantizedTensor) else None

    @property
    def codes_format(self) -> CodesFormat | None:
        weight = self.weight
        if not isinstance(weight, QuantizedTensor):
            return None
        return BLOCK_CODES if weight._params.scale.ndim == 2 else weight._qdata.dtype

    def convert_weight(self, weight: Tensor, inplace: bool = False) -> Tensor:
        """The host asks for a dense weight to patch."""
        return weight.dequantize() if isinstance(weight, QuantizedTensor) else weight

    def set_weight(
        self, weight: Tensor, inplace_update: bool = False, seed: int | None = None, return_weight: bool = False
    ) -> Tensor | None:
        """The host hands back a patched dense weight; in place only for LoRA hooks, which cannot restore codes."""
        if inplace_update and isinstance(self.weight, QuantizedTensor):
            raise SettingsError(
                "LoRA hook: the weights must be dense, got 8-bit codes; use LoraLoaderModelOnly, or TurboLoader with "
                "precision 'bf16'"
            )
        if isinstance(self.weight, QuantizedTensor):
            weight = QuantizedTensor.from_float(weight, self.layout_type, stochastic_rounding=seed)
        patched = weight.to(self.weight.dtype)
        if return_weight:
            return patched
        if inplace_update:
            self.weight.copy_(patched)
        else:
            self.weight = nn.Parameter(patched, requires_grad=False)
        return None

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        codes = layers.pop_codes(state_dict, prefix)
        scale = state_dict.pop(prefix + "scale", None)
        if codes is not None and scale is not None:
            state_dict[prefix + "weight"] = weight = _layout.wrap(codes, scale, self.weight.dtype)
            self.layout_type = weight._layout_cls
        nn.Module._load_from_state_dict(self, state_dict, prefix, *args)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        if not isinstance(self.weight, QuantizedTensor):
            return nn.Module._save_to_state_dict(self, destination, prefix, keep_vars)
        # torch would detach the weight, which fails for one made under inference_mode when the host is out of it.
        destination.update(self.weight.state_dict(prefix + "weight"))
        if self.bias is not None:
            destination[prefix + "bias"] = self.bias if keep_vars else self.bias.detach()
        return None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _Linear:
        # torch would swap or shallow-copy the Parameter's data, which a wrapper tensor does not allow.
        for name, parameter in self._parameters.items():
            changed = parameter if parameter is None else fn(parameter)
            if changed is not parameter:
                self._parameters[name] = nn.Parameter(changed, requires_grad=False)
        return self


class _RMSNorm(_Hosted, layers.RMSNorm):
    pass


class _LayerNorm(_Hosted, layers.LayerNorm):
    pass


class _PatchEmbedding(_Hosted, layers.PatchEmbedding):
    pass


class HostOperations(TorchOperations):
    """The core's layer classes under the host's memory management."""

    Linear = _Linear
    RMSNorm = _RMSNorm
    LayerNorm = _LayerNorm
    PatchEmbedding = _PatchEmbedding
