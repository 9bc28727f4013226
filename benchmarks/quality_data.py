"""What `benchmarks.quality` found: each option's videos one by one, the file that holds them, and the page they make.

    numeric dB    to the same option in fp32 with the same noise over the same block sets: the cost of arithmetic
    full dB       to fp32 attention over all blocks with the linear branch, same steps and noise: sparsity's cost too

Both are PSNR over the 8-bit frames of a video, and a table has the median over videos. Where frames are equal it is
`EQUAL_DB`; frames that differ in nothing but how they were rounded to 8 bits are at 56 dB or more.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from turbowan.benchmarks.quality_options import AXES, DEFAULT, Option
from turbowan.turbo_core.errors import TurboWanError

EQUAL_DB = 99.0


class QualityError(TurboWanError):
    """A file that holds no such measurements, or those of something else."""


@dataclass(frozen=True, kw_only=True)
class Video:
    """Of one option, the video of one number: `seconds` to sample it; what the detector saw as it should."""

    numeric_db: float
    full_db: float
    colour: bool
    shape: bool
    motion: bool
    seconds: float

    @property
    def right(self) -> bool:
        return self.colour and self.shape and self.motion


@dataclass(frozen=True, kw_only=True)
class Result:
    option: Option
    videos: tuple[Video, ...] = ()

    def median(self, figure: str) -> float:
        return statistics.median(getattr(video, figure) for video in self.videos)

    def share(self, what: str) -> float:
        return sum(getattr(video, what) for video in self.videos) / len(self.videos)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What was measured, on what: only measurements of one subject stand in one file.

    Attributes:
        model: the first digits of each file's SHA-256, by its name; among them what the reference was made of.
    """

    device: str
    versions: dict[str, str]
    size: str
    model: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Study:
    """`left_out`: why an option could not run here, by its name."""

    subject: Subject
    date: str
    results: tuple[Result, ...]
    left_out: dict[str, str]

    def of(self, option: Option) -> Result | None:
        return next((result for result in self.results if result.option == option and result.videos), None)

    def count(self, option: Option) -> int:
        """How many videos of the option there are."""
        result = self.of(option)
        return 0 if result is None else len(result.videos)

    def with_video(self, option: Option, video: Video) -> Study:
        """The study and one more video of the option."""
        results = {result.option: result for result in self.results}
        before = results.get(option, Result(option=option))
        results[option] = dataclasses.replace(before, videos=(*before.videos, video))
        return dataclasses.replace(self, results=tuple(results.values()))

    def write(self, path: Path) -> None:
        """As JSON with a line for each video; the file is complete, or the one before."""
        head = json.dumps(
            {"subject": asdict(self.subject), "date": self.date, "left_out": self.left_out},
            indent=1,
            ensure_ascii=False,
        )
        parts = []
        for result in self.results:
            videos = ",\n".join(f"   {json.dumps(asdict(video))}" for video in result.videos)
            parts.append(f'  {{"option": {json.dumps(asdict(result.option))}, "videos": [\n{videos}\n  ]}}')
        path.parent.mkdir(parents=True, exist_ok=True)
        half = path.with_suffix(".part")
        half.write_text(head[:-2] + ',\n "results": [\n' + ",\n".join(parts) + "\n ]\n}\n", encoding="utf-8")
        os.replace(half, path)


def read(path: Path) -> Study:
    """
    Raises:
        QualityError: if the file is none of `write`, with what is wrong.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        results = tuple(_result(result) for result in data.pop("results"))
        return Study(subject=Subject(**data.pop("subject")), results=results, **data)
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise QualityError(f"{path}: must be what benchmarks.quality writes, {error!r}; name another file") from error


def resumed(path: Path, subject: Subject, date: str) -> Study:
    """What the file holds already, or a study without results where there is none.

    Raises:
        QualityError: if it holds measurements of another subject.
    """
    if not path.is_file():
        return Study(subject=subject, date=date, results=(), left_out={})
    study = read(path)
    for field in dataclasses.fields(Subject):
        old, new = (getattr(one, field.name) for one in (study.subject, subject))
        if old != new:
            raise QualityError(
                f"{path}: must hold measurements of the same {field.name} to go on with them, it has {old}, this run "
                f"{new}; name another file"
            )
    return dataclasses.replace(study, date=date)


def _result(data: dict[str, Any]) -> Result:
    return Result(option=Option(**data["option"]), videos=tuple(Video(**video) for video in data["videos"]))


COLUMNS = ("option", "numeric dB", "full dB", "right", "colour", "shape", "motion", "s to sample", "videos")


def table(study: Study, options: Iterable[Option]) -> str:
    """In Markdown, aligned to be read as text too; an option without videos is not in it."""
    lines = [COLUMNS, *(_line(result) for option in options if (result := study.of(option)) is not None)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]
    rule = "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])])
    rows = [_row(line, widths) for line in lines]
    return "\n".join([rows[0], f"|{rule}|", *rows[1:]])


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = zip(cells, widths, strict=True)
    return f"| {first[0].ljust(first[1])} | " + " | ".join(cell.rjust(width) for cell, width in rest) + " |"


def _line(result: Result) -> tuple[str, ...]:
    return (
        result.option.name + (" (default)" if result.option == DEFAULT else ""),
        *(_decibels(result.median(figure)) for figure in ("numeric_db", "full_db")),
        *(f"{result.share(what):.0%}" for what in ("right", "colour", "shape", "motion")),
        f"{result.median('seconds'):.3g}",
        str(len(result.videos)),
    )


def _decibels(value: float) -> str:
    return "equal" if value >= EQUAL_DB else f"{value:.1f}"


def page(study: Study, pictures: dict[str, str]) -> str:
    """The study as a page of the docs: a table for each axis with two options or more, and its picture."""
    versions = ", ".join(f"{name} {version}" for name, version in study.subject.versions.items())
    files = ", ".join(f"{name} (SHA-256 {digits}…)" for name, digits in study.subject.model.items())
    parts = [
        "# Quality of the demo model by option",
        "Written by `python -m turbowan.benchmarks.quality`; what the columns mean stands in "
        "[benchmarks.md](../benchmarks.md#quality).",
        f"{study.subject.device}, {versions}, {study.date}. Size {study.subject.size}. {files}.",
    ]
    for axis, options in AXES.items():
        if sum(study.of(option) is not None for option in options) > 1:
            parts += [f"## By {axis}", table(study, options)]
            if axis in pictures:
                parts.append(f"![One row an option, the same caption and seed, by {axis}]({pictures[axis]})")
    if study.left_out:
        parts += ["## Not run here", "\n".join(f"- {name}: {reason}" for name, reason in study.left_out.items())]
    return "\n\n".join(parts) + "\n"
