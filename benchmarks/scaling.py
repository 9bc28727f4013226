"""How time and memory of a step grow with frames, size, batch, steps and top-k ratio, and whether there is a cliff.

    python -m turbowan.benchmarks.scaling docs/bench/scaling_h200.json [--model 1.3b] [--row "int8 + sagesla"]

One axis moves at a time from 832×480, 81 frames, batch 1, one step, ratio 0.1. The time over the floor (`floors`, which
knows that attention is quadratic) and the working memory over the tokens should never rise; where either does by more
than `CLIFF` between neighbours, the point is marked and printed. A fall is none: more work fills the GPU better.
Kernels are compiled at the starting point: one that another size compiles again, and that this machine has not kept
from before, shows as a first call that is slower than the second by more than `COMPILED`.

The smallest points of an axis may all take the same time: the CPU needs it to launch a step's kernels. Where the least
times of an axis lie within `FLAT` of each other although their floors do not within `CLIFF`, the points are marked as
bound by launches.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from turbowan.benchmarks import ceilings, dit_step, floors, suite, synthetic
from turbowan.benchmarks.request import Size
from turbowan.benchmarks.timing import GIB, elapsed_ms, interleaved
from turbowan.turbo_core import rcm
from turbowan.turbo_core.attention import AttentionSettings
from turbowan.turbo_core.config import WanConfig
from turbowan.turbo_core.model import TurboWan
from turbowan.turbo_core.vae import latent_size

CLIFF = 1.25
FLAT = 1.1
COMPILED = 250.0  # ms; a kernel takes longer to compile, an allocator's first blocks do not


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What is run."""

    size: Size = (832, 480, 81)
    batch: int = 1
    steps: int = 1
    ratio: float = 0.1

    @property
    def tokens(self) -> int:
        return self.batch * floors.tokens_of(self.size)


SWEEPS: dict[str, tuple[tuple[str, Shape], ...]] = {
    "frames": tuple((str(n), Shape(size=(832, 480, n))) for n in (17, 33, 49, 65, 81, 97, 113, 129, 145, 161)),
    "size": tuple(
        (f"{width}×{height}", Shape(size=(width, height, 81)))
        for width, height in ((832, 480), (1120, 624), (1280, 720), (1536, 864), (1920, 1088))
    ),
    "batch": tuple((str(n), Shape(batch=n)) for n in (1, 2, 3, 4)),
    "steps": tuple((str(n), Shape(steps=n)) for n in (1, 2, 3, 4)),
    "ratio": tuple((str(ratio), Shape(ratio=ratio)) for ratio in (0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)),
}


@dataclass(frozen=True, kw_only=True)
class Point:
    """One measurement: `first_ms` the first call at this shape, `working_gib` the peak beside the weights."""

    axis: str
    label: str
    tokens: int
    ms: float
    first_ms: float
    floor_ms: float
    working_gib: float
    weights_gib: float
    cliffs: tuple[str, ...] = ()
    launch_bound: bool = False

    @property
    def over_floor(self) -> float:
        return self.ms / self.floor_ms

    @property
    def mib_per_token(self) -> float:
        return 1024 * self.working_gib / self.tokens


def marked(points: Sequence[Point]) -> list[Point]:
    """The points, each with the figures that rose since its neighbour before it on the same axis."""
    out: list[Point] = []
    for before, point in zip([None, *points], points, strict=False):
        jumps = []
        if before is not None and before.axis == point.axis:
            for name in ("over_floor", "mib_per_token"):
                change = getattr(point, name) / getattr(before, name)
                if change > CLIFF:
                    jumps.append(f"{name} ×{change:.2f}")
        if point.first_ms - point.ms > COMPILED:
            jumps.append(f"first call {point.first_ms:.0f} ms")
        same_axis = [other for other in points if other.axis == point.axis]
        out.append(dataclasses.replace(point, cliffs=tuple(jumps), launch_bound=point in _launch_bound(same_axis)))
    return out


def _launch_bound(axis: Sequence[Point]) -> list[Point]:
    """The points of an axis that take its least time, if the GPU's work is not what they have in common."""
    least = min(point.ms for point in axis)
    group = [point for point in axis if point.ms <= FLAT * least]
    floors_ms = [point.floor_ms for point in group]
    return group if max(floors_ms) > CLIFF * min(floors_ms) else []


