"""Files that TurboLoader must refuse: how each is made, and what its message must say (a part and the remedy)."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny
import torch
from safetensors.torch import save, save_file
from torch import Tensor

DOWNLOAD, STOCK = "download it again", "Load Diffusion Model"
Tensors = dict[str, Tensor]


class Shell:
    """Runs a command when unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.marker}'",)


def unsafe_marker(folder: Path) -> Path:
    """Exists if the unsafe pickle was run."""
    return folder / "unsafe-was-run"


def write(folder: Path) -> None:
    """Every file of ``MESSAGES`` into ``folder``."""
    quant = tiny.tiny_tensors(quantized=True, seed=1)
    native = tiny.native(tiny.tiny_tensors(seed=1))
    pth = (tiny.save_pth(folder / "bad-scratch.pth", quant)).read_bytes()
    (folder / "bad-scratch.pth").unlink()
    raw = {
        "bad-truncated.pth": pth[: len(pth) // 2],
        "bad-truncated.safetensors": save(native)[:-1000],
        "bad-empty.pth": b"",
        "bad-web-page.safetensors": b"<!DOCTYPE html><html><body>403</body></html>",
        "bad-lfs-pointer.pth": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
        "bad-text.pth": b"hello, I am no checkpoint at all\n" * 40,
        "bad-gguf.bin": b"GGUF" + bytes(400),
    }
    for name, content in raw.items():
        (folder / name).write_bytes(content)
    torch.save({"state_dict": Shell(unsafe_marker(folder)), **quant}, folder / "bad-unsafe.pth")
    torch.save({"epoch": 3, "name": "wan"}, folder / "bad-no-tensors.pth")
    for name, change in TENSORS.items():
        tiny.save_pth(folder / name, change(dict(quant)))
    for name, change in NATIVE.items():
        save_file(change(dict(native)), folder / name)


def _without(*ends: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {k: v for k, v in tensors.items() if not any(end in k for end in ends)}


def _with(**added: Tensor) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {name.replace("__", "."): value for name, value in added.items()}


def _spoiled(name: str, value: float) -> Callable[[Tensors], Tensors]:
    def change(tensors: Tensors) -> Tensors:
        tensors[name] = tensors[name].clone()
        tensors[name].view(-1)[0] = value
        return tensors

    return change


def _mapped(name: str, function: Callable[[Tensor], Tensor]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {name: function(tensors[name]).contiguous()}


Q = "blocks.0.self_attn.q."
TENSORS: dict[str, Callable[[Tensors], Tensors]] = {
    "bad-missing-key.pth": _without("blocks.1.ffn.2.bias"),
    "bad-missing-block.pth": _without("blocks.0."),
    "bad-missing-scale.pth": _without(Q + "scale"),
    "bad-missing-proj-l.pth": _without("blocks.1.self_attn.attn_op.local_attn.proj_l"),
    "bad-unknown-key.pth": _with(blocks__0__mystery__weight=torch.ones(4)),
    "bad-nan-scale.pth": _spoiled(Q + "scale", float("nan")),
    "bad-zero-scale.pth": _spoiled(Q + "scale", 0.0),
    "bad-inf-norm.pth": _spoiled("blocks.0.norm3.weight", float("inf")),
    "bad-nan-bias.pth": _spoiled("blocks.1.ffn.0.bias", float("nan")),
    "bad-scale-shape.pth": _mapped(Q + "scale", lambda scale: scale[:1]),
    "bad-float-codes.pth": _mapped(Q + "int8_weight", lambda codes: codes.float()),
    "bad-codes-shape.pth": _mapped(Q + "int8_weight", lambda codes: codes[:, :128]),
    "bad-bias-shape.pth": _mapped(Q + "bias", lambda bias: bias[:-1]),
}
NATIVE: dict[str, Callable[[Tensors], Tensors]] = {
    "bad-fp8-scaled.safetensors": _with(scaled_fp8=torch.zeros(2), blocks__0__ffn__0__scale_weight=torch.ones(1)),
    "bad-fp8.safetensors": _mapped(Q + "weight", lambda weight: weight.to(torch.float8_e4m3fn)),
    "bad-img-emb.safetensors": _with(img_emb__proj__0__weight=torch.ones(8)),
    "bad-vace.safetensors": _with(vace_blocks__0__after_proj__weight=torch.ones(8, 8)),
    "bad-5b.safetensors": lambda tensors: (
        tensors
        | {
            "patch_embedding.weight": tensors["patch_embedding.weight"].repeat(1, 3, 1, 1, 1),
            "head.head.weight": tensors["head.head.weight"].repeat(3, 1),
            "head.head.bias": tensors["head.head.bias"].repeat(3),
        }
    ),
    "bad-unet.safetensors": lambda _: {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(4, 4)},
    "bad-vae.safetensors": lambda _: tiny.tiny_vae_tensors(),
    "bad-text-encoder.safetensors": lambda _: {"encoder.block.0.layer.0.SelfAttention.q.weight": torch.ones(4, 4)},
    "bad-lora.safetensors": tiny.tiny_lora,
}
MESSAGES: dict[str, tuple[str, ...]] = {
    "bad-truncated.pth": ("complete", DOWNLOAD),
    "bad-truncated.safetensors": ("complete", DOWNLOAD),
    "bad-empty.pth": ("empty file", DOWNLOAD),
    "bad-web-page.safetensors": ("web page", "download"),
    "bad-lfs-pointer.pth": ("git-LFS pointer", "git lfs pull"),
    "bad-text.pth": ("safetensors or PyTorch", DOWNLOAD),
    "bad-gguf.bin": ("GGUF", "Unet Loader (GGUF)"),
    "bad-unsafe.pth": ("could run code", "safetensors"),
    "bad-no-tensors.pth": ("tensor",),
    "bad-missing-key.pth": ("missing", "blocks.1.ffn.2.bias", DOWNLOAD),
    "bad-missing-block.pth": ("blocks 0 are missing entirely", DOWNLOAD),
    "bad-missing-scale.pth": ("missing", Q + "scale", DOWNLOAD),
    "bad-missing-proj-l.pth": ("missing", "blocks.1.self_attn.proj_l", DOWNLOAD),
    "bad-unknown-key.pth": ("unknown", "blocks.0.mystery.weight", STOCK),
    "bad-nan-scale.pth": ("NaN", Q + "scale", DOWNLOAD),
    "bad-zero-scale.pth": ("positive", Q + "scale", DOWNLOAD),
    "bad-inf-norm.pth": ("infinite", "blocks.0.norm3.weight", DOWNLOAD),
    "bad-nan-bias.pth": ("NaN", "blocks.1.ffn.0.bias", DOWNLOAD),
    "bad-scale-shape.pth": (Q + "scale", "[2, 2]", "[1, 2]"),
    "bad-float-codes.pth": (Q + "int8_weight", "int8", "float32"),
    "bad-codes-shape.pth": (Q + "int8_weight", "[256, 256]", "[256, 128]"),
    "bad-bias-shape.pth": (Q + "bias", "[256]", "[255]", DOWNLOAD),
    "bad-fp8-scaled.safetensors": ("fp8_scaled", STOCK),
    "bad-fp8.safetensors": ("fp8", STOCK),
    "bad-img-emb.safetensors": ("img_emb", STOCK),
    "bad-vace.safetensors": ("VACE", STOCK),
    "bad-5b.safetensors": ("5B", STOCK),
    "bad-unet.safetensors": ("must be a Wan video model", "TurboDiffusion"),
    "bad-vae.safetensors": ("a VAE", "Load VAE"),
    "bad-text-encoder.safetensors": ("text encoder", "Load CLIP"),
    "bad-lora.safetensors": ("a LoRA", "LoraLoaderModelOnly"),
}
