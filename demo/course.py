"""What every stage of the transformer is told: its clips, its files, and the look at the end."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypeVar

from turbowan.demo import dataset
from turbowan.demo.stage import Settings
from turbowan.demo.text_encoder import FILE as TEXT_ENCODER
from turbowan.turbo_core import demo_bundle

VAE = demo_bundle.FOLDER / demo_bundle.VAE


@dataclass(frozen=True, kw_only=True)
class BaseCourse:
    side: int = 160
    frames: int = dataset.FRAMES
    topk: float = 1.0
    batch: int = 32
    previews: int = 48
    """Clips that are made and scored at the end; without any there is no look."""
    pictures: Path | None = None
    vae: Path = VAE
    text_encoder: Path = TEXT_ENCODER


C = TypeVar("C", bound=BaseCourse)


def add_course_arguments(parser: argparse.ArgumentParser, kind: type[BaseCourse]) -> None:
    """Those of every course, with this kind's defaults."""
    parser.add_argument("--side", type=int, default=kind.side, help="of the clips, in pixels")
    parser.add_argument("--frames", type=int, default=kind.frames)
    parser.add_argument("--topk", type=float, default=kind.topk, help="share of key blocks that attention keeps")
    parser.add_argument("--batch", type=int, default=kind.batch)
    parser.add_argument("--previews", type=int, default=kind.previews, help="clips to make and to score at the end")
    parser.add_argument("--pictures", type=Path, help="folder for pictures of these clips")
    parser.add_argument("--vae", type=Path, default=kind.vae)


def parsed(parser: argparse.ArgumentParser, kind: type[C], *, warmup: int) -> tuple[Settings, C]:
    """What the command line says to a stage and to its course."""
    given = vars(parser.parse_args())
    of_course = {field.name: given.pop(field.name) for field in fields(kind) if field.name in given}
    return Settings(**given, slim=True, by_clock=True, warmup=warmup), kind(**of_course)
