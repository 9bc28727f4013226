"""The finished transformers on held-out triples, many clips at once: what `evaluate` does, in seconds on a GPU.

    python -m turbowan.demo.check_dit demo/bundle/diffusion_models/TurboWanDemo-T2V-quant.pth
    python -m turbowan.demo.check_dit demo/bundle/diffusion_models/TurboWanDemo-I2V-high-quant.safetensors \\
        --low demo/bundle/diffusion_models/TurboWanDemo-I2V-low-quant.safetensors

The weights are those of the files, dequantized; activations are not quantized.
"""

from __future__ import annotations

import argparse
import itertools
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from turbowan.demo import dataset, paths, preview
from turbowan.demo.course import TEXT_ENCODER, VAE
from turbowan.demo.differentiable import Velocity
from turbowan.demo.vocabulary import HELD_OUT
from turbowan.turbo_core.block_int8 import dequantize_tensors
from turbowan.turbo_core.checkpoint import read
from turbowan.turbo_core.model import TurboWan
from turbowan.turbo_core.rcm import SIGMA_MAX_I2V, SIGMA_MAX_T2V
from turbowan.turbo_core.text_encoder import TextEncoder
from turbowan.turbo_core.vae import WanVAE
from turbowan.turbo_core.vae_weights import from_tensors

AT_ONCE = 40  # clips


def model_of(file: Path, device: torch.device) -> TurboWan:
    """A file's model with its weights as they dequantize."""
    checkpoint = read(file)
    model = TurboWan(replace(checkpoint.config, quantized=False))
    model.load(dequantize_tensors(checkpoint.tensors, torch.float32))
    return model.float().to(device)


def check(
    files: list[Path],
    vae: WanVAE,
    encoder: TextEncoder,
    steps: int,
    videos: int,
    *,
    side: int = 160,
    frames: int = dataset.FRAMES,
    topk: float = 0.1,
    picture: Path | None = None,
) -> float:
    """Share of right clips of held-out triples; `files` is one model, or the high and the low expert."""
    device = vae.device
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    velocities = [Velocity(model_of(file, device), dtype=dtype, topk=topk) for file in files]
    images = velocities[0].config.family == "i2v"
    triples = list(itertools.islice(itertools.cycle(HELD_OUT), videos))
    asked = preview.request(vae, encoder, triples, side=side, frames=frames, images=images, device=device)
    generator = torch.Generator(device).manual_seed(1)
    made = []
    for start in range(0, videos, AT_ONCE):
        rows = slice(start, start + AT_ONCE)
        condition = None if asked.condition is None else asked.condition[rows]
        field = paths.by_expert(
            [paths.field(velocity, asked.states[rows], condition=condition) for velocity in velocities]
        )
        sigma_max = SIGMA_MAX_I2V if images else SIGMA_MAX_T2V
        noise = asked.noise[rows]
        made.append(paths.few_steps(field, noise, steps, sigma_max, stochastic=not images, generator=generator))
    return preview.score(f"{files[0].name}, {steps} steps", asked, torch.cat(made), vae, picture)["held out"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="a text-to-video model, or the high expert of a pair")
    parser.add_argument("--low", type=Path, help="the low expert")
    parser.add_argument("--vae", type=Path, default=VAE)
    parser.add_argument("--steps", default="4,2,1", help="numbers of steps")
    parser.add_argument("--videos", type=int, default=200, help="of each number of steps")
    parser.add_argument("--pictures", type=Path, help="folder for a picture of some of them")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    vae = from_tensors(load_file(given.vae), device=given.device, dtype=torch.float32)
    encoder = TextEncoder.open(TEXT_ENCODER)
    files = [given.file] if given.low is None else [given.file, given.low]
    for steps in map(int, given.steps.split(",")):
        picture = None if given.pictures is None else given.pictures / f"{given.file.stem}_{steps}.png"
        check(files, vae, encoder, steps, given.videos, picture=picture)


if __name__ == "__main__":
    main()