def sampler(net: TurboWan, shape: Shape) -> Iterator[Tensor]:
    """Endless results of `shape.steps` steps of the SDE sampler, each when asked for."""
    width, height, frames = shape.size
    generator = torch.Generator(device="cuda").manual_seed(9)
    half = {"device": "cuda", "dtype": torch.bfloat16, "generator": generator}
    latent = torch.randn(shape.batch, net.config.in_dim, *latent_size(frames, height, width), **half)
    context = torch.randn(shape.batch, floors.TEXT_TOKENS, net.config.text_dim, **half)
    times = rcm.schedule(shape.steps, rcm.SIGMA_MAX_T2V)

    def predict(x: Tensor, t: float) -> Tensor:
        timestep = rcm.round_timestep(torch.full((shape.batch,), 1000 * t, device="cuda"))
        return x - t * net(x.to(torch.bfloat16), timestep, context).to(x.dtype)

    while True:
        noise = rcm.StepNoise(latent.shape, latent.device, seed=0, order="upstream")
        yield rcm.sample(predict, latent.double(), times, stochastic=True, noise=noise)


def measure(
    net: TurboWan, axis: str, label: str, shape: Shape, mode: str, rates: ceilings.Ceilings, repeats: int
) -> Point:
    net.attention = AttentionSettings(mode=mode, topk=shape.ratio)
    results = sampler(net, shape)
    first = elapsed_ms(lambda: next(results))
    timing = interleaved({label: lambda: next(results)}, repeats, warm=True)[label]
    per_sample = floors.step(net.config, floors.tokens_of(shape.size), bits=8, mode=mode, topk=shape.ratio)
    return Point(
        axis=axis,
        label=label,
        tokens=shape.tokens,
        ms=timing.ms,
        first_ms=first,
        floor_ms=shape.batch * shape.steps * floors.total_ms(per_sample, rates),
        working_gib=timing.peak_gib,
        weights_gib=sum(t.nbytes for t in net.state_dict().values()) / GIB,
    )


def build(config: WanConfig, row: dit_step.Row) -> TurboWan:
    tensors = synthetic.tensors(config, torch.device("cuda"), quantized=row.quantized)
    net = dit_step.build(config, row, tensors)
    dit_step.prepare(net, row)
    return net


def sweep(net: TurboWan, axes: Sequence[str], mode: str, rates: ceilings.Ceilings, repeats: int) -> Iterator[Point]:
    """Every point of `axes`, marked; the first call compiles and is not one."""
    measure(net, "", "", Shape(), mode, rates, 1)
    for axis in axes:
        yield from marked([measure(net, axis, label, shape, mode, rates, repeats) for label, shape in SWEEPS[axis]])
        torch.cuda.empty_cache()


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path)
    parser.add_argument("--model", choices=synthetic.MODELS, default="1.3b")
    parser.add_argument("--row", choices=[row.name for row in dit_step.ROWS], default="int8 + sagesla")
    parser.add_argument("--axes", type=lambda text: text.split(","), default=list(SWEEPS), help="comma-separated")
    parser.add_argument("--repeats", type=int, default=2, help="of each point, behind its first call")
    arguments = parser.parse_args()
    device = torch.device("cuda")
    dit_step.check_kernels(device)
    rates = ceilings.of_gpu(torch.cuda.get_device_name(), **ceilings.measure(device))
    row = next(row for row in dit_step.ROWS if row.name == arguments.row)
    found = {
        "gpu": torch.cuda.get_device_name(),
        "versions": suite.versions(),
        "date": datetime.date.today().isoformat(),
        "model": arguments.model,
        "row": row.name,
    }
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    points: list[Point] = []
    for point in sweep(
        build(synthetic.MODELS[arguments.model], row), arguments.axes, row.mode, rates, arguments.repeats
    ):
        points.append(point)
        print(line(point), flush=True)
        written = found | {"points": [asdict(point) for point in points]}  # after every point: a later one may fail
        arguments.json.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    print(f"{len(points)} points, {sum(bool(point.cliffs) for point in points)} cliffs")


def line(point: Point) -> str:
    told = "  bound by launches" if point.launch_bound else ""
    told += f"  CLIFF: {', '.join(point.cliffs)}" if point.cliffs else ""
    return (
        f"{point.axis:7s}{point.label:>10s} {point.tokens:8,d} tokens {point.ms:9.1f} ms "
        f"({point.over_floor:5.2f} × floor) {point.working_gib:6.2f} GiB + weights{told}"
    )


if __name__ == "__main__":
    main()
