"""What a run of the benchmarks found: rows, the machine they ran on, as JSON and as a table.

    docs/bench/h200.json: {"gpu", "versions", "date", "ceilings", "rows": [{"name", "stage", "ms", "peer", "peer_ms",
                           "floor_ms", "peak_gib", "peer_peak_gib", "command", "date"}]}

A row holds ours beside one peer that ran in turns with it; with several peers it appears once for each. What was not
measured is null. A row's date is that of the run that measured it, the report's that of the last run.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from turbowan.turbo_core.errors import TurboWanError

STAGES = ("kernel", "block", "step", "vae", "prompt")


class ReportError(TurboWanError):
    """A file that is no report."""


@dataclass(frozen=True, kw_only=True)
class Row:
    name: str
    stage: str
    ms: float
    command: str
    peer: str | None = None
    peer_ms: float | None = None
    floor_ms: float | None = None
    peak_gib: float | None = None
    peer_peak_gib: float | None = None
    date: str = ""  # of the run, which a report gives its rows

    def __post_init__(self) -> None:
        if self.stage not in STAGES:
            raise ReportError(f"row {self.name!r}: stage must be one of {', '.join(STAGES)}, got {self.stage!r}")
        for name in ("ms", "peer_ms", "floor_ms", "peak_gib", "peer_peak_gib"):
            value = getattr(self, name)
            if value is None and name != "ms":
                continue
            if not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
                raise ReportError(f"row {self.name!r}: {name} must be a positive number, got {value!r}")
        if (self.peer is None) != (self.peer_ms is None):
            raise ReportError(f"row {self.name!r}: peer and peer_ms come together, got {self.peer!r}, {self.peer_ms!r}")

    @property
    def speedup(self) -> float | None:
        """How many times faster than the peer."""
        return None if self.peer_ms is None else self.peer_ms / self.ms

    @property
    def of_floor(self) -> float | None:
        """How many times the floor's time."""
        return None if self.floor_ms is None else self.ms / self.floor_ms


@dataclass(frozen=True, kw_only=True)
class Report:
    gpu: str
    versions: dict[str, str]
    date: str
    ceilings: dict[str, Any]
    rows: tuple[Row, ...]

    def __post_init__(self) -> None:
        """Rows that bear no date yet were measured when the report was."""
        dated = (row if row.date else dataclasses.replace(row, date=self.date) for row in self.rows)
        object.__setattr__(self, "rows", tuple(dated))

    def write(self, path: Path) -> None:
        """The report as JSON, in the place of what was there."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


def read(path: Path) -> Report:
    """
    Raises:
        ReportError: if the file is not a report, with what is wrong.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        rows = data.pop("rows")
        return Report(**data, rows=tuple(_row(row) for row in rows))
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ReportError(f"{path}: must be a report of `turbowan bench --json`, {error!r}") from error


def merged(old: Report, new: Report) -> Report:
    """`new` with those rows of `old` that it did not measure, under their own dates: one GPU, several commands.

    Raises:
        ReportError: if they come from different GPUs.
    """
    if old.gpu != new.gpu:
        raise ReportError(f"reports must come from one GPU, got {old.gpu} and {new.gpu}; write to another file")
    measured = {(row.stage, row.name) for row in new.rows}
    kept = [row for row in old.rows if (row.stage, row.name) not in measured]
    rows = sorted([*kept, *new.rows], key=lambda row: STAGES.index(row.stage))
    return Report(gpu=new.gpu, versions=new.versions, date=new.date, ceilings=new.ceilings, rows=tuple(rows))


def _row(data: dict[str, Any]) -> Row:
    known = {field.name for field in fields(Row)}
    if unknown := set(data) - known:
        raise ReportError(f"a row holds {', '.join(sorted(known))}, got {', '.join(sorted(unknown))}")
    return Row(**data)


def dates(rows: Iterable[Row]) -> str:
    """The day, or the first and the last, on which the rows were measured."""
    days = sorted({row.date for row in rows})
    return days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"


COLUMNS = ("stage", "name", "ms", "peer", "peer ms", "× faster", "floor ms", "× floor", "GiB", "peer GiB")


def table(rows: Iterable[Row]) -> str:
    """One line a row, in columns; a name repeated for another peer is left blank."""
    lines = [COLUMNS]
    seen: tuple[str, str] | None = None
    for row in rows:
        first = (row.stage, row.name) != seen
        seen = row.stage, row.name
        own = (_figure(row.ms), _figure(row.floor_ms), _figure(row.of_floor), _figure(row.peak_gib))
        ms, floor, of_floor, gib = own if first else ("",) * len(own)
        lines.append(
            (
                row.stage if first else "", row.name if first else "", ms, row.peer or "–", _figure(row.peer_ms),
                _figure(row.speedup), floor, of_floor, gib, _figure(row.peer_peak_gib),
            )
        )  # fmt: skip
    widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]
    text = (0, 1, 3)
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in text else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _figure(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}" if value < 100 else f"{value:.1f}"
