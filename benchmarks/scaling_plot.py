"""The picture of docs/scaling.md: time and working memory along each axis of `scaling`, cliffs marked.

    python -m turbowan.benchmarks.scaling_plot docs/bench/scaling_h200.json docs/bench/scaling.png

Upper row: seconds, with the floor below them, hollow where launches bound them; lower row: GiB beside the weights.
Frames and size are drawn against tokens, so that equal distances are equal work for everything but attention.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from turbowan.benchmarks.plot import DPI, FAINT, INK, OURS, PAPER
from turbowan.benchmarks.report import ReportError

BY_TOKENS = ("frames", "size")
TITLES = {
    "frames": "frames, 832×480",
    "size": "size, 81 frames",
    "batch": "batch",
    "steps": "steps",
    "ratio": "top-k ratio",
}
CLIFF = "#c8452e"
LABEL_ROOM = 0.08  # of an axis


def read(path: Path) -> dict[str, Any]:
    """
    Raises:
        ReportError: if it is not what `scaling` writes.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        for point in found["points"]:
            for name in ("axis", "label", "tokens", "ms", "floor_ms", "working_gib", "cliffs", "launch_bound"):
                point[name]
        return found
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ReportError(f"{path}: must be what turbowan.benchmarks.scaling writes, {error!r}") from error


def draw(found: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    axes_of = list(dict.fromkeys(point["axis"] for point in found["points"]))
    figure, grid = pyplot.subplots(
        2, len(axes_of), figsize=(3.0 * len(axes_of), 5.4), squeeze=False, facecolor=PAPER, sharex="col"
    )
    for column, axis in enumerate(axes_of):
        points = [point for point in found["points"] if point["axis"] == axis]
        where = [point["tokens"] if axis in BY_TOKENS else float(point["label"]) for point in points]
        upper, lower = grid[:, column]
        _line(upper, where, [point["ms"] / 1000 for point in points], "TurboWan")
        upper.plot(where, [point["floor_ms"] / 1000 for point in points], color=FAINT, linestyle="--", label="floor")
        _line(lower, where, [point["working_gib"] for point in points], "beside the weights")
        for place, point in zip(where, points, strict=True):
            if point["launch_bound"]:
                upper.plot([place], [point["ms"] / 1000], "o", markersize=4, color=OURS, markerfacecolor=PAPER)
            if point["cliffs"]:
                upper.plot([place], [point["ms"] / 1000], "o", markersize=11, fillstyle="none", color=CLIFF)
        upper.set_title(TITLES[axis], loc="left", color=INK, fontsize=10)
        labels = _apart(where, [point["label"] for point in points])
        lower.set_xticks(where, labels, rotation=45, ha="right", fontsize=8)
        for panel in (upper, lower):
            _clean(panel)
    grid[0, 0].set_ylabel("seconds", color=INK)
    grid[1, 0].set_ylabel("GiB", color=INK)
    grid[0, 0].legend(frameon=False, labelcolor=INK, fontsize=8)
    figure.suptitle(
        f"{found['model']}, {found['row']}, one {found['gpu'].removeprefix('NVIDIA ')}: time above, memory below",
        x=0.01, ha="left", color=INK, fontsize=12, fontweight="bold",
    )  # fmt: skip
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI, facecolor=PAPER)
    pyplot.close(figure)


def _apart(where: list[float], labels: list[str]) -> list[str]:
    """The labels, empty where the last one shown stands too near."""
    shown: list[str] = []
    last = -float("inf")
    for place, label in zip(where, labels, strict=True):
        room = place - last >= LABEL_ROOM * (where[-1] - where[0])
        shown.append(label if room else "")
        last = place if room else last
    return shown


def _line(panel, where: list[float], values: list[float], label: str) -> None:
    panel.plot(where, values, color=OURS, marker="o", markersize=4, label=label)
    panel.set_ylim(bottom=0, top=1.08 * max(values))


def _clean(panel) -> None:
    panel.set_facecolor(PAPER)
    panel.tick_params(colors=INK, labelsize=8)
    panel.grid(axis="y", color=FAINT, alpha=0.25)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        panel.spines[side].set_color(FAINT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path)
    parser.add_argument("picture", type=Path)
    arguments = parser.parse_args()
    draw(read(arguments.json), arguments.picture)


if __name__ == "__main__":
    main()
