"""ComfyUI's classic patcher as it loads for a GPU, without one: loads and unloads a tiny model and prints it, as JSON.

    python classic_loads.py CHECKOUT PACK MODEL_FILE

Run by `test_classic_loads`. The meta device stands for the GPU: a device other than the CPU, whose tensors hold no
data, so that loading goes its whole way and computes nothing.
"""

from __future__ import annotations

import importlib
import json
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import alone
import torch

CHECKOUT, PACK, MODEL_FILE = map(Path, sys.argv[1:])
CPU, GPU = torch.device("cpu"), torch.device("meta")
EVERYTHING = 1 << 40  # bytes
LINEAR = "blocks.0.ffn.0"

bring = torch.Tensor.to


def to(tensor: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
    """`Tensor.to`, also from the stand-in to the CPU, where torch would miss the data."""
    leaves = CPU in (*args, options.get("device")) and type(tensor) in (torch.Tensor, torch.nn.Parameter)
    if leaves and tensor.is_meta:
        tensor = torch.zeros_like(tensor, device=CPU)
    return bring(tensor, *args, **options)


def import_pack() -> list[types.ModuleType]:
    """The pack's `nodes._host` and `nodes._patcher`, in a process that takes the meta device for a CUDA GPU."""
    alone.enter(CHECKOUT)
    importlib.import_module("comfy.model_management").is_device_cuda = lambda device: device == GPU
    torch.cuda.synchronize = lambda *_: None
    torch.Tensor.to = to
    weights = importlib.import_module("comfy.ops").disable_weight_init
    weights._zero_init_parameter = lambda *_: None  # what the host does to weights that a file left on the meta device
    host, patchers, layout = alone.import_pack(PACK, "_host", "_patcher", "_layout")
    layout._round_stochastically = lambda tensor, *_: torch.empty_like(tensor, dtype=torch.int8)  # no random numbers
    return [host, patchers]


@torch.inference_mode()
def main() -> None:
    host, patchers = import_pack()
    model = host.load_model(MODEL_FILE, host.LoadSettings()).model
    network = model.diffusion_model
    linear = network.get_submodule(LINEAR)
    patcher = patchers.make_patcher(model, GPU, CPU, streaming=True)
    mapped = {name: weight.data_ptr() for name, weight in weights(network)}
    report: dict[str, dict[str, Any]] = {}

    def note(name: str) -> None:
        report[name] = {
            "on the GPU": sum(parameter.device == GPU for parameter in network.parameters()),
            "read": len(model.file_weights._placed),
            "mapped": sum(weight.data_ptr() == mapped[name] for name, weight in weights(network)),
            "codes": linear.codes_format,
        }

    note("begin")
    for name, memory in (("in part", 1), ("loaded", EVERYTHING), ("loaded again", EVERYTHING)):
        patcher.partially_load(GPU, memory)
        note(name)
    patcher.detach()
    note("unloaded")
    patcher.partially_load(GPU, EVERYTHING)
    note("reloaded")

    lora = patcher.clone()
    rows, columns = linear.weight.shape
    lora.add_patches({f"diffusion_model.{LINEAR}.weight": ("diff", (torch.ones(rows, columns),))})
    patcher.detach(unpatch_all=False)
    lora.partially_load(GPU, EVERYTHING)
    note("lora")
    lora.detach(unpatch_all=False)
    patcher.partially_load(GPU, EVERYTHING)
    note("without")
    patcher.detach()
    note("end")
    management, file = importlib.import_module("comfy.model_management"), model.file_weights.file
    file.to_device = cancelled_at(3, file.to_device, management.interrupt_current_processing)
    try:
        patcher.partially_load(GPU, EVERYTHING)
    except management.InterruptProcessingException:
        note("cancelled")
    report["patcher"] = {"class": type(patcher).__name__, "parameters": len(list(network.parameters()))}
    print(json.dumps(report))


def cancelled_at(count: int, read: Callable[..., Iterator[Any]], cancel: Callable[[], None]) -> Callable[..., Any]:
    """`read`, which cancels before it gives item number `count`, counted from 0."""

    def cancelled(*args: Any) -> Iterator[Any]:
        for number, item in enumerate(read(*args)):
            if number == count:
                cancel()
            yield item

    return cancelled


def weights(network: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    """The tensors in codes, on the CPU or not."""
    found = ((name, getattr(module, "weight", None)) for name, module in network.named_modules())
    return [(name, weight._qdata) for name, weight in found if hasattr(weight, "_qdata")]


if __name__ == "__main__":
    main()
