"""Distillation to the schedule of rCM: one evaluation is to give what the teacher's whole ODE gives.

    v_student(x_t, t) → (x_t - x0) / t,     x0 = end of the teacher's ODE from x_t, with guidance

at the schedule's times t alone, on states of two kinds: those on the teacher's own way down from noise, which share one
x0, and those where the student's first steps led, which teach it to mend what these left open. The pairs are kept in a
pool that the training draws from and that is renewed bit by bit.

    python -m turbowan.demo.distil --state work/t2v.safetensors --start work/full.safetensors
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from turbowan.demo import dataset, paths, preview
from turbowan.demo.course import BaseCourse, add_course_arguments, parsed
from turbowan.demo.differentiable import Velocity
from turbowan.demo.muon import Muon
from turbowan.demo.regression import recorded
from turbowan.demo.stage import Losses, Settings, Stage, add_arguments
from turbowan.demo.train_dit import new_model
from turbowan.demo.vocabulary import BACKGROUNDS, LESSONS, caption, draw_triples
from turbowan.turbo_core import rcm
from turbowan.turbo_core.config import T2V_CHANNELS
from turbowan.turbo_core.text_encoder import TextEncoder
from turbowan.turbo_core.vae import LATENT_CHANNELS, latent_size
from turbowan.turbo_core.vae_weights import from_tensors

SIGMA_MAX = rcm.SIGMA_MAX_T2V
NODES = rcm.MAX_STEPS  # times at which the student is asked
WAYS = (0, 1, 0, 2, 0, 3)  # node from which a round's teacher starts, in turns; 0 is noise, to others the student leads
ROUNDS_OF_BATCH = 4  # that a training batch is drawn from
FIRST_COUNTS = 3  # times that a pair from noise alone counts: it is the hardest to learn


@dataclass(frozen=True, kw_only=True)
class Course(BaseCourse):
    """What the distillation is about."""

    start: Path
    topk: float = 0.1
    at_once: int = 32
    """Clips of a round of the teacher's."""
    rounds: int = 12
    """Of the teacher's before the training begins; the pool's size."""
    steps_of_round: int = 12
    """Training steps from one new round to the next."""
    captions: int = 2000
    guidance: float = 3.0
    """Of the teacher."""


