"""A text encoder without weights, as CLIPTextEncode and TurboPromptCache use one: equal texts give equal states."""

from __future__ import annotations

import zlib

import torch

CATEGORY = "testing"
TOKENS, WIDTH = 512, 64


class _Encoder:
    """Random rows by the text's checksum, one for each word, then zeros; ``fault`` spoils what comes with them."""

    def __init__(self, scale: float, fault: str) -> None:
        self.scale, self.fault = scale, fault

    def tokenize(self, text: str) -> str:
        return text

    def encode_from_tokens_scheduled(self, tokens: str) -> list:
        generator = torch.Generator().manual_seed(zlib.crc32(tokens.encode()))
        states = torch.zeros(1, TOKENS, WIDTH)
        words = len(tokens.split())
        states[:, :words] = self.scale * torch.randn(1, words, WIDTH, generator=generator)
        if self.fault == "nan":
            states[0, 0, 0] = float("nan")
        extras = {
            "pooled_output": torch.randn(1, WIDTH, generator=generator).half(),
            "attention_mask": torch.arange(TOKENS)[None] < words,
            "guidance": 3.5,
        }
        if self.fault == "hooks":
            extras["hooks"] = self
        return [[states, extras]]


class TestClip:
    """``encoder`` is looked at as the name of a file, and not opened."""

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"encoder": ("STRING", {}), "fault": (["none", "nan", "hooks"],)}}

    RETURN_TYPES = ("CLIP",)
    FUNCTION = "make"
    CATEGORY = CATEGORY

    def make(self, encoder: str, fault: str) -> tuple:
        return (_Encoder(1.0, fault),)


class TestClipScale:
    """As a LoRA between loader and encoder would: another encoder out of the one that comes."""

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"clip": ("CLIP",), "scale": ("FLOAT", {"default": 1.0})}}

    RETURN_TYPES = ("CLIP",)
    FUNCTION = "make"
    CATEGORY = CATEGORY

    def make(self, clip: _Encoder, scale: float) -> tuple:
        return (_Encoder(clip.scale * scale, clip.fault),)


NODES = (TestClip, TestClipScale)
