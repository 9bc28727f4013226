"""The pack with a demo bundle: its own where it is complete, else one of random weights in a copy of links."""

from __future__ import annotations

from pathlib import Path

import tiny
import torch
from host.server import REPO
from safetensors.torch import save_file

from turbowan.turbo_core import demo_bundle
from turbowan.turbo_core.prompt_book import write_book

TEXT_DIM = 64
NEEDED = (demo_bundle.T2V, demo_bundle.VAE, demo_bundle.PROMPTS)


def is_shipped() -> bool:
    return all((demo_bundle.FOLDER / name).is_file() for name in NEEDED)


def pack_with_bundle(folder: Path, prompts: list[str]) -> Path:
    """A folder to link into custom_nodes: everything of the pack, and a random bundle that knows the prompts."""
    for entry in REPO.iterdir():
        if entry.name != "demo" and not entry.name.startswith("."):
            (folder / entry.name).symlink_to(entry)
    write_random_bundle(folder / "demo" / "bundle", prompts)
    return folder


def write_random_bundle(folder: Path, prompts: list[str]) -> None:
    for file in NEEDED:
        (folder / file).parent.mkdir(parents=True)
    tiny.save_pth(folder / demo_bundle.T2V, tiny.tiny_tensors(text_dim=TEXT_DIM, quantized=True, seed=1))
    save_file(tiny.tiny_vae_tensors(), folder / demo_bundle.VAE)
    generator = torch.Generator().manual_seed(0)
    states = torch.nn.functional.pad(torch.randn(1, 12, TEXT_DIM, generator=generator), (0, 0, 0, 500))
    write_book(folder / demo_bundle.PROMPTS, {prompt: [[states, {"pooled_output": None}]] for prompt in prompts})
