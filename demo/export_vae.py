"""The trained VAE as a file for ComfyUI and turbo_core, ``python -m turbowan.demo.export_vae OUT``.

Its latents get the mean and deviation that Wan publishes. With those of the trained latents, m and s per channel,

    a = STD / s        conv1:  W ← a·W,  b ← a·(b - m) + MEAN   for the means; b ← b + 2·ln a for the log-variances
                       conv2:  b ← b + W·(m - MEAN / a),  W ← W / a

With ``--decoder-of FILE`` the state is that of a decoder, which replaces the file's own.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from turbowan.demo.clips import draw, draw_scenes
from turbowan.demo.vocabulary import draw_triples
from turbowan.turbo_core.vae import LATENT_CHANNELS, LATENT_MEAN, LATENT_STD, WanVAE
from turbowan.turbo_core.vae_weights import from_tensors

SIZES = ((81, 160), (33, 128))  # frames and side of the clips that are measured
LICENSE = "CC0-1.0"


def averaged(state: Path) -> dict[str, Tensor]:
    """The averaged weights in a stage's file."""
    prefix = "average."
    return {name[len(prefix) :]: t.float() for name, t in load_file(state).items() if name.startswith(prefix)}


def statistics(vae: WanVAE, clips: int, seed: int) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel over the latents of ``clips`` clips of each size."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for frames, side in SIZES:
        for _ in range(clips):
            scenes = draw_scenes(
                draw_triples(1, generator), frames=frames, height=side, width=side, generator=generator
            )
            z = vae.encode(draw(scenes, height=side, width=side, device=vae.device))
            found.append(z.transpose(0, 1).flatten(1).cpu())
    values = torch.cat(found, 1)
    return values.mean(1), values.std(1)


@torch.no_grad()
def fold(vae: WanVAE, mean: Tensor, deviation: Tensor) -> None:
    """Give latents of that mean and deviation Wan's, in place; a decode of an encode stays what it was."""
    to_mean, to_deviation = (torch.tensor(values).to(vae.device) for values in (LATENT_MEAN, LATENT_STD))
    mean, deviation = mean.to(vae.device), deviation.to(vae.device)
    a = to_deviation / deviation
    first, second = vae.conv1, vae.conv2
    first.weight[:LATENT_CHANNELS] *= a[:, None, None, None, None]
    first.bias[:LATENT_CHANNELS] = a * (first.bias[:LATENT_CHANNELS] - mean) + to_mean
    first.bias[LATENT_CHANNELS:] += 2 * a.log()
    second.bias.add_(second.weight.flatten(1) @ (mean - to_mean / a))
    second.weight.div_(a[None, :, None, None, None])


def export(state: Path, out: Path, *, clips: int, seed: int, device: str) -> None:
    vae = from_tensors(averaged(state), device=device)
    fold(vae, *statistics(vae, clips, seed))
    save(vae.state_dict(), out)


def replace_decoder(state: Path, file: Path, out: Path) -> None:
    save(load_file(file) | averaged(state), out)


def save(tensors: dict[str, Tensor], out: Path) -> None:
    halves = {name: tensor.to(torch.float16).contiguous().cpu() for name, tensor in tensors.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(halves, out, metadata={"license": LICENSE, "made_by": "turbowan.demo"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--state", type=Path, default=Path("work/vae.safetensors"))
    parser.add_argument("--decoder-of", type=Path, help="the file that the state's decoder was trained for")
    parser.add_argument("--clips", type=int, default=48, help="of each size, for the latents' mean and deviation")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    if arguments.decoder_of is not None:
        replace_decoder(arguments.state, arguments.decoder_of, arguments.out)
        return
    export(arguments.state, arguments.out, clips=arguments.clips, seed=arguments.seed, device=arguments.device)


if __name__ == "__main__":
    main()
