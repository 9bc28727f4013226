"""ComfyUI's streaming without a GPU, for scripts that drive its patcher themselves.

The host takes its streaming only where comfy-aimdo works, and that needs a GPU; readying a model and lending its
weights is Python that runs on any device once comfy-aimdo's memory is stood in for.
"""

from __future__ import annotations

import importlib
import json
import types
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import alone
import torch

CPU, GPU = torch.device("cpu"), torch.device("meta")
BYTES = 16 << 20
Range = tuple["Pages", int, int]


class NoBuffer:
    """In place of page-locked memory."""

    size = 0

    def __init__(self, *_: object) -> None:
        pass

    def truncate(self, *_: object, **__: object) -> None:
        pass


class Pages:
    """In place of the GPU memory that large weights stream through.

    Each range is a page of its own, whose signature counts how often it came. Asked for memory, it gives all pages up
    and says that it freed as much as was asked for; nothing, where everything was.
    """

    def __init__(self) -> None:
        self.memory = torch.zeros(BYTES, dtype=torch.uint8)
        self.prioritized = self.used = self.held = 0
        self.end = BYTES  # no pages from here on
        self._came: dict[int, int] = {}
        self._there: dict[int, int] = {}  # bytes by start

    def alloc(self, size: int) -> Range:
        start, self.used = self.used, self.used + size
        return self, start, size

    def fault(self, start: int, size: int) -> array | None:
        if start + size > self.end:
            return None
        self.held += 1
        if start not in self._there:
            self._there[start] = size
            self._came[start] = self._came.get(start, 0) + 1
        return array("I", [start, self._came[start]])

    def unpin(self, *_: int) -> None:
        self.held -= 1

    def tensor(self, at: Range, _: torch.device) -> torch.Tensor:
        _, start, size = at
        return self.memory[start : start + size]

    def prioritize(self) -> None:
        self.prioritized += 1

    def loaded_size(self) -> int:
        return sum(self._there.values())

    def free_memory(self, size: float) -> float:
        self._there.clear()
        self.memory.zero_()
        return size if size < 1e30 else 0


def import_pack(checkout: Path, pack: Path, pages: Pages) -> list[types.ModuleType]:
    """The pack's `nodes._host` and `nodes._patcher` in a process with the host's streaming switched on, for the CPU.

    Ends the process, with a report of null, where the host has none.
    """
    alone.enter(checkout)
    host = importlib.import_module("comfy.model_patcher")
    if not hasattr(host, "ModelPatcherDynamic"):
        print(json.dumps(None))
        raise SystemExit
    streaming = host.CoreModelPatcher = host.ModelPatcherDynamic
    streaming.__new__ = lambda cls, *_, **__: object.__new__(cls)  # else a classic one for the CPU
    streaming._vbar_get = lambda self, create=False: pages
    importlib.import_module("comfy_aimdo.host_buffer").HostBuffer = NoBuffer
    importlib.import_module("comfy_aimdo.torch").aimdo_to_tensor = pages.tensor
    return alone.import_pack(pack, "_host", "_patcher")


def streaming_patcher(patchers: types.ModuleType, model: Any) -> Any:
    """The pack's patcher for the host's streaming, over `model`."""
    patcher = patchers._StreamingPatcher(model, load_device=CPU, offload_device=CPU)
    for pins in getattr(model, "dynamic_pins", {}).values():
        pins["hostbufs_initialized"] = True
    return patcher


@contextmanager
def on_a_gpu(patcher: Any) -> Iterator[None]:
    """For unloading: the host unloads no model of the CPU."""
    patcher.load_device = GPU
    if hasattr(patcher, "register_load_device"):
        patcher.register_load_device(GPU)
    yield
    patcher.load_device = CPU
