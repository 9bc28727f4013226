"""All stages that come after the small clips, in one process and in so many minutes: `work/small` to the bundle.

    python -m turbowan.demo.train_all --start work/small.safetensors --output demo/bundle --minutes 9

The clips are made once, and while that goes on another process compiles what the stages will run. What is left of the
minutes then is shared by the stages; each file is written as soon as it is ready.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from turbowan.demo import distil, train_dit
from turbowan.demo.check_dit import check
from turbowan.demo.differentiable import Prompts, Velocity
from turbowan.demo.export_dit import export
from turbowan.demo.regression import recorded
from turbowan.demo.stage import Settings
from turbowan.turbo_core import demo_bundle
from turbowan.turbo_core.config import I2V_CHANNELS, LATENT_CHANNELS
from turbowan.turbo_core.vae import latent_size

STAGES = ("full", "t2v", "i2v")
SHARES = "0.56,0.26,0.18"  # of the minutes that are left
SETTING_UP = 12.0  # seconds of recording, first rounds and writing that no stage counts
RATES = {"full": 1.5e-3, "t2v": 7e-4, "i2v": 1e-3}


def compile_ahead(course: train_dit.Course, at_once: int) -> None:
    """Run once what the stages will, so that a compiler's files lie ready for the process that trains."""
    device = torch.device("cuda")
    torch.set_float32_matmul_precision("high")
    generator = torch.Generator(device).manual_seed(0)

    def inputs(channels: int, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        size = latent_size(course.frames, course.side, course.side)
        x = torch.randn(count, channels, *size, generator=generator, device=device).bfloat16()
        states = torch.randn(count, train_dit.dataset.ROWS, train_dit.D_MODEL, generator=generator, device=device)
        return x, torch.full((count,), 0.9, device=device), states

    model = train_dit.new_model(I2V_CHANNELS, None, "cuda")
    velocity = Velocity(model, dtype=torch.bfloat16, topk=course.topk, compiled=True)
    x, t, states = inputs(I2V_CHANNELS, course.batch)
    recorded(velocity, (x, t, states, torch.zeros_like(x[:, :LATENT_CHANNELS], dtype=torch.float32)))
    model.requires_grad_(False)
    with torch.no_grad():
        x, t, states = inputs(I2V_CHANNELS, 2 * at_once)
        velocity(x, t, Prompts(states))


def train(
    start: Path,
    output: Path,
    settings: Settings,
    course: train_dit.Course,
    student: distil.Course,
    shares: dict[str, float],
) -> None:
    """All stages; `settings.minutes` are those of everything, `settings.state` lies in the folder of their files."""
    began = time.monotonic()
    on_gpu = settings.device.startswith("cuda")
    ahead = subprocess.Popen([sys.executable, "-m", __spec__.name, "--compile-ahead"]) if on_gpu else None
    material = train_dit.gather(settings, course)
    if ahead is not None and ahead.wait() != 0:
        print(f"compiling ahead ended with {ahead.returncode}: the stages compile, in their own time", file=sys.stderr)
    print(f"{time.monotonic() - began:.1f} s until the first stage", file=sys.stderr, flush=True)
    left = max(1.0, 60 * settings.minutes - SETTING_UP - (time.monotonic() - began)) / 60
    files = {name: settings.state.with_name(f"{name}.safetensors") for name in STAGES}

    def of(name: str) -> Settings:
        return replace(settings, state=files[name], rate=RATES[name], minutes=left * shares[name])

    train_dit.train(of("full"), replace(course, start=start, previews=0), material)
    distil.train(of("t2v"), replace(student, start=files["full"], previews=0))
    written = {"t2v": output / demo_bundle.T2V}
    export(files["t2v"], written["t2v"])
    if shares["i2v"]:
        train_dit.train_pair(of("i2v"), replace(course, start=files["full"], previews=0), material)
        for expert, name in (("high", demo_bundle.I2V_HIGH), ("low", demo_bundle.I2V_LOW)):
            written[expert] = output / name
            export(files["i2v"].with_name(f"i2v_{expert}.safetensors"), written[expert], expert)
    print(f"{time.monotonic() - began:.1f} s until all files are written", file=sys.stderr, flush=True)
    size = {"side": course.side, "frames": course.frames, "topk": course.topk}
    for models, steps in ((["t2v"], 4), (["high", "low"], 4), (["t2v"], 2)):
        chosen = [written[name] for name in models if name in written]
        if chosen:
            picture = settings.state.with_name(f"{models[0]}_{steps}_steps.png")
            check(chosen, material.vae, material.encoder, steps, course.previews, **size, picture=picture)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", type=Path, default=Path("work/small.safetensors"), help="the small clips' stage")
    parser.add_argument("--work", type=Path, default=Path("work"), help="folder for the stages' files")
    parser.add_argument("--output", type=Path, default=Path("work"), help="folder for the finished files")
    parser.add_argument("--minutes", type=float, default=9.0, help="for everything")
    parser.add_argument("--clips", type=int, default=1024)
    parser.add_argument("--image-clips", type=int, default=384)
    parser.add_argument("--images", type=float, default=0.35, help="share of the clips that have an image as condition")
    parser.add_argument("--shares", default=SHARES, help=f"of the minutes, for {', '.join(STAGES)}; i2v may be 0")
    parser.add_argument("--previews", type=int, default=200, help="clips of a model to score at the end")
    parser.add_argument("--guidance", type=float, default=2.5, help="of the teacher of few steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile-ahead", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    shares = dict(zip(STAGES, map(float, given.shares.split(",")), strict=True))
    course = train_dit.Course(
        topk=0.1,
        images=given.images if shares["i2v"] else None,
        clips=given.clips,
        image_clips=given.image_clips if shares["i2v"] else 0,
        previews=given.previews,
    )
    student = distil.Course(start=given.start, guidance=given.guidance)
    if given.compile_ahead:
        compile_ahead(course, student.at_once)
        return
    settings = Settings(
        state=given.work / "full.safetensors",
        steps=100_000,
        minutes=given.minutes,
        rate=RATES["full"],
        warmup=30,
        seed=given.seed,
        device=given.device,
        slim=True,
        by_clock=True,
    )
    train(given.start, given.output, settings, course, student, shares)


if __name__ == "__main__":
    main()
