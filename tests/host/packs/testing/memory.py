"""Patchers that load only part of a model, and a report of what is loaded."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.model_patcher
import torch

from .probes import report

CATEGORY = "testing"


class TestPatcher:
    """The same MODEL under a chosen patcher.

    classic: the host's ModelPatcher, everything loaded; partial: the same with only ``budget`` bytes loaded, the
    other modules streaming their weights. (The dynamic patcher needs a GPU: on the CPU the host itself takes the
    classic one instead.)
    """

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {
            "required": {
                "model": ("MODEL",),
                "kind": (["classic", "partial"],),
                "budget": ("INT", {"default": 1, "min": 1, "max": 1 << 40}),
            }
        }

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "wrap"
    CATEGORY = CATEGORY

    def wrap(self, model: Any, kind: str, budget: int) -> tuple:
        base = comfy.model_patcher.ModelPatcher
        patched = model.clone()
        patched.__class__ = base if kind != "partial" else _partial(base, budget)
        return (patched,)


def _partial(base: type, budget: int) -> type:
    class PartialPatcher(base):
        def partially_load(self, device_to: torch.device, extra_memory: int = 0, **options: bool) -> int:
            return super().partially_load(device_to, budget, **options)

    return PartialPatcher


class TestMemory:
    """The loaded models by class, with patcher, size and loaded size."""

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"samples": ("LATENT",)}}

    RETURN_TYPES = ()
    FUNCTION = "read"
    OUTPUT_NODE = True
    CATEGORY = CATEGORY

    def read(self, samples: dict) -> dict:
        return report({"models": [_describe(m.model) for m in comfy.model_management.current_loaded_models]})


def _describe(patcher: Any) -> dict:
    return {
        "class": type(patcher.model).__name__,
        "patcher": type(patcher).__name__,
        "size": patcher.model_size(),
        "loaded": patcher.loaded_size(),
    }


NODES = (TestPatcher, TestMemory)
