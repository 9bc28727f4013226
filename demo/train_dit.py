"""The transformer by flow matching, on latents of the demo's VAE: each call is a stage of its own.

    x_t = (1 - t)·x0 + t·n        loss = mean |v(x_t, t, text) - (n - x0)|²

Times are those of a logistic-normal u, shifted to where little is left of the picture, t = s·u / (1 + (s - 1)·u), and
some of a uniform one; an expert of image to video is trained in its own range alone. A tenth of the prompts is empty.
Small clips with full attention come first, then the full size with sparse attention and for a share of the clips an
image as condition, then the two experts of image to video from that:

    python -m turbowan.demo.train_dit --state work/small.safetensors --side 80 --batch 128
    python -m turbowan.demo.train_dit --state work/full.safetensors --start work/small.safetensors --topk 0.1 \
        --images 0.35
    python -m turbowan.demo.train_dit --state work/i2v.safetensors --start work/full.safetensors --topk 0.1 \
        --expert pair
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from turbowan.demo import dataset, initial, paths, preview
from turbowan.demo.course import BaseCourse, add_course_arguments, parsed
from turbowan.demo.dataset import Dataset, Drawn
from turbowan.demo.differentiable import Velocity, trainable
from turbowan.demo.export_vae import averaged
from turbowan.demo.muon import Muon
from turbowan.demo.regression import recorded
from turbowan.demo.stage import Settings, Stage, add_arguments
from turbowan.demo.text_encoder import D_MODEL
from turbowan.turbo_core.config import I2V_CHANNELS, T2V_CHANNELS
from turbowan.turbo_core.model import TurboWan
from turbowan.turbo_core.rcm import BOUNDARY_I2V, SIGMA_MAX_I2V, SIGMA_MAX_T2V
from turbowan.turbo_core.text_encoder import TextEncoder
from turbowan.turbo_core.vae import WanVAE
from turbowan.turbo_core.vae_weights import from_tensors

NOTHING = 0.1  # share of empty prompts
UNIFORM = 0.15  # share of times that are uniform


@dataclass(frozen=True)
class Span:
    """The times that a model is for, and how far they are shifted to the later ones."""

    low: float = 0.0
    high: float = 1.0
    shift: float = 5.0

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        u = torch.randn(count, generator=generator).sigmoid()
        u = self.shift * u / (1 + (self.shift - 1) * u)
        plain = torch.rand(2, count, generator=generator)
        return self.low + (self.high - self.low) * torch.where(plain[0] < UNIFORM, plain[1], u)


SPANS = {None: Span(), "high": Span(BOUNDARY_I2V, 1.0, 1.0), "low": Span(0.0, BOUNDARY_I2V, 3.0)}


@dataclass(frozen=True, kw_only=True)
class Course(BaseCourse):
    """What one stage is about."""

    start: Path | None = None
    expert: str | None = None
    other: Path | None = None
    """The other expert's file, without which there are no previews of an expert."""
    images: float | None = None
    """Share of the clips with an image; the model then has the channels for it. An expert's clips all have one."""
    clips: int = 4096
    image_clips: int = 0
    """How many of the clips may have an image."""
    guidance: float = 1.0
    """To try beside none at the end."""


def new_model(in_dim: int, start: Path | None, device: str, seed: int = 0) -> TurboWan:
    """A model to be trained: new, or from another stage's averages.

    Where the channels differ, those of mask and image come new, without a say, or are left out.
    """
    model = TurboWan(initial.config(in_dim=in_dim, text_dim=D_MODEL))
    initial.initialize(model, seed)
    if start is not None:
        weights = averaged(start)
        patch = weights["patch_embedding.weight"]
        added = patch.new_zeros(patch.shape[0], max(0, in_dim - patch.shape[1]), *patch.shape[2:])
        weights["patch_embedding.weight"] = torch.cat((patch[:, :in_dim], added), dim=1)
        model.load(weights)
    trainable(model)
    return model.to(device)


