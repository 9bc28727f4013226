"""Deterministic inputs: a text conditioning without an encoder, latents and images of any shape."""

from __future__ import annotations

import importlib

import torch

import nodes

CATEGORY = "testing"
SEED = ("INT", {"default": 0, "min": 0, "max": 2**32 - 1})


def _size(default: int, minimum: int = 0) -> tuple:
    return ("INT", {"default": default, "min": minimum, "max": 1 << 16})


class TestConditioning:
    """What CLIPTextEncode gives for umT5: ``words`` random rows, then zeros; ``fault`` spoils it on purpose."""

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {
            "required": {
                "seed": SEED,
                "tokens": _size(512),
                "width": _size(4096, 1),
                "batch": _size(1, 1),
                "words": _size(40),
                "fault": (["none", "nan", "empty_list", "two_dims"],),
            }
        }

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "make"
    CATEGORY = CATEGORY

    def make(self, seed: int, tokens: int, width: int, batch: int, words: int, fault: str) -> tuple:
        generator = torch.Generator().manual_seed(seed)
        text = torch.randn(batch, tokens, width, generator=generator)
        text[:, words:] = 0
        if fault == "nan":
            text[:, 0, 0] = float("nan")
        if fault == "two_dims":
            text = text[0]
        return ([] if fault == "empty_list" else [[text, {}]],)


class TestLatent:
    """A LATENT of zeros (seed 0) or noise; without frames when ``frames`` is 0."""

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {
            "required": {
                "seed": SEED,
                "channels": _size(16, 1),
                "frames": _size(2),
                "height": _size(8, 1),
                "width": _size(8, 1),
                "batch": _size(1, 1),
            }
        }

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "make"
    CATEGORY = CATEGORY

    def make(self, seed: int, channels: int, frames: int, height: int, width: int, batch: int) -> tuple:
        shape = (batch, channels, frames, height, width) if frames else (batch, channels, height, width)
        samples = torch.zeros(shape)
        if seed:
            samples = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        return ({"samples": samples},)


class TestImage:
    """A smooth random IMAGE batch."""

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"seed": SEED, "width": _size(64, 1), "height": _size(64, 1), "batch": _size(1, 1)}}

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "make"
    CATEGORY = CATEGORY

    def make(self, seed: int, width: int, height: int, batch: int) -> tuple:
        coarse = torch.rand(batch, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
        image = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
        return (image.movedim(1, -1).contiguous(),)


class _AnyType(str):
    """A type that the host takes for any other, as nodes that give file names have it."""

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = str.__hash__


class TestName:
    """A text that fits a menu."""

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"name": ("STRING", {})}}

    RETURN_TYPES = (_AnyType("*"),)
    FUNCTION = "make"
    CATEGORY = CATEGORY

    def make(self, name: str) -> tuple:
        return (name,)


class TestFp8Model:
    """TurboLoader with precision fp8 where it would be refused: its layers run dequantized on a CPU."""

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"file": ("STRING", {})}}

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "load"
    CATEGORY = CATEGORY

    def load(self, file: str) -> tuple:
        loader = nodes.NODE_CLASS_MAPPINGS["TurboLoader"]
        host = importlib.import_module("._host", loader.__module__.rpartition(".")[0])
        refuse = host.at_precision.check
        host.at_precision.check = lambda *_: None
        try:
            return (host.load_model(host.model_path(file), host.LoadSettings(attention="auto", precision="fp8")),)
        finally:
            host.at_precision.check = refuse


NODES = (TestConditioning, TestLatent, TestImage, TestName, TestFp8Model)
