"""What a probe found, and what it was asked about."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..catalogue import Folder

Level = Literal["ok", "warn", "error"]
LEVELS: tuple[Level, ...] = ("ok", "warn", "error")


@dataclass(frozen=True, kw_only=True)
class Finding:
    topic: str
    level: Level
    """warn: it runs, slower or not everything; error: something that people use does not run."""
    said: str
    remedy: str = ""


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """Where the doctor is called."""

    base: Path | None = None
    """ComfyUI's base folder, with custom_nodes and models in it."""
    comfyui: str | None = None
    """Its version."""
    device: str | None = None
    """The device it uses, where that is known; else the first GPU, or the CPU."""
    folders: Mapping[Folder, tuple[Path, ...]] = field(default_factory=dict)
    """Where model files may lie."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    topic: str
    look: Callable[[Surroundings], Iterable[Finding]]
    """Findings one by one, so that those before a failure count."""
    seconds: float = 2.0
    """After which the doctor goes on without the rest."""


def ok(topic: str, said: str) -> Finding:
    return Finding(topic=topic, level="ok", said=said)


def warn(topic: str, said: str, remedy: str) -> Finding:
    return Finding(topic=topic, level="warn", said=said, remedy=remedy)


def error(topic: str, said: str, remedy: str) -> Finding:
    return Finding(topic=topic, level="error", said=said, remedy=remedy)


def version(text: str) -> tuple[int, ...]:
    """The leading numbers of a version, as 2.11.0+cu130 → (2, 11, 0)."""
    found = re.match(r"\d+(\.\d+)*", text)
    return tuple(map(int, found[0].split("."))) if found else ()
