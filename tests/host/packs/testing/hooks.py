"""Every hook that other packs put into a Wan MODEL, each counting its calls under a label.

With ``effect`` "pass" a hook must leave the result as it was, with "change" it must move it; ``TestHookReport``
reads the counts of a label and forgets them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import comfy.model_management
import torch
from comfy.patcher_extension import WrappersMP

from .probes import report

CATEGORY = "testing"
COUNTS: dict[str, list[Any]] = defaultdict(list)
BLOCK = 1
Note = Callable[[Any], None]


def _block_replace(model: Any, change: bool, note: Note) -> None:
    def replace(args: dict, extra: dict) -> dict:
        note(args["transformer_options"].get("block_index"))
        return {"img": args["img"]} if change else extra["original_block"](args)

    model.set_model_patch_replace(replace, "dit", "double_block", BLOCK)


def _attn1(model: Any, change: bool, note: Note) -> None:
    def patch(args: dict) -> torch.Tensor:
        note(list(args["q"].shape))
        return args["x"] + 0.2 * args["q"].reshape(args["x"].shape) if change else args["x"]

    model.set_model_attn1_patch(patch)


def _attn2(model: Any, change: bool, note: Note) -> None:
    def patch(args: dict) -> torch.Tensor:
        note(list(args["x"].shape))
        return 0.9 * args["x"] if change else args["x"]

    model.set_model_attn2_patch(patch)


def _double_block(model: Any, change: bool, note: Note) -> None:
    def patch(args: dict) -> dict:
        note([args["block_index"], list(args["x"].shape), list(args["vec"].shape)])
        return {"img": 0.9 * args["img"] if change else args["img"]}

    model.set_model_patch(patch, "double_block")


def _wrapper(model: Any, change: bool, note: Note) -> None:
    def wrap(executor: Any, x: torch.Tensor, timestep: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        note([float(timestep.flatten()[0]), list(x.shape)])
        out = executor(x, timestep, *args, **kwargs)
        return 0.9 * out if change else out

    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "turbowan-test", wrap)


def _attention(model: Any, change: bool, note: Note) -> None:
    def override(attention: Callable, *args: Any, **kwargs: Any) -> torch.Tensor:
        note(list(args[0].shape))
        out = attention(*args, **kwargs)
        return 0.9 * out if change else out

    model.model_options["transformer_options"]["optimized_attention_override"] = override


def _memory(model: Any, change: bool, note: Note) -> None:
    def wrap(executor: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        note(None)
        if change:
            raise torch.OutOfMemoryError("Allocation on device")
        return executor(*args, **kwargs)

    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "turbowan-test", wrap)


INSTALLERS = {
    "block_replace": _block_replace,
    "attn1_patch": _attn1,
    "attn2_patch": _attn2,
    "double_block": _double_block,
    "wrapper": _wrapper,
    "attention_override": _attention,
    "out_of_memory": _memory,
}


class TestHook:
    """The MODEL with one hook of ``kind`` that records its calls under ``label``."""

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {
            "required": {
                "model": ("MODEL",),
                "kind": (list(INSTALLERS),),
                "effect": (["pass", "change"],),
                "label": ("STRING", {"default": "hook"}),
            }
        }

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "hook"
    CATEGORY = CATEGORY

    def hook(self, model: Any, kind: str, effect: str, label: str) -> tuple:
        patched = model.clone()
        INSTALLERS[kind](patched, effect == "change", COUNTS[label].append)
        return (patched,)


class TestHookReport:
    """``{"count", "notes"}`` of a label, once ``samples`` are there."""

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"samples": ("LATENT",), "label": ("STRING", {"default": "hook"})}}

    RETURN_TYPES = ()
    FUNCTION = "read"
    OUTPUT_NODE = True
    CATEGORY = CATEGORY

    def read(self, samples: dict, label: str) -> dict:
        notes = COUNTS.pop(label, [])
        return report({"count": len(notes), "notes": notes[:64]})


class TestModelLabel:
    """Records, at every forward of this MODEL, its label, the timestep and the labels of all loaded models."""

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"model": ("MODEL",), "name": ("STRING", {}), "label": ("STRING", {"default": "loads"})}}

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "label"
    CATEGORY = CATEGORY

    def label(self, model: Any, name: str, label: str) -> tuple:
        patched = model.clone()
        patched.model_options["transformer_options"]["turbowan_test_name"] = name

        def wrap(executor: Any, x: torch.Tensor, timestep: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            loaded = [
                options["transformer_options"].get("turbowan_test_name")
                for options in (m.model.model_options for m in comfy.model_management.current_loaded_models)
            ]
            COUNTS[label].append({"name": name, "t": float(timestep.flatten()[0]), "loaded": loaded})
            return executor(x, timestep, *args, **kwargs)

        patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "turbowan-test-label", wrap)
        return (patched,)


NODES = (TestHook, TestHookReport, TestModelLabel)
