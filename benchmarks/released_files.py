"""Random model files in the released layout, as a user would have them in ComfyUI's models folder."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from turbowan.benchmarks import random_vae, synthetic
from turbowan.turbo_core.config import WanConfig

CHECKPOINT, VAE = "random-quant.pth", "random_wan_vae.safetensors"


def write(
    models: Path,
    config: WanConfig,
    vae_width: int,
    device: torch.device,
    *,
    texture: float = random_vae.TEXTURE,
) -> Path:
    """A quantized T2V checkpoint and a VAE under `models`; the checkpoint's path."""
    for folder in ("diffusion_models", "vae"):
        (models / folder).mkdir(parents=True, exist_ok=True)
    checkpoint = models / "diffusion_models" / CHECKPOINT
    torch.save(released_layout(synthetic.tensors(config, device, quantized=True)), checkpoint)
    save_file(random_vae.tensors(vae_width, texture=texture), models / "vae" / VAE)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return checkpoint


def released_layout(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Native names to those of released files: a 2-D patch embedding, `proj_l` two modules deeper."""
    released = {
        name.replace(".self_attn.proj_l.", ".self_attn.attn_op.local_attn.proj_l."): tensor.cpu()
        for name, tensor in tensors.items()
    }
    released["patch_embedding.weight"] = released["patch_embedding.weight"].flatten(1).contiguous()
    return released
