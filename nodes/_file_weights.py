"""The large weights of a model in its file: from there to the GPU at the disk's speed, and back without a copy.

ComfyUI's classic patcher moves a module at a time with `.to`, a copy out of the memory mapping page by page, and when
it unloads it copies the weights into system memory. Here every Linear's weight that lies in the file whole keeps its
mapped tensor beside the one on the GPU: `place` reads the file ahead of the host's own loading, which then finds
nothing left to do, and `withdraw` puts the mapped tensors back, whose pages the system may drop and read again.
"""

from __future__ import annotations

from collections.abc import Container

import torch
from comfy_kitchen.tensor import QuantizedTensor
from torch import Tensor, nn

from ..turbo_core.file_reading import MappedFile
from ..turbo_core.file_spans import span_of
from ..turbo_core.layers import Linear
from . import _layout
from ._operations import throw_if_interrupted

SMALL = 1 << 16  # bytes; the host's copy of a smaller weight costs no more than a read


class FileWeights:
    """Weights of `model` that lie in the file whole; their mapped tensors live as long as this does."""

    def __init__(self, model: nn.Module, file: MappedFile) -> None:
        self.file = file
        self._layers = {name: module for name, module in model.named_modules() if isinstance(module, Linear)}
        self._mapped: dict[str, nn.Parameter] = {}
        self._placed: dict[str, nn.Parameter] = {}
        offsets: dict[str, int] = {}
        for name, layer in self._layers.items():
            span = span_of(_data(layer.weight), file.spans)
            if span is not None and span.size >= SMALL:
                self._mapped[name], offsets[name] = layer.weight, span.offset
        self._order = sorted(offsets, key=offsets.__getitem__)

    def place(self, device: torch.device, leave: Container[str]) -> int:
        """Read onto `device` what is mapped now; the number of read weights.

        Those in `leave`, by the model's names, stay: the host keeps the original of a patched one, and has pinned some.
        """
        wanted = [
            name
            for name in self._order
            if _same_memory(self._layers[name].weight, self._mapped[name]) and f"{name}.weight" not in leave
        ]
        weights = [self._mapped[name] for name in wanted]
        read = self.file.to_device([_data(weight) for weight in weights], device)
        for name, weight, data in zip(wanted, weights, read, strict=True):
            throw_if_interrupted()
            self._layers[name].weight = self._placed[name] = nn.Parameter(_over(weight, data), requires_grad=False)
        return len(wanted)

    def withdraw(self) -> None:
        """The mapped tensors again, for every weight that nobody has replaced since it was placed."""
        for name, placed in self._placed.items():
            if self._layers[name].weight is placed:
                self._layers[name].weight = self._mapped[name]
        self._placed.clear()


def _data(weight: nn.Parameter) -> Tensor:
    return weight._qdata if isinstance(weight, QuantizedTensor) else weight


def _same_memory(weight: nn.Parameter, mapped: nn.Parameter) -> bool:
    """Whether both lie in the mapping: the host puts an original back, after a LoRA, in a Parameter of its own."""
    return _data(weight).data_ptr() == _data(mapped).data_ptr()


def _over(weight: nn.Parameter, data: Tensor) -> Tensor:
    """The weight over the same data on another device."""
    if isinstance(weight, QuantizedTensor):
        return _layout.wrap(data, weight._params.scale.to(data.device), weight.dtype)
    return data
