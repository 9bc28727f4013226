"""Seconds of a prompt by stage, from the messages that ComfyUI sent about it and when they came.

A node's time runs from its `executing` message to the next node's. Ours bring weights to the GPU and compile kernels
before their own work, the first time only, and report that as progress too: see `kernels.compile_ahead`. The reports of
each count up to a total of their own, so a report that follows a finished count, or has another total, begins another
series; the node's last series is its work. From the first report of compiling to the last is the stage "compile", which
is a fraction of a second short, because the first comes only where compiling takes long. Weights, counted in bytes,
belong to the first step. ComfyUI leaves out a report that follows another at once, never a count's first or
last; a step that it left out is part of the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SAMPLER, DECODER = "TurboT2VSampler", "TurboVAEDecodeVideo"
IMAGE_DECODER = "TurboVAEDecode"
COMPILING = (SAMPLER, DECODER, IMAGE_DECODER)
KERNELS = 1000  # no more are compiled; a larger total is one of bytes

Mark = tuple[float, dict[str, Any]]
"""When a message came, in seconds, and the message."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """One progress message."""

    at: float
    value: int
    total: int


def stage_seconds(marks: Sequence[Mark], classes: Mapping[str, str]) -> dict[str, float]:
    """Seconds of each node that ran, by class, the sampler's by step; `classes` are the nodes' by id."""
    begin = next(at for at, event in marks if event["type"] == "execution_start")
    end = marks[-1][0]
    starts = [(at, event["data"]["node"]) for at, event in marks if event["type"] == "executing"]
    starts = [(at, node) for at, node in starts if node is not None]
    seconds: dict[str, float] = {}
    for (at, node), (until, _) in zip(starts, [*starts[1:], (end, None)], strict=True):
        seconds |= _node_seconds(classes[node], at, until, _reports(marks, node))
    return seconds | {"total": end - begin}


def _node_seconds(name: str, at: float, until: float, reports: Sequence[Report]) -> dict[str, float]:
    if name not in COMPILING:
        return {name: until - at}
    *before, work = _series(reports if name == SAMPLER else _told_once(reports)) or [[]]
    compiled = [series for series in before if series[-1].total <= KERNELS]
    compiling = sum(series[-1].at - series[0].at for series in compiled)
    seconds = {f"{name} compile": compiling} if compiled else {}
    if name != SAMPLER:
        return seconds | {name: until - at - compiling}
    at += compiling  # the first step's time is what is left
    for report in work:
        seconds[f"{name} step {report.value}"] = report.at - at
        at = report.at
    return seconds | {f"{name} end": until - at}


def _told_once(reports: Sequence[Report]) -> list[Report]:
    """Without an end that is told again, as by a node that decodes in one thread and encodes in another."""
    pairs = zip([None, *reports], reports, strict=False)
    return [
        report
        for before, report in pairs
        if before is None or (before.value, before.total) != (report.value, report.total)
    ]


def _series(reports: Sequence[Report]) -> list[list[Report]]:
    """The reports, cut behind each that reached its total, and where the total is another: weights may not all fit."""
    found: list[list[Report]] = []
    for before, report in zip([None, *reports], reports, strict=False):
        if before is None or before.value >= before.total or before.total != report.total:
            found.append([])
        found[-1].append(report)
    return found


def _reports(marks: Sequence[Mark], node: str) -> list[Report]:
    return [
        Report(at=at, value=event["data"]["value"], total=event["data"]["max"])
        for at, event in marks
        if event["type"] == "progress" and event["data"]["node"] == node
    ]