def noised(drawn: Drawn, t: Tensor, noise: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The model's input at times t and the velocity there."""
    clean = drawn.latents.float()
    x = torch.lerp(clean, noise, t.view(-1, 1, 1, 1, 1)).to(dtype)
    if drawn.condition is not None:
        x = torch.cat((x, drawn.condition.to(dtype)), dim=1)
    return x, noise - clean


@dataclass(frozen=True)
class Material:
    """What the stages of one call share."""

    vae: WanVAE
    encoder: TextEncoder
    data: Dataset


def gather(settings: Settings, course: Course) -> Material:
    """Read VAE and text encoder, and make the clips."""
    device = torch.device(settings.device)
    vae = from_tensors(load_file(course.vae), device=device, dtype=torch.float32)
    encoder = TextEncoder.open(course.text_encoder)
    began = time.monotonic()
    data = dataset.make(
        vae,
        encoder,
        course.clips,
        side=course.side,
        frames=course.frames,
        generator=torch.Generator().manual_seed(settings.seed),
        device=device,
        images=course.image_clips,
    )
    told = f"{len(data)} clips of latents {tuple(data.latents.shape[1:])}"
    print(f"{told} in {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)
    return Material(vae, encoder, data)


def train(settings: Settings, course: Course, material: Material | None = None) -> Stage:
    """One call of a stage; its minutes are those of the training alone."""
    material = material or gather(settings, course)
    data = material.data
    device = torch.device(settings.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.set_float32_matmul_precision("high")
    images = course.images if course.expert is None else 1.0
    model = new_model(T2V_CHANNELS if images is None else I2V_CHANNELS, course.start, settings.device, settings.seed)
    velocity = Velocity(model, dtype=dtype, topk=course.topk, compiled=device.type == "cuda")
    stage = Stage(model, settings, Muon(model.named_parameters(), lr=settings.rate))
    span = SPANS[course.expert]

    def drawn(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        batch = dataset.draw_batch(data, course.batch, generator, nothing=NOTHING, images=images)
        t = span.draw(course.batch, generator).to(device)
        torch.manual_seed(torch.randint(2**31, (1,), generator=generator).item())  # the noise on the device
        x, target = noised(batch, t, torch.randn(batch.latents.shape, device=device), dtype)
        return x, t, batch.prompts.states, target

    loss = recorded(velocity, drawn(torch.Generator().manual_seed(0)))
    stage.run(lambda generator: {"loss": loss(*drawn(generator))})
    stage.use_average()
    if course.previews and (course.expert is None or course.other is not None):
        look(stage, course, material, dtype)
    return stage


def train_pair(settings: Settings, course: Course, material: Material | None = None) -> None:
    """Both experts on the same clips, each for half of the minutes; to the state's name with theirs added."""
    material = material or gather(settings, replace(course, image_clips=course.clips))
    files = {
        expert: settings.state.with_name(f"{settings.state.stem}_{expert}{settings.state.suffix}")
        for expert in ("high", "low")
    }
    for expert, other in (("high", None), ("low", files["high"])):
        of_expert = replace(settings, state=files[expert], minutes=settings.minutes / 2)
        train(of_expert, replace(course, expert=expert, other=other), material)


def look(stage: Stage, course: Course, material: Material, dtype: torch.dtype) -> None:
    """Clips by the averaged weights, in many steps and in four."""
    vae, data = material.vae, material.data
    device = data.latents.device
    images = course.expert is not None
    asked = preview.request(
        vae,
        material.encoder,
        preview.mixed(course.previews),
        side=course.side,
        frames=course.frames,
        images=images,
        device=device,
    )
    models = [stage.model]
    if not images and course.images is not None:
        models = [new_model(T2V_CHANNELS, stage.settings.state, str(device))]
    if course.other is not None:
        models.append(new_model(I2V_CHANNELS, course.other, str(device)))
    experts = [Velocity(model, dtype=dtype, topk=course.topk) for model in models]
    if course.expert == "low":
        experts.reverse()
    sigma_max = SIGMA_MAX_I2V if images else SIGMA_MAX_T2V
    times = paths.ode_times(sigma_max)

    def of(guidance: float) -> paths.Field:
        given = {"condition": asked.condition, "nothing": data.nothing, "guidance": guidance}
        return paths.by_expert([paths.field(velocity, asked.states, **given) for velocity in experts])

    def show(name: str, latents: Tensor) -> None:
        file = f"{stage.settings.state.stem}_{name.replace(' ', '_')}.png"
        preview.score(name, asked, latents, vae, None if course.pictures is None else course.pictures / file)

    for guidance in sorted({1.0, course.guidance}):
        show(f"ODE guidance {guidance:g}", paths.ode(of(guidance), asked.noise * times[0], times)[-1])
    generator = torch.Generator(device).manual_seed(1)
    four = paths.few_steps(of(1.0), asked.noise, 4, sigma_max, stochastic=not images, generator=generator)
    show("4 steps", four)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, state="work/small.safetensors", steps=20000, rate=2e-3)
    add_course_arguments(parser, Course)
    parser.add_argument("--start", type=Path, help="another stage's file to take the weights from")
    parser.add_argument("--expert", choices=("high", "low", "pair"), help="train this of image to video")
    parser.add_argument("--other", type=Path, help="the other expert's file, for the clips made at the end")
    parser.add_argument("--clips", type=int, default=Course.clips, help="to draw and encode for the training")
    parser.add_argument("--images", type=float, help="share of the clips that have an image as condition")
    parser.add_argument("--image-clips", type=int, default=512, help="how many of the clips may have one")
    parser.add_argument("--guidance", type=float, default=3.0, help="to try beside none at the end")
    settings, course = parsed(parser, Course, warmup=50)
    if course.images is None:
        course = replace(course, image_clips=0)
    (train_pair if course.expert == "pair" else train)(settings, course)


if __name__ == "__main__":
    main()
