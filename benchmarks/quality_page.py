"""The page that shows a study: a table for each axis, what could not run, and the contact sheets beside it."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from turbowan.benchmarks.quality_data import EQUAL_DB, Result, Study
from turbowan.benchmarks.quality_options import AXES, DEFAULTS, Option

COLUMNS = ("option", "numeric dB", "full dB", "right", "colour", "shape", "motion", "ms to sample", "videos")
HEADINGS = {
    "attention": "By attention",
    "precision": "By precision",
    "steps": "By steps",
    "topk": "By top-k",
    "sampler": "By sampler",
    "image": "Image to video, by steps",
}


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
        result.option.name + (" (default)" if result.option in DEFAULTS else ""),
        *(_decibels(result.median_db(figure)) for figure in ("numeric_db", "full_db")),
        *(f"{result.share(what):.0%}" for what in ("right", "colour", "shape", "motion")),
        f"{1000 * statistics.median(result.seconds):.3g}" if result.seconds else "–",
        str(len(result.videos)),
    )


def _decibels(value: float | None) -> str:
    if value is None:
        return "–"
    return "equal" if value >= EQUAL_DB else f"{value:.1f}"


def page(study: Study, pictures: dict[str, str]) -> str:
    """The study as a page of the docs: a table for each axis with two options or more, and its picture."""
    versions = ", ".join(f"{name} {version}" for name, version in study.subject.versions.items())
    files = ", ".join(f"{name} (SHA-256 {digits}…)" for name, digits in study.subject.model.items())
    parts = [
        "# Quality of the demo model by option",
        "Written by `python -m turbowan.benchmarks.quality`; what the columns mean stands in "
        "[benchmarks.md](../benchmarks.md#quality).",
        f"{study.subject.device}, {versions}, {study.date}. Size {study.subject.size}. {files}. {_compared(study)}",
    ]
    for axis, options in AXES.items():
        if sum(study.of(option) is not None for option in options) > 1:
            parts += [f"## {HEADINGS[axis]}", table(study, options)]
            if axis in pictures:
                parts.append(f"![{HEADINGS[axis]}: a row for each option, one caption and seed]({pictures[axis]})")
    if study.left_out:
        parts += ["## Not run here", "\n".join(f"- {name}: {reason}" for name, reason in study.left_out.items())]
    return "\n\n".join(parts) + "\n"


def _compared(study: Study) -> str:
    """Of how many videos the PSNR is."""
    counts = [sum(video.full_db is not None for video in result.videos) for result in study.results]
    return f"PSNR of the first {max(counts, default=0)} videos."
