"""Stage 1, the VAE: ``python -m turbowan.demo.train_vae --state work/vae.safetensors``.

    loss = mean |e| + 4·mean e² + mean |∂x e| + mean |∂y e| + KL_WEIGHT · KL(latents ‖ N(0, 1))

e is the decode less the clip, of latents mean + deviation·noise; KL is the mean over the latents' elements. Single
frames come first, then a mixture of lengths and sizes of about equally many pixels. In some clips all frames but the
first are grey, as in the condition of image to video.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch
from torch import Tensor

from turbowan.demo.clips import draw, draw_scenes
from turbowan.demo.stage import Losses, Settings, Stage, add_arguments
from turbowan.demo.vae_network import decode, encode, new_vae
from turbowan.demo.vocabulary import draw_triples
from turbowan.turbo_core.vae import WanVAE

WIDTH = 8
KL_WEIGHT = 1e-4
SQUARED = 4.0
GREY_SHARE = 0.15  # of the clips
STILL_SHARE = 0.2  # of the steps, at the beginning, on single frames alone
LOG_VARIANCE = (-12.0, 4.0)  # kept within


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A kind of batch; ``weight`` is how often it comes."""

    frames: int
    side: int
    clips: int
    weight: float


STILLS = Shape(frames=1, side=128, clips=192, weight=0.25)
SHAPES = (
    STILLS,
    Shape(frames=17, side=128, clips=12, weight=0.4),
    Shape(frames=33, side=96, clips=12, weight=0.2),
    Shape(frames=81, side=160, clips=2, weight=0.15),
)


def draw_shape(shapes: tuple[Shape, ...], generator: torch.Generator) -> Shape:
    weights = torch.tensor([shape.weight for shape in shapes])
    return shapes[torch.multinomial(weights, 1, generator=generator).item()]


def batch(shape: Shape, generator: torch.Generator, device: str) -> Tensor:
    """Clips [B, 3, T, H, W] of the trained triples, channels-last, some of them grey behind the first frame."""
    size = {"height": shape.side, "width": shape.side}
    triples = draw_triples(shape.clips, generator)
    # A single frame is one of a long clip: all phases of a motion are seen.
    scenes = draw_scenes(triples, frames=shape.frames, generator=generator, **size)
    x = draw(scenes, device=device, **size)
    grey = torch.rand(shape.clips, generator=generator) < GREY_SHARE
    x[:, :, 1:] *= (~grey).to(device, x.dtype).view(-1, 1, 1, 1, 1)
    return x.contiguous(memory_format=torch.channels_last_3d)


def losses(vae: WanVAE, x: Tensor, dtype: torch.dtype) -> Losses:
    mean, log_variance = encode(vae, x.to(dtype))
    log_variance = log_variance.clamp(*LOG_VARIANCE)
    z = mean + (log_variance / 2).exp() * torch.randn_like(mean)
    error = decode(vae, z.to(dtype)).float() - x
    squared = error.square().mean()
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    kl = (mean.square() + log_variance.exp() - 1 - log_variance).mean() / 2
    loss = error.abs().mean() + SQUARED * squared + edges + KL_WEIGHT * kl
    decibels = 10 * torch.log10(4 / squared.detach())
    return {"loss": loss, "dB": decibels, "kl": kl, "spread": mean.std(), "noise": (log_variance / 2).exp().mean()}


def train(settings: Settings, *, width: int = WIDTH, shapes: tuple[Shape, ...] = SHAPES) -> Stage:
    """Train until the stage's end or this call's."""
    if settings.device.startswith("cuda"):
        torch.backends.cudnn.benchmark = True
    dtype = torch.bfloat16 if settings.device.startswith("cuda") else torch.float32
    vae = new_vae(width, torch.Generator().manual_seed(settings.seed)).to(settings.device)
    stage = Stage(vae, settings)
    stills = tuple(shape for shape in shapes if shape.frames == 1)

    def losses_of(generator: torch.Generator) -> Losses:
        early = stage.step < STILL_SHARE * settings.steps
        shape = draw_shape(stills if early else shapes, generator)
        torch.manual_seed(torch.randint(2**31, (1,), generator=generator).item())  # the noise on the device
        return losses(vae, batch(shape, generator, settings.device), dtype)

    stage.run(losses_of)
    return stage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, state="work/vae.safetensors", steps=4000, rate=3e-3)
    arguments = parser.parse_args()
    train(Settings(**vars(arguments)))


if __name__ == "__main__":
    main()
