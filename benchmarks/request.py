"""What a run of `turbowan bench` is asked for."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import dataclass
from pathlib import Path

from turbowan.turbo_core.errors import SettingsError

Size = tuple[int, int, int]  # width, height, frames
REPEATS = 5


@dataclass(frozen=True, kw_only=True)
class Request:
    """`rows` is part of the names of the rows to run; without `comfy` and `peer` those peers are absent."""

    stages: tuple[str, ...]
    model: str = "1.3b"
    size: Size = (832, 480, 81)
    rows: str = ""
    repeats: int = REPEATS
    comfy: Path | None = None
    peer: Path | None = None

    @property
    def label(self) -> str:
        return f"{self.model} {size_text(self.size)}"

    def command(self, stage: str) -> str:
        """The command line that measures a stage again, with placeholders for folders."""
        words = ["turbowan", "bench", "--stages", stage, "--model", self.model, "--size", size_text(self.size)]
        words += ["--rows", self.rows] if self.rows else []
        words += ["--comfy", "DIR"] if self.comfy else []
        words += ["--peer", "DIR"] if self.peer else []
        words += ["--repeats", str(self.repeats)] if self.repeats != REPEATS else []
        return shlex.join(words)


def size_text(size: Size) -> str:
    return "x".join(str(part) for part in size)


def parse_size(text: str) -> Size:
    """
    Raises:
        SettingsError: unless it is WIDTHxHEIGHTxFRAMES that the models take.
    """
    parts = text.split("x")
    if len(parts) != 3 or not all(part.isdecimal() for part in parts):
        raise SettingsError(f"bench: size must be WIDTHxHEIGHTxFRAMES as 832x480x81, got {text!r}")
    width, height, frames = (int(part) for part in parts)
    if width % 16 or height % 16 or frames % 4 != 1 or not width * height:
        raise SettingsError(f"bench: size must have sides divisible by 16 and 4n+1 frames, got {text!r}")
    return width, height, frames


def size_argument(text: str) -> Size:
    """`parse_size` as argparse wants it, which shows no other error's words."""
    try:
        return parse_size(text)
    except SettingsError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
