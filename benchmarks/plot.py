"""The README's picture of a report: for every headline row ours, its peers and the floor, each on its own scale.

    python -m turbowan.benchmarks.plot docs/bench/h200.json docs/bench/h200.png [--rows "int8 + sagesla"]

Headlines are the rows of the stages step, vae and prompt that have a peer. The background is opaque, so that the
picture reads the same on a light and on a dark page.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from turbowan.benchmarks import report
from turbowan.benchmarks.report import Report, Row

HEADLINE_STAGES = ("step", "vae", "prompt")
PEER_NAMES = {"upstream ": "TurboDiffusion ", "native ": "ComfyUI "}
PAPER, INK, FAINT = "#fbfaf7", "#1f2430", "#6d7280"
OURS, PEER = "#0f7b6c", "#c3c8d2"
BAR_INCHES, WIDTH_INCHES, DPI = 0.34, 9.0, 160
ROOM = 1.42  # of the longest bar, for the figure behind it


@dataclass(frozen=True, kw_only=True)
class Group:
    """What one panel shows: ours, and the peers it was measured beside, milliseconds."""

    title: str
    ours: float
    floor: float | None
    peers: tuple[tuple[str, float], ...]


def headlines(rows: Iterable[Row], wanted: str) -> list[Row]:
    """The rows to show; of the steps only those whose name ends in `wanted`."""
    return [
        row
        for row in rows
        if row.stage in HEADLINE_STAGES and row.peer_ms is not None
        if row.stage != "step" or row.name.endswith(wanted)
    ]


def groups(rows: Iterable[Row]) -> list[Group]:
    """Each row of ours with its peers together."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row.stage, row.name), []).append(row)
    return [
        Group(
            title=f"{name}, one step" if stage == "step" else name,
            ours=same[0].ms,
            floor=same[0].floor_ms,
            peers=tuple((str(row.peer), float(row.peer_ms or 0)) for row in same),
        )
        for (stage, name), same in found.items()
    ]


def time_text(milliseconds: float) -> str:
    return f"{milliseconds:.0f} ms" if milliseconds < 1000 else f"{milliseconds / 1000:.3g} s"


def peer_text(peer: str) -> str:
    for prefix, name in PEER_NAMES.items():
        if peer.startswith(prefix):
            return name + peer.removeprefix(prefix)
    return peer


def draw(found: Report, wanted: str, path: Path) -> None:
    """
    Raises:
        ReportError: if the report has no row to show.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = headlines(found.rows, wanted)
    panels = groups(shown)
    if not panels:
        raise report.ReportError("plot: the report must hold a step, VAE or prompt row with a peer, it has none")
    bars = [1 + len(panel.peers) for panel in panels]
    height = BAR_INCHES * sum(bars) + 0.45 * len(panels) + 1.1
    figure, axes = pyplot.subplots(
        len(panels), 1, figsize=(WIDTH_INCHES, height), squeeze=False, facecolor=PAPER,
        gridspec_kw={"height_ratios": bars, "hspace": 0.5},
    )  # fmt: skip
    for panel, axis in zip(panels, axes[:, 0], strict=True):
        _panel(panel, axis)
    versions = ", ".join(f"{name} {value}" for name, value in found.versions.items() if name in ("torch", "triton"))
    figure.suptitle(
        f"TurboWan on one {found.gpu.removeprefix('NVIDIA ')}: shorter is better",
        x=0.02, y=1 - 0.14 / height, ha="left", va="top", color=INK, fontsize=13, fontweight="bold",
    )  # fmt: skip
    note = f"Medians, in turns with the peers on one card. Random weights. {versions}, {report.dates(shown)}."
    figure.text(0.02, 0.13 / height, f"{note}  ▏ floor: counted work at the card's rates", color=FAINT, fontsize=8)
    figure.subplots_adjust(left=0.31, right=0.98, top=1 - 0.78 / height, bottom=0.48 / height)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI, facecolor=PAPER)
    pyplot.close(figure)


def _panel(panel: Group, axis) -> None:
    names = ["TurboWan", *(peer_text(name) for name, _ in panel.peers)]
    times = [panel.ours, *(ms for _, ms in panel.peers)]
    places = range(len(times))
    axis.barh(places, times, color=[OURS] + [PEER] * len(panel.peers), height=0.74)
    for place, milliseconds in zip(places, times, strict=True):
        ratio = "" if place == 0 else f"   {milliseconds / panel.ours:.1f}×"
        axis.text(
            milliseconds + 0.012 * max(times), place, time_text(milliseconds) + ratio, va="center", color=INK,
            fontsize=9, fontweight="bold" if place == 0 else "normal",
        )  # fmt: skip
    if panel.floor is not None:
        axis.plot([panel.floor] * 2, [-0.46, 0.46], color=INK, linewidth=1.6, solid_capstyle="butt")
    axis.set_yticks(places, names, fontsize=9, color=INK)
    axis.set_xlim(0, ROOM * max(times))
    axis.invert_yaxis()
    axis.set_title(panel.title, loc="left", fontsize=10, color=INK, x=-0.42, pad=4)
    axis.set_xticks([])
    axis.set_facecolor(PAPER)
    axis.tick_params(length=0)
    for side in axis.spines.values():
        side.set_visible(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--rows", default="int8 + sagesla", help="the end of the names of the steps to show")
    arguments = parser.parse_args()
    draw(report.read(arguments.report), arguments.rows, arguments.picture)


if __name__ == "__main__":
    main()
