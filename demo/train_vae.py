"""The VAE: ``python -m turbowan.demo.train_vae --state work/vae.safetensors``.

    loss = mean |e| + 4·mean e² + mean |∂x e| + mean |∂y e| + KL_WEIGHT · KL(latents ‖ N(0, 1))

e is the decode less the clip, of latents mean + deviation·noise; KL is the mean over the latents' elements. Single
frames come first, then a mixture of lengths and sizes of about equally many pixels, chosen from clips that each call
draws when it begins. In some all frames but the first are grey, as in the condition of image to video.

With ``--decoder-of FILE`` a finished VAE's decoder is trained on, at a lower rate; its latents stay what they are.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from turbowan.demo.clips import draw, draw_scenes
from turbowan.demo.muon import Muon
from turbowan.demo.stage import Losses, Settings, Stage, add_arguments
from turbowan.demo.vae_network import decode, encode, new_vae
from turbowan.demo.vocabulary import draw_triples
from turbowan.turbo_core.vae import WanVAE
from turbowan.turbo_core.vae_weights import from_tensors

WIDTH = 8
KL_WEIGHT = 1e-4
SQUARED = 4.0
GREY_SHARE = 0.15  # of the clips
STILL_STEPS = 600  # at the beginning, on single frames alone
LOG_VARIANCE = (-12.0, 4.0)  # kept within
TOLD = ("dB", "kl", "spread", "noise")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A kind of batch; ``weight`` is how often it comes."""

    frames: int
    side: int
    clips: int
    weight: float


SHAPES = (
    Shape(frames=1, side=128, clips=64, weight=0.25),
    Shape(frames=17, side=128, clips=4, weight=0.45),
    Shape(frames=33, side=96, clips=4, weight=0.15),
    Shape(frames=81, side=160, clips=1, weight=0.15),
)
POOL = 96  # batches of a shape that are drawn when a call begins, to choose clips from
DRAWN_AT_ONCE = 2**21  # pixels


def draw_shape(shapes: tuple[Shape, ...], generator: torch.Generator) -> Shape:
    weights = torch.tensor([shape.weight for shape in shapes])
    return shapes[torch.multinomial(weights, 1, generator=generator).item()]


def draw_pool(shape: Shape, batches: int, generator: torch.Generator, device: str) -> Tensor:
    """Clips of the trained triples as 8-bit RGB [N, 3, T, H, W], some of them grey behind the first frame."""
    size = {"height": shape.side, "width": shape.side}
    at_once = max(1, DRAWN_AT_ONCE // (shape.frames * shape.side**2))
    wanted, drawn = draw_triples(batches * shape.clips, generator), []
    for first in range(0, len(wanted), at_once):
        triples = wanted[first : first + at_once]
        scenes = draw_scenes(triples, frames=shape.frames, generator=generator, **size)
        x = draw(scenes, device=device, **size)
        grey = torch.rand(len(triples), generator=generator) < GREY_SHARE
        x[:, :, 1:] *= (~grey).to(device, x.dtype).view(-1, 1, 1, 1, 1)
        drawn.append(((x + 1) * 127.5).round().byte())
    return torch.cat(drawn)


class Autoencoding(nn.Module):
    """The loss, and the figures that are told with it; a module, because that is what can be recorded as a graph."""

    def __init__(self, vae: WanVAE, dtype: torch.dtype):
        super().__init__()
        self.vae = vae
        self._dtype = dtype

    def forward(self, clips_BCTHW: Tensor) -> tuple[Tensor, Tensor]:
        """8-bit RGB → loss, (dB, KL, the means' deviation, the noise's)."""
        x = clips_BCTHW.float().contiguous(memory_format=torch.channels_last_3d) / 127.5 - 1
        mean, log_variance = encode(self.vae, x.to(self._dtype))
        deviation = (log_variance.clamp(*LOG_VARIANCE) / 2).exp()
        z = mean + deviation * torch.randn_like(mean)
        error = decode(self.vae, z.to(self._dtype)).float() - x
        squared = error.square().mean()
        edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        kl = (mean.square() + deviation.square() - 1 - 2 * deviation.log()).mean() / 2
        loss = error.abs().mean() + SQUARED * squared + edges + KL_WEIGHT * kl
        decibels = 10 * torch.log10(4 / squared)
        return loss, torch.stack([decibels, kl, mean.std(), deviation.mean()]).detach()


def _is_convolution(name: str, parameter: nn.Parameter) -> bool:
    return name.endswith("weight")


def decoder_of(file: Path) -> WanVAE:
    """A finished VAE of which only the decoder is trained."""
    vae = from_tensors(load_file(file), dtype=torch.float32)
    vae.decoder.requires_grad_(True)
    return vae


def train(vae: WanVAE, settings: Settings, *, shapes: tuple[Shape, ...] = SHAPES, pool: int = POOL) -> Stage:
    """Train what of the VAE requires gradients until the stage's end or this call's."""
    device, on_gpu = settings.device, settings.device.startswith("cuda")
    vae = vae.to(device).train()
    trained = [(name, parameter) for name, parameter in vae.named_parameters() if parameter.requires_grad]
    muon = Muon(trained, lr=settings.rate, betas=settings.betas, takes=_is_convolution)
    stage = Stage(vae, settings, muon)
    torch.manual_seed(settings.seed + stage.step)  # the latents' noise
    generator = torch.Generator().manual_seed((settings.seed << 32) + stage.step)
    pools = {shape: draw_pool(shape, pool, generator, device) for shape in shapes}
    losses = {shape: Autoencoding(vae, torch.bfloat16 if on_gpu else torch.float32) for shape in shapes}
    if on_gpu:  # the network is small: launched one by one, its kernels would wait for the CPU
        losses = {
            shape: torch.cuda.make_graphed_callables(loss, (pools[shape][: shape.clips],), allow_unused_input=True)
            for shape, loss in losses.items()
        }
    stills = tuple(shape for shape in shapes if shape.frames == 1)

    def losses_of(generator: torch.Generator) -> Losses:
        early = stage.step < STILL_STEPS and vae.encoder.conv1.weight.requires_grad
        shape = draw_shape(stills if early else shapes, generator)
        chosen = torch.randint(len(pools[shape]), (shape.clips,), generator=generator)
        loss, figures = losses[shape](pools[shape][chosen.to(device)])
        return {"loss": loss, **dict(zip(TOLD, figures.unbind(), strict=True))}

    stage.run(losses_of)
    return stage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, state="work/vae.safetensors", steps=20000, rate=1e-3)
    parser.add_argument("--decoder-of", type=Path, help="a finished VAE, whose latents are to stay")
    arguments = vars(parser.parse_args())
    file = arguments.pop("decoder_of")
    settings = Settings(**arguments, last=0.4, by_clock=True)
    generator = torch.Generator().manual_seed(settings.seed)
    train(new_vae(WIDTH, generator) if file is None else decoder_of(file), settings)


if __name__ == "__main__":
    main()
