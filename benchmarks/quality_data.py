"""What `benchmarks.quality` found: each option's videos one by one, its times, and the file that holds them.

    numeric dB    to the same option in fp32 with the same noise over the same block sets: the cost of arithmetic
    full dB       to fp32 attention over all blocks with the linear branch, same steps and noise: sparsity's cost too

Both are PSNR over the 8-bit frames of a video. Where frames are equal it is `EQUAL_DB`; frames that differ in nothing
but how they were rounded to 8 bits are at 56 dB or more.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from turbowan.benchmarks.quality_options import Option
from turbowan.turbo_core.errors import TurboWanError

EQUAL_DB = 99.0


class QualityError(TurboWanError):
    """A file that holds no such measurements, or those of something else."""


@dataclass(frozen=True, kw_only=True)
class Video:
    """Of one option, the video of one number: what the detector saw as it should, and PSNR where it was compared."""

    colour: bool
    shape: bool
    motion: bool
    numeric_db: float | None = None
    full_db: float | None = None

    @property
    def right(self) -> bool:
        return self.colour and self.shape and self.motion


@dataclass(frozen=True, kw_only=True)
class Result:
    """`seconds`: to sample a video, each time that this was timed."""

    option: Option
    videos: tuple[Video, ...] = ()
    seconds: tuple[float, ...] = ()

    def median_db(self, figure: str) -> float | None:
        """Over the videos that were compared; None without any."""
        found = [decibels for video in self.videos if (decibels := getattr(video, figure)) is not None]
        return statistics.median(found) if found else None

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
        before = self._result(option)
        return self._with(dataclasses.replace(before, videos=(*before.videos, video)))

    def with_seconds(self, option: Option, seconds: Sequence[float]) -> Study:
        """The study with new times of the option."""
        return self._with(dataclasses.replace(self._result(option), seconds=tuple(seconds)))

    def _result(self, option: Option) -> Result:
        return next((result for result in self.results if result.option == option), Result(option=option))

    def _with(self, result: Result) -> Study:
        results = {before.option: before for before in self.results} | {result.option: result}
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
            option, seconds = json.dumps(asdict(result.option)), json.dumps(result.seconds)
            parts.append(f'  {{"option": {option}, "seconds": {seconds}, "videos": [\n{videos}\n  ]}}')
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
    videos = tuple(Video(**video) for video in data["videos"])
    return Result(option=Option(**data["option"]), videos=videos, seconds=tuple(data["seconds"]))