class Pool:
    """Pairs of a state and the velocity that leads from it to x0; a full pool replaces its oldest."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._pairs: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []  # x, t, states, target; one entry a round
        self._next = 0

    def add(self, x: Tensor, t: Tensor, states: Tensor, target: Tensor) -> None:
        entry = x.to(torch.bfloat16), t, states, target.to(torch.bfloat16)
        if len(self._pairs) < self.size:
            self._pairs.append(entry)
        else:
            self._pairs[self._next] = entry
            self._next = (self._next + 1) % self.size

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A batch of equal parts of some rounds."""
        rounds = torch.randint(len(self._pairs), (ROUNDS_OF_BATCH,), generator=generator).tolist()
        parts = []
        for number in rounds:
            entry = self._pairs[number]
            index = torch.randint(len(entry[0]), (count // ROUNDS_OF_BATCH,), generator=generator).to(entry[0].device)
            parts.append([tensor[index] for tensor in entry])
        x, t, states, target = (torch.cat(column) for column in zip(*parts, strict=True))
        return x, t, states, target


class Rounds:
    """Makes pairs: in turn on the teacher's way from noise, and from where the student's first steps led."""

    def __init__(
        self,
        teacher: Velocity,
        student: Velocity,
        captions: Tensor,
        nothing: Tensor,
        course: Course,
        device: torch.device,
    ) -> None:
        self.teacher, self.student, self.captions, self.nothing = teacher, student, captions, nothing
        self.course, self.device = course, device
        self._made = 0
        self._shape = (course.at_once, LATENT_CHANNELS, *latent_size(course.frames, course.side, course.side))

    @torch.no_grad()
    def make(self, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x [N, 16, T, H, W], t [N], states [N, rows, D], target velocities."""
        index = torch.randint(len(self.captions), (self.course.at_once,), generator=generator).to(self.device)
        states = self.captions[index]
        noise = torch.Generator(self.device).manual_seed(torch.randint(2**31, (1,), generator=generator).item())
        field = paths.field(self.teacher, states, nothing=self.nothing, guidance=self.course.guidance)
        first = WAYS[self._made % len(WAYS)]
        self._made += 1
        x = self._student_state(states, first, noise) if first else self._noise(noise) * paths.ode_times(SIGMA_MAX)[0]
        times = paths.ode_times(SIGMA_MAX, first)
        walked = paths.ode(field, x, times)
        end = walked[-1]
        # Of the teacher's way from noise all nodes, else the one that the student came to.
        nodes = rcm.schedule(NODES, SIGMA_MAX).tolist()[first : NODES if first == 0 else first + 1]
        at = [min(range(len(times)), key=lambda i: abs(times[i] - node)) for node in nodes]
        at = [0] * (FIRST_COUNTS - 1) + at if first == 0 else at
        xs = torch.cat([walked[i] for i in at])
        t = torch.cat([torch.full((len(x),), times[i], device=self.device) for i in at])
        target = torch.cat([(walked[i] - end) / times[i] for i in at])
        return xs, t, states.repeat(len(at), 1, 1), target

    def _student_state(self, states: Tensor, node: int, noise: torch.Generator) -> Tensor:
        times = rcm.schedule(NODES, SIGMA_MAX)
        field = paths.field(self.student, states)
        x = self._noise(noise) * float(times[0])
        return rcm.sample(
            lambda x, t: x - t * field(x, t),
            x,
            times[: node + 1],
            stochastic=True,
            noise=lambda: self._noise(noise),
        ).float()

    def _noise(self, generator: torch.Generator) -> Tensor:
        return torch.randn(self._shape, generator=generator, device=self.device)


def train(settings: Settings, course: Course) -> Stage:
    """One call of the stage; its minutes are those of the training alone."""
    began = time.monotonic()
    device = torch.device(settings.device)
    on_gpu = device.type == "cuda"
    dtype = torch.bfloat16 if on_gpu else torch.float32
    torch.set_float32_matmul_precision("high")
    encoder = TextEncoder.open(course.text_encoder)
    generator = torch.Generator().manual_seed(settings.seed)
    grounds = (*BACKGROUNDS, None)
    texts = [
        caption(triple, grounds[int(torch.randint(len(grounds), (1,), generator=generator))], generator)
        for triple in draw_triples(course.captions, generator, LESSONS)
    ]
    states = dataset.text_states(encoder, ["", *texts], device)
    teacher = Velocity(
        new_model(T2V_CHANNELS, course.start, settings.device).requires_grad_(False),
        dtype=dtype,
        topk=course.topk,
        compiled=on_gpu,
    )
    model = new_model(T2V_CHANNELS, course.start, settings.device)
    stage = Stage(model, settings, Muon(model.named_parameters(), lr=settings.rate))
    velocity = Velocity(model, dtype=dtype, topk=course.topk, compiled=on_gpu)
    walking = Velocity(model, dtype=dtype, topk=course.topk)
    rounds = Rounds(teacher, walking, states[1:], states[0], course, device)
    pool = Pool(course.rounds)
    for _ in range(course.rounds):
        pool.add(*rounds.make(generator))

    def drawn(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x, t, states, target = pool.draw(course.batch, generator)
        return x.to(dtype), t, states, target.float()

    loss = recorded(velocity, drawn(generator))
    print(f"{course.rounds} rounds, recorded after {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)

    def losses_of(generator: torch.Generator) -> Losses:
        if stage.step % course.steps_of_round == 0:
            pool.add(*rounds.make(generator))
        return {"loss": loss(*drawn(generator))}

    stage.run(losses_of)
    stage.use_average()
    if course.previews:
        look(stage, course, encoder, dtype, device)
    return stage


def look(stage: Stage, course: Course, encoder: TextEncoder, dtype: torch.dtype, device: torch.device) -> None:
    """Clips by the averaged weights in 4, 2 and 1 steps."""
    vae = from_tensors(load_file(course.vae), device=device, dtype=torch.float32)
    asked = preview.request(
        vae,
        encoder,
        preview.mixed(course.previews),
        side=course.side,
        frames=course.frames,
        images=False,
        device=device,
    )
    field = paths.field(Velocity(stage.model, dtype=dtype, topk=course.topk), asked.states)
    for steps in (4, 2, 1):
        noise = torch.Generator(device).manual_seed(1)
        made = paths.few_steps(field, asked.noise, steps, SIGMA_MAX, stochastic=True, generator=noise)
        picture = None if course.pictures is None else course.pictures / f"{stage.settings.state.stem}_{steps}.png"
        preview.score(f"{steps} steps", asked, made, vae, picture)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, state="work/t2v.safetensors", steps=20000, rate=5e-4)
    add_course_arguments(parser, Course)
    parser.add_argument("--start", type=Path, required=True, help="file of the stage that trained the teacher")
    parser.add_argument("--at-once", type=int, default=Course.at_once, help="clips of a round of the teacher's")
    parser.add_argument("--rounds", type=int, default=Course.rounds, help="of the teacher's that are kept")
    parser.add_argument(
        "--steps-of-round", type=int, default=Course.steps_of_round, help="training steps from one round to the next"
    )
    parser.add_argument("--guidance", type=float, default=Course.guidance, help="of the teacher")
    train(*parsed(parser, Course, warmup=20))


if __name__ == "__main__":
    main()
