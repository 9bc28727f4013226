"""Patchers and VAEs in want of memory, a VAE of another kind, and a report of what is loaded."""

from __future__ import annotations

import copy
import os
import sys
from typing import Any

import comfy.model_management
import torch

from .probes import report

CATEGORY = "testing"


class TestPatcher:
    """The same MODEL with its patcher's class derived from.

    partial: only ``budget`` bytes are loaded, the other modules stream their weights. delegate: the clone that a
    patcher which says it is dynamic makes without streaming. (The dynamic patcher itself needs a GPU.) from_file: what
    is loaded completely is read from the file before, as it is for a GPU; from_changed_file: the file has another time
    by then.
    """

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {
            "required": {
                "model": ("MODEL",),
                "kind": (["partial", "delegate", "from_file", "from_changed_file"],),
                "budget": ("INT", {"default": 1, "min": 1, "max": 1 << 40}),
            }
        }

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "wrap"
    CATEGORY = CATEGORY

    def wrap(self, model: Any, kind: str, budget: int) -> tuple:
        patched = model.clone()
        if kind == "delegate":
            patched.__class__ = _dynamic(type(model))
            return (patched.clone(disable_dynamic=True),)
        if kind == "partial":
            patched.__class__ = _partial(type(model), budget)
        else:
            patched.__class__ = _from_file(type(model), changed=kind == "from_changed_file")
        return (patched,)


def _dynamic(base: type) -> type:
    class DynamicPatcher(base):
        def is_dynamic(self) -> bool:
            return True

    return DynamicPatcher


def _partial(base: type, budget: int) -> type:
    class PartialPatcher(base):
        def partially_load(self, device_to: torch.device, extra_memory: int = 0, **options: bool) -> int:
            return super().partially_load(device_to, budget, **options)

    return PartialPatcher


def _from_file(base: type, changed: bool) -> type:
    class FilePatcher(base):
        def load(self, *args: Any, **options: Any) -> None:
            if changed:
                os.utime(self.model.file_weights.file.path)
            self.model.file_weights.place(self.load_device, leave=self.patches.keys() | self.pinned)
            return super().load(*args, **options)

    return FilePatcher


class TestMemory:
    """Of each loaded model class, patcher, bytes in all, loaded and page-locked, and how many weights were placed."""

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
        "page_locked": patcher.pinned_memory_size() if hasattr(patcher, "pinned_memory_size") else 0,
        "from_file": len(patcher.model.file_weights._placed) if hasattr(patcher.model, "file_weights") else 0,
    }


class TestFileReads:
    """How many of a model's weights the host reads from their file by their marks, and how many rightly."""

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"model": ("MODEL",)}}

    RETURN_TYPES = ()
    FUNCTION = "read"
    OUTPUT_NODE = True
    CATEGORY = CATEGORY

    def read(self, model: Any) -> dict:
        import comfy.memory_management  # ComfyUI 0.8 has none

        counts = {"weights": 0, "read": 0, "equal": 0}
        for weight in model.model.diffusion_model.parameters():
            tensor = getattr(weight, "_qdata", weight).detach()
            destination = torch.zeros_like(tensor)
            read = comfy.memory_management.read_tensor_file_slice_into(tensor, destination)
            counts["weights"] += 1
            counts["read"] += read
            counts["equal"] += read and torch.equal(tensor, destination)
        return report(counts)


class TestGpuPatcher:
    """The class of the patcher that a model would get on a GPU of this host."""

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"model": ("MODEL",)}}

    RETURN_TYPES = ()
    FUNCTION = "make"
    OUTPUT_NODE = True
    CATEGORY = CATEGORY

    def make(self, model: Any) -> dict:
        make_patcher = sys.modules[type(model).__module__].make_patcher
        patcher = make_patcher(model.model, torch.device("cuda"), torch.device("cpu"), streaming=True)
        return report({"patcher": type(patcher).__name__})


class TestFullVAE:
    """The VAE as it is when the device's memory is full."""

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"vae": ("VAE",)}}

    RETURN_TYPES = ("VAE",)
    FUNCTION = "fill"
    CATEGORY = CATEGORY

    def fill(self, vae: Any) -> tuple:
        full = copy.copy(vae)
        full.encode = full.throw_exception_if_invalid = _run_out
        return (full,)


class TestImageVAE:
    """A VAE that is not Wan's: images of noise, at once, of any size."""

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        size = ("INT", {"default": 64, "min": 1, "max": 1 << 16})
        return {"required": {"frames": size, "height": size, "width": size, "channels": size}}

    RETURN_TYPES = ("VAE",)
    FUNCTION = "make"
    CATEGORY = CATEGORY

    def make(self, frames: int, height: int, width: int, channels: int) -> tuple:
        return (_NoiseVAE((frames, height, width, channels)),)


class _NoiseVAE:
    first_stage_model = None

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        return torch.rand(self.shape, generator=torch.Generator().manual_seed(0))


def _run_out(*args: Any) -> None:
    raise torch.OutOfMemoryError("Allocation on device")


NODES = (TestPatcher, TestMemory, TestFileReads, TestGpuPatcher, TestFullVAE, TestImageVAE)
