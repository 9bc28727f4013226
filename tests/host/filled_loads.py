"""Reads a tiny model's weights to where ComfyUI's streaming looks for them, without a GPU; prints what lies there.

    python filled_loads.py CHECKOUT PACK MODEL_FILE

Run by `test_filled_loads`, which wants JSON.
"""

from __future__ import annotations

import importlib
import json
import sys
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from no_gpu import CPU, Pages, import_pack, on_a_gpu, streaming_patcher

CHECKOUT, PACK, MODEL_FILE = map(Path, sys.argv[1:])
LINEAR, OTHER = "blocks.0.self_attn.q", "blocks.0.self_attn.k"
MOST = 3  # quarters of what all streamed layers need


class Loads:
    """Loads of one model, and what the host finds on its pages after each."""

    def __init__(self, model: Any, pages: Pages) -> None:
        self.model, self.pages = model, pages
        self.ops: types.ModuleType = importlib.import_module("comfy.ops")
        self.vbar: types.ModuleType = importlib.import_module("comfy_aimdo.model_vbar")
        self.linear, self.other = (model.diffusion_model.get_submodule(name) for name in (LINEAR, OTHER))
        self.readable: list[Any] = []
        self.read = 0
        self.report: dict[str, dict[str, Any]] = {}
        fill = model.file_weights.fill

        def counted(*args: Any, **options: Any) -> int:
            read = fill(*args, **options)
            self.read += read
            return read

        model.file_weights.fill = counted

    def ready(self, name: str, by: Any) -> None:
        read = self.read
        by.partially_load(CPU, 0)
        self.report[name] = {"read": self.read - read} | self._lent()

    def fail(self, name: str, by: Any) -> None:
        """A load that must raise; `partially_load` would then unload, which fails for a model of the CPU."""
        read = self.read
        try:
            by.load(CPU)
        except torch.OutOfMemoryError:
            readers = sum(thread.name.startswith("turbowan-read") for thread in threading.enumerate())
            self.report[name] = {"read": self.read - read, "readers": readers} | self._lent()

    def _lent(self) -> dict[str, Any]:
        """Layers that the host lends from its pages without a copy, and how many of them hold what the file does."""
        streamed = [layer for layer in self.model.modules() if hasattr(layer, "_v")]
        lent = [layer for layer in streamed if self._is_there(layer)]
        self.readable = self.readable or lent  # the first load reads all that there are
        left = [layer for layer in self.readable if layer not in lent]
        return {
            "streamed": len(streamed),
            "lent": len(lent),
            "right": sum(map(self._is_right, lent)),
            "patched": [layer in lent for layer in (self.linear, self.other)],
            "up to": max(map(_end, lent), default=0),
            "left from": min(map(_end, left), default=self.pages.used),
            "pages held": self.pages.held,
        }

    def _is_there(self, layer: Any) -> bool:
        signature = self.vbar.vbar_fault(layer._v)
        if signature is not None:
            self.vbar.vbar_unpin(layer._v)
        return self.vbar.vbar_signature_compare(signature, layer._v_signature)

    def _is_right(self, layer: Any) -> bool:
        own = layer.weight.dtype
        self.ops.cast_modules_with_vbar([layer], own, CPU, torch.float32, False)
        resident = layer._prefetch["resident"]
        weight, bias = self.ops.resolve_cast_module_with_vbar(layer, own, CPU, torch.float32, None, True)
        del layer._prefetch
        self.vbar.vbar_unpin(layer._v)
        pairs = [*zip(_parts(weight), _parts(layer.weight), strict=True)]
        if layer.bias is not None:
            pairs.append((bias, layer.bias.to(bias.dtype)))
        return resident and all(torch.equal(one, other) for one, other in pairs)


@contextmanager
def shown_progress() -> Iterator[list[tuple[int, int]]]:
    """What the host's progress bar is told meanwhile, as if this model's file were large."""
    told: list[tuple[int, int]] = []
    utils = importlib.import_module("comfy.utils")
    utils.set_progress_bar_global_hook(lambda value, total, *_, **__: told.append((value, total)))
    with replaced(sys.modules["pack.nodes._file_weights"], MUCH=1):
        yield told
    utils.set_progress_bar_global_hook(None)


@contextmanager
def replaced(module: types.ModuleType, **values: Any) -> Iterator[None]:
    before = {name: getattr(module, name) for name in values}
    vars(module).update(values)
    yield
    vars(module).update(before)


def after(count: int, then: Callable[[], None], do: Callable[..., Any]) -> Callable[..., Any]:
    """`do`, with `then` before its call number `count`, counted from 0."""
    calls = iter(range(1 << 30))

    def counted(*args: Any) -> Any:
        if next(calls) == count:
            then()
        return do(*args)

    return counted


def run_out() -> None:
    raise torch.OutOfMemoryError("Allocation on device")


def _end(layer: Any) -> int:
    return layer._v[1] + layer._v[2]


def _parts(weight: torch.Tensor) -> list[torch.Tensor]:
    return [weight._qdata, weight._params.scale] if hasattr(weight, "_qdata") else [weight]


@torch.inference_mode()
def main() -> None:
    pages = Pages()
    host, patchers = import_pack(CHECKOUT, PACK, pages)
    if not patchers._StreamingPatcher._readies_once:
        print(json.dumps(None))
        return
    management = patchers.comfy.model_management
    file_weights, memory = (sys.modules[f"pack.nodes.{name}"] for name in ("_file_weights", "_streamed_memory"))
    model = host.load_model(MODEL_FILE, host.LoadSettings()).model
    patcher = streaming_patcher(patchers, model)
    loads = Loads(model, pages)

    def make_room() -> None:
        with on_a_gpu(patcher):
            patcher.partially_unload(CPU, 10)  # another model wants memory, and in this process gets all pages

    def unload() -> None:
        with on_a_gpu(patcher):
            patcher.detach()  # as /free does

    with shown_progress() as told:
        loads.ready("first", patcher)
    loads.ready("again", patcher)

    lora = patcher.clone()
    patches = ((f"{LINEAR}.weight", loads.linear.weight), (f"{OTHER}.bias", loads.other.bias))
    lora.add_patches({f"diffusion_model.{name}": ("diff", (torch.ones(old.shape),)) for name, old in patches})
    loads.ready("lora", lora)
    loads.linear._pins = {"weights-loaded": {"pin": torch.empty(1)}}  # as a step with the LoRA leaves it
    loads.other._pin = torch.empty(1)  # ... before ComfyUI 0.30
    loads.ready("without", patcher)
    make_room()
    loads.ready("made room", patcher)
    make_room()
    with replaced(file_weights, MUCH=1, CACHED=float("inf")):
        loads.ready("from a slow disk", patcher)
    make_room()
    loads.ready("after that", patcher)

    unload()
    del loads.linear._pins, loads.other._pin
    with replaced(memory, write=after(3, management.interrupt_current_processing, memory.write)):
        loads.ready("cancelled", patcher)
    management.interrupt_current_processing(False)
    loads.ready("after cancelling", patcher)
    unload()
    with replaced(sys.modules["comfy_aimdo.torch"], aimdo_to_tensor=after(3, run_out, pages.tensor)):
        loads.fail("failed", patcher)
    unload()
    pages.end = MOST * pages.used // 4
    loads.ready("fewer pages", patcher)
    unload()
    pages.end = len(pages.memory)
    patcher.get_free_memory = lambda _: MOST * pages.used // 4 + management.minimum_inference_memory()
    loads.ready("less room", patcher)
    print(json.dumps({"loads": loads.report, "needed": pages.used, "progress": told}))


if __name__ == "__main__":
    main()
