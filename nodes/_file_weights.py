"""The large weights of a model in its file: from there to the GPU at the disk's speed, and back without a copy.

ComfyUI's classic patcher moves a module at a time with `.to`, a copy out of the memory mapping page by page, and when
it unloads it copies the weights into system memory. Here every Linear's weight that lies in the file whole keeps its
mapped tensor beside the one on the GPU: `place` reads the file ahead of the host's own loading, which then finds
nothing left to do, and `withdraw` puts the mapped tensors back, whose pages the system may drop and read again.

Its streaming copies each weight, as a layer first asks for it, to a buffer in system memory and from there to the GPU.
`fill` reads them to where they are streamed to, ahead of that.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import closing

import torch
from comfy_kitchen.tensor import QuantizedTensor
from torch import Tensor, nn

from ..turbo_core.file_reading import MappedFile
from ..turbo_core.file_spans import span_of
from ..turbo_core.layers import Linear
from . import _layout, _streamed_memory
from ._operations import is_interrupted, progress_bar, throw_if_interrupted

SMALL = 1 << 16  # bytes; the host's copy of a smaller weight costs no more than a read
MUCH = 1 << 30  # bytes; reading less shows no progress, and tells nothing of the speed
CACHED = 5e9  # bytes a second, which a page cache gives and few disks do


class FileWeights:
    """Weights of `model` that lie in the file whole; their mapped tensors live as long as this does."""

    def __init__(self, model: nn.Module, file: MappedFile) -> None:
        self.file = file
        self._layers = {name: module for name, module in model.named_modules() if isinstance(module, Linear)}
        self._mapped: dict[str, nn.Parameter] = {}
        self._placed: dict[str, nn.Parameter] = {}
        self._reads_again = True
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
        wanted = [name for name in self._order if self._is_mapped(name) and f"{name}.weight" not in leave]

        def place(name: str, data: Tensor) -> bool:
            weight = nn.Parameter(_over(self._mapped[name], data), requires_grad=False)
            self._layers[name].weight = self._placed[name] = weight
            return True

        taken = self._read(wanted, device, place)
        if taken < len(wanted):  # the host forgets a model whose load is interrupted
            self.withdraw()
            throw_if_interrupted()
        return taken

    def withdraw(self) -> None:
        """The mapped tensors again, for every weight that nobody has replaced since it was placed."""
        for name, placed in self._placed.items():
            if self._layers[name].weight is placed:
                self._layers[name].weight = self._mapped[name]
        self._placed.clear()

    def fill(self, device: torch.device, leave: Container[str], room: int) -> int:
        """Read onto `device`, where the host streams them to, the weights that are not there; the number of read ones.

        Left to the host are layers with a weight or bias in `leave`, by the model's names, because it patches them, and
        those of which it has a copy in system memory. What was there and had to leave is read again only while the page
        cache serves it: from a disk, prompt after prompt, it would be slower than the host, which keeps its copies.
        `room` is what the GPU can give to this model in all, in bytes; with less than all weights need, those are read
        that the host would give up last. If the user cancels, the reading ends.
        """
        wanted = [name for name in self._with_room(room) if self._is_missing(name) and not _patched(name, leave)]
        again = any(_streamed_memory.was_written(self._layers[name]) for name in wanted)
        started = time.perf_counter()
        taken = self._read(wanted, device, lambda name, data: _streamed_memory.write(self._layers[name], data, device))
        bytes_read = sum(_data(self._mapped[name]).nbytes for name in wanted[:taken])
        if again and bytes_read >= MUCH:
            self._reads_again = bytes_read >= CACHED * (time.perf_counter() - started)
        return taken

    def forget(self) -> None:
        """The host has unloaded the model, its copies included: what was streamed is as good as new."""
        for name in self._streamed():
            _streamed_memory.forget(self._layers[name])

    def _streamed(self) -> list[str]:
        """In the order in which the host keeps them: the last leaves first."""
        names = [name for name, layer in self._layers.items() if _streamed_memory.is_streamed(layer)]
        return sorted(names, key=lambda name: _streamed_memory.address(self._layers[name]))

    def _with_room(self, room: int) -> Iterator[str]:
        """The streamed layers that `room` bytes hold."""
        for name in self._streamed():
            room -= _streamed_memory.size(self._layers[name])
            if room < 0:
                return
            yield name

    def _is_missing(self, name: str) -> bool:
        """Whether a streamed layer's weights are not where it looks for them, and are to come from the file."""
        layer = self._layers[name]
        if not self._is_mapped(name) or _streamed_memory.has_host_copy(layer):
            return False
        return not _streamed_memory.was_written(layer) or (self._reads_again and not _streamed_memory.holds(layer))

    def _is_mapped(self, name: str) -> bool:
        """Whether the weight lies in the mapping: after a LoRA the host puts the original in a Parameter of its own."""
        mapped = self._mapped.get(name)
        return mapped is not None and _data(self._layers[name].weight).data_ptr() == _data(mapped).data_ptr()

    def _read(self, names: Sequence[str], device: torch.device, take: Callable[[str, Tensor], bool]) -> int:
        """Hand the weights' data on `device` to `take` until it refuses or the user cancels; the number it took."""
        weights = [_data(self._mapped[name]) for name in names]
        whole = sum(weight.nbytes for weight in weights)
        show = progress_bar() if whole >= MUCH else None
        taken = done = 0
        with closing(self.file.to_device(weights, device)) as read:
            for name, data in zip(names, read, strict=True):
                if is_interrupted() or not take(name, data):
                    break
                taken, done = taken + 1, done + data.nbytes
                if show is not None:
                    show(done, whole)
        return taken


def _patched(name: str, patches: Container[str]) -> bool:
    """Whether the layer's weight or bias is among `patches`."""
    return f"{name}.weight" in patches or f"{name}.bias" in patches


def _data(weight: nn.Parameter) -> Tensor:
    return weight._qdata if isinstance(weight, QuantizedTensor) else weight


def _over(weight: nn.Parameter, data: Tensor) -> Tensor:
    """The weight over the same data on another device."""
    if isinstance(weight, QuantizedTensor):
        return _layout.wrap(data, weight._params.scale.to(data.device), weight.dtype)
    return data
