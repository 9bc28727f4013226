"""ComfyUI's streaming patcher without a GPU: readies a tiny model several times and prints what it did, as JSON.

    python streamed_loads.py CHECKOUT PACK MODEL_FILE

Run by `test_streamed_loads`.
"""

from __future__ import annotations

import copy
import json
import sys
import types
from pathlib import Path
from typing import Any

import torch
from no_gpu import CPU, Pages, import_pack, on_a_gpu, streaming_patcher

CHECKOUT, PACK, MODEL_FILE = map(Path, sys.argv[1:])
NORM, LINEAR = "blocks.0.self_attn.norm_q", "blocks.0.self_attn.q"


class Loads:
    """Loads by one patcher or another of the same model, and what each did."""

    def __init__(self, patchers: types.ModuleType, model: Any, pages: Pages) -> None:
        self.model, self.pages = model, pages
        self.norm = model.diffusion_model.get_submodule(NORM)
        self.linear = model.diffusion_model.get_submodule(LINEAR)
        self.original = self.norm.weight.data_ptr()
        self.listed = 0
        self.report: dict[str, dict[str, Any]] = {}
        base, list_modules = patchers._StreamingBase, patchers._StreamingBase._load_list

        def counted(*args: Any, **options: Any) -> list[Any]:
            self.listed += 1
            return list_modules(*args, **options)

        base._load_list = counted

    def ready(self, name: str, by: Any) -> None:
        listed, weight, prioritized = self.listed, self.norm.weight, self.pages.prioritized
        by.partially_load(CPU, 0)
        self.report[name] = {
            "listed": self.listed > listed,
            "kept": self.norm.weight is weight,
            "lora": self.linear.weight_lowvram_function is not None,
            "prioritized": self.pages.prioritized > prioritized,
            "shift": self.model.model_sampling.shift,
        } | self._memory()

    def note(self, name: str) -> None:
        self.report[name] = self._memory()

    def _memory(self) -> dict[str, Any]:
        placed = self.norm.weight.data_ptr() != self.original
        return {"placed": placed, "bytes": self.model.model_loaded_weight_memory}


@torch.inference_mode()
def main() -> None:
    pages = Pages()
    host, patchers = import_pack(CHECKOUT, PACK, pages)
    made = host.load_model(MODEL_FILE, host.LoadSettings())
    model = made.model
    patcher = streaming_patcher(patchers, model)
    loads = Loads(patchers, model, pages)
    loads.ready("first", patcher)
    loads.ready("again", patcher)

    lora = patcher.clone()
    rows, columns = loads.linear.weight.shape
    lora.add_patches({f"diffusion_model.{LINEAR}.weight": ("diff", (torch.ones(rows, columns),))})
    loads.ready("lora", lora)
    loads.ready("lora again", lora)
    loads.ready("without", patcher)

    shifted = patcher.clone()
    sampling = copy.deepcopy(model.model_sampling)
    sampling.set_parameters(shift=3.0)
    shifted.add_object_patch("model_sampling", sampling)
    loads.ready("shifted", shifted)
    loads.ready("unshifted", patcher)

    with on_a_gpu(patcher):
        patcher.partially_unload(CPU, 10)  # another model wants a little memory
    loads.ready("pages given up", patcher)
    with on_a_gpu(patcher):
        patcher.partially_unload(CPU, 1e32)  # ... or more than there is
    loads.note("all given up")
    loads.ready("reloaded", patcher)
    with on_a_gpu(patcher):
        patcher.detach()  # what /free and a lack of memory do
    loads.note("unloaded")
    loads.ready("after unloading", patcher)

    failing = patcher.clone()
    failing.add_callback(patchers.comfy.patcher_extension.CallbacksMP.ON_LOAD, run_out)
    try:
        failing.load(CPU)
    except torch.OutOfMemoryError:
        loads.ready("after a failure", patcher)

    injected = patcher.clone()
    no_change = patchers.comfy.patcher_extension.PatcherInjection(inject=lambda _: None, eject=lambda _: None)
    injected.set_injections("test", [no_change])
    loads.ready("injected", injected)
    loads.ready("injected again", injected)
    loads.ready("without injection", patcher)
    patcher.add_object_patch(f"diffusion_model.{NORM}", loads.norm)
    loads.ready("replaced", patcher)
    loads.ready("replaced again", patcher)
    print(json.dumps(loads.report))


def run_out(*_: object) -> None:
    raise torch.OutOfMemoryError("Allocation on device")


if __name__ == "__main__":
    main()
