"""Reads a tiny model's weights to where ComfyUI's streaming looks for them, without a GPU; prints what lies there.

    python filled_loads.py CHECKOUT PACK MODEL_FILE

Run by `test_filled_loads`, which wants JSON.
"""

from __future__ import annotations

import importlib
import json
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from no_gpu import CPU, Pages, import_pack, on_a_gpu, streaming_patcher

CHECKOUT, PACK, MODEL_FILE = map(Path, sys.argv[1:])
LINEAR = "blocks.0.self_attn.q"
MOST = 3  # quarters of what all streamed layers need


class Loads:
    """Loads of one model, and what the host finds on its pages after each."""

    def __init__(self, model: Any, pages: Pages) -> None:
        self.model, self.pages = model, pages
        self.ops: types.ModuleType = importlib.import_module("comfy.ops")
        self.vbar: types.ModuleType = importlib.import_module("comfy_aimdo.model_vbar")
        self.linear = model.diffusion_model.get_submodule(LINEAR)
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

    def _lent(self) -> dict[str, Any]:
        """Layers that the host lends from its pages without a copy, and how many of them hold what the file does."""
        streamed = [layer for layer in self.model.modules() if hasattr(layer, "_v")]
        lent = [layer for layer in streamed if self._is_there(layer)]
        return {
            "streamed": len(streamed),
            "lent": len(lent),
            "right": sum(map(self._is_right, lent)),
            "linear": self.linear in lent,
            "up to": max((layer._v[1] + layer._v[2] for layer in lent), default=0),
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
    """What the host's progress bar is told meanwhile, as if this model's files took long to read."""
    told: list[tuple[int, int]] = []
    file_weights, utils = sys.modules["pack.nodes._file_weights"], importlib.import_module("comfy.utils")
    shown, file_weights.SHOWN = file_weights.SHOWN, 1
    utils.set_progress_bar_global_hook(lambda value, total, *_, **__: told.append((value, total)))
    yield told
    utils.set_progress_bar_global_hook(None)
    file_weights.SHOWN = shown


def _parts(weight: torch.Tensor) -> list[torch.Tensor]:
    return [weight._qdata, weight._params.scale] if hasattr(weight, "_qdata") else [weight]


@torch.inference_mode()
def main() -> None:
    pages = Pages()
    host, patchers = import_pack(CHECKOUT, PACK, pages)
    if not patchers._StreamingPatcher._readies_once:
        print(json.dumps(None))
        return
    model = host.load_model(MODEL_FILE, host.LoadSettings()).model
    patcher = streaming_patcher(patchers, model)
    loads = Loads(model, pages)
    with shown_progress() as told:
        loads.ready("first", patcher)
    loads.ready("again", patcher)

    lora = patcher.clone()
    rows, columns = loads.linear.weight.shape
    lora.add_patches({f"diffusion_model.{LINEAR}.weight": ("diff", (torch.ones(rows, columns),))})
    loads.ready("lora", lora)
    loads.linear._pins = {"weights-loaded": {"pin": torch.empty(1)}}  # as a step with the LoRA leaves it
    loads.ready("without", patcher)

    with on_a_gpu(patcher):
        patcher.partially_unload(CPU, 1e32)  # another model takes all of the GPU
    loads.ready("after eviction", patcher)
    with on_a_gpu(patcher):
        patcher.detach()  # what /free does
    del loads.linear._pins
    pages.end = MOST * pages.used // 4
    loads.ready("fewer pages", patcher)
    with on_a_gpu(patcher):
        patcher.detach()
    pages.end = len(pages.memory)
    reserve = patchers.comfy.model_management.minimum_inference_memory()
    patcher.get_free_memory = lambda _: MOST * pages.used // 4 + reserve
    loads.ready("less room", patcher)
    print(json.dumps({"loads": loads.report, "needed": pages.used, "progress": told}))


if __name__ == "__main__":
    main()
