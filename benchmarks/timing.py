"""Times of things that take turns: a card that heats up or is throttled slows all of them alike.

Medians of CUDA events after a round that warms up and compiles; the peak is what torch allocated beyond what lay
there before the call.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

GIB = 2**30
L2_BYTES = 2**28


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Median milliseconds, and GiB allocated during a call beyond what lay there before it."""

    ms: float
    peak_gib: float


def interleaved(
    runs: Mapping[str, Callable[[], object]],
    repeats: int,
    *,
    prepare: Mapping[str, Callable[[], None]] | None = None,
    warm: bool = False,
) -> dict[str, Timing]:
    """Each of `runs` once a round, in turns; `prepare[name]` goes before each of its calls, untimed.

    `warm`: all of them have run before, so that no round is left out.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    peaks = dict.fromkeys(runs, 0.0)
    for round_ in range(warm, repeats + 1):
        for name, run in runs.items():
            if prepare is not None and name in prepare:
                prepare[name]()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            milliseconds = elapsed_ms(run)
            if round_:
                times[name].append(milliseconds)
                peaks[name] = max(peaks[name], (torch.cuda.max_memory_allocated() - before) / GIB)
    return {name: Timing(ms=statistics.median(times[name]), peak_gib=peaks[name]) for name in runs}


def elapsed_ms(run: Callable[[], object]) -> float:
    """Milliseconds of one call on the GPU; its result is dropped before the next."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def short(runs: Mapping[str, Callable[[], object]], rounds: int = 20) -> dict[str, float]:
    """Median milliseconds of kernels of a fraction of a millisecond, in turns, each after a flush of the L2 cache.

    All of a round is queued before any is waited for, so that the CPU's launches do not show.
    """
    flush = torch.empty(L2_BYTES, dtype=torch.uint8, device="cuda")
    events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {name: [] for name in runs}
    for round_ in range(rounds + 1):
        for name, run in runs.items():
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            flush.zero_()
            begin.record()
            run()
            end.record()
            if round_:
                events[name].append((begin, end))
        if round_ == 0:
            torch.cuda.synchronize()
    torch.cuda.synchronize()
    return {name: statistics.median(b.elapsed_time(e) for b, e in pairs) for name, pairs in events.items()}
