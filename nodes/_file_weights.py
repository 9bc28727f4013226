"""The large weights of a model in its file: from there to the GPU at the disk's speed, and back without a copy.

ComfyUI's classic patcher moves a module at a time with `.to`, a copy out of the memory mapping page by page, and when
it unloads it copies the weights into system memory. Here every Linear's weight that lies in the file whole keeps its
mapped tensor beside the one on the GPU: `place` reads the file ahead of the host's own loading, which then finds
nothing left to do, and `withdraw` puts the mapped tensors back, whose pages the system may drop and read again.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Container
from pathlib import Path

import torch
from comfy_kitchen.tensor import QuantizedTensor
from torch import Tensor, nn

from ..turbo_core import file_reading
from ..turbo_core.file_spans import FileSpan, Spans, span_of
from ..turbo_core.layers import Linear
from . import _layout
from ._operations import throw_if_interrupted

log = logging.getLogger("turbowan")

SMALL = 1 << 16  # bytes; the host's copy of a smaller weight costs no more than a read


class FileWeights:
    """Weights of `model` that lie in the file whole; their mapped tensors live as long as this does."""

    def __init__(self, model: nn.Module, spans: Spans, path: Path) -> None:
        self.path, self._state = path, _state(path)
        self._mapped: dict[str, tuple[nn.Parameter, FileSpan]] = {}
        self._placed: dict[str, nn.Parameter] = {}
        self._layers = {name: module for name, module in model.named_modules() if isinstance(module, Linear)}
        for name, layer in self._layers.items():
            span = span_of(_data(layer.weight), spans)
            if span is not None and span.size >= SMALL:
                self._mapped[name] = layer.weight, span

    def place(self, device: torch.device, leave: Container[str]) -> int:
        """Read onto `device` what is mapped now; the number of read weights.

        Those in `leave`, by the model's names, stay: the host keeps the original of a patched one, and has pinned some.
        """
        wanted = {
            name: (weight, span)
            for name, (weight, span) in sorted(self._mapped.items(), key=lambda item: item[1][1].offset)
            if self._layers[name].weight is weight and f"{name}.weight" not in leave
        }
        if wanted and _state(self.path) != self._state:
            log.warning(
                "%s was changed since it was loaded; its weights come through the old file's mapping, which is slower",
                self.path.name,
            )
            return 0
        read = file_reading.read([span for _, span in wanted.values()], device)
        for (name, (weight, _)), data in zip(wanted.items(), read, strict=True):
            throw_if_interrupted()
            placed = nn.Parameter(_like(weight, data), requires_grad=False)
            self._layers[name].weight = self._placed[name] = placed
        return len(wanted)

    def withdraw(self) -> None:
        """The mapped tensors again, for every weight that nobody has replaced since it was placed."""
        for name, placed in self._placed.items():
            if self._layers[name].weight is placed:
                self._layers[name].weight = self._mapped[name][0]
        self._placed.clear()


def _state(path: Path) -> tuple[int, ...] | None:
    """What changes if the file is replaced or written to; None if it is gone."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _data(weight: nn.Parameter) -> Tensor:
    return weight._qdata if isinstance(weight, QuantizedTensor) else weight


def _like(weight: nn.Parameter, data: Tensor) -> Tensor:
    """The weight over other bytes [size] uint8, on their device."""
    stored = _data(weight)
    data = data.view(stored.dtype).view(stored.shape)
    if isinstance(weight, QuantizedTensor):
        return _layout.wrap(data, weight._params.scale.to(data.device), weight.dtype)
    return data
