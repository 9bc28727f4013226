"""What each option costs in quality, on the demo model's trained weights: PSNR, what the detector sees, and time.

    python -m turbowan.benchmarks.quality docs/bench/quality_h200.json [--minutes 4] [--videos 60] [--axes steps,topk]
    python -m turbowan.benchmarks.quality docs/bench/quality_h200.json --times 9         on a GPU that does nothing else

Videos are of held-out captions, each with a seed of its own that all options share, and every option makes a dozen
before any makes more. FILE_AXIS.png, a row for each option, one caption and seed, comes first; FILE.json is written
after each dozen and gone on with by the next call, and FILE.md, the tables, once all options have theirs, so that a
call that is cut short leaves something. An option that this device or bundle cannot serve is left out, with the reason.
The reference has the bundle's weights dequantized to fp32, or with --state those that the training left, so that the
cost of quantizing them shows too.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import hashlib
import sys
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from turbowan.benchmarks import quality_data, suite
from turbowan.benchmarks.quality_bench import Bench, clip, triple_of
from turbowan.benchmarks.quality_data import Study, Subject
from turbowan.benchmarks.quality_options import AXES, DEFAULTS, Option, options
from turbowan.benchmarks.quality_page import page, table
from turbowan.benchmarks.request import size_argument, size_text
from turbowan.demo.pictures import Shown, contact_sheet
from turbowan.demo.vocabulary import caption
from turbowan.turbo_core import demo_bundle
from turbowan.turbo_core.errors import TurboWanError
from turbowan.turbo_core.pipeline import default_device

COLUMNS = 6  # frames of a video in a picture
COLOURS = 128  # of a picture: a third of the bytes, and shapes on plain grounds have no more
DIGITS = 12  # of a file's SHA-256
AT_ONCE = 12  # videos of an option


def served(bench: Bench, study: Study, wanted: tuple[Option, ...]) -> tuple[Study, tuple[Option, ...]]:
    """The options that can run here; the study keeps why the others cannot."""
    reasons = {option.name: reason for option in wanted if (reason := bench.refusal(option)) is not None}
    for name, reason in reasons.items():
        print(f"left out: {name}: {reason}", flush=True)
    can = tuple(option for option in wanted if option.name not in reasons)
    before = {name: reason for name, reason in study.left_out.items() if name not in {option.name for option in can}}
    return dataclasses.replace(study, left_out=before | reasons), can


def run(
    bench: Bench, study: Study, file: Path, wanted: tuple[Option, ...], videos: int, compared: int, deadline: float
) -> Study:
    """Add what is missing of each option's videos and write the files, until it is `deadline` (`time.monotonic`)."""
    for group in groups(videos, compared):
        for option in wanted:
            numbers = range(max(group.start, study.count(option)), group.stop)
            if not numbers:
                continue
            if time.monotonic() > deadline:
                return study
            for video in bench.measure(option, numbers, compare=group.start < compared):
                study = study.with_video(option, video)
            study.write(file)
        write_page(study, file)
        tell(f"{group.stop} of {videos} videos of each option")
    return study


def groups(videos: int, compared: int) -> list[range]:
    """Numbers of the videos that are made at once; those that are compared come first."""
    edges = [*range(0, compared, AT_ONCE), *range(compared, videos, AT_ONCE)]
    stops = [*edges[1:], videos]
    return [range(start, min(stop, videos)) for start, stop in zip(edges, stops, strict=True) if start < videos]


def timed(bench: Bench, study: Study, wanted: tuple[Option, ...], times: int) -> Study:
    """New times of all options, which take turns; a first round, which compiles, does not count."""
    found: dict[Option, list[float]] = {option: [] for option in wanted}
    for turn in range(times + 1):
        for option in wanted:
            seconds = bench.seconds(option, 0)
            if turn:
                found[option].append(round(seconds, 5))
    for option, seconds in found.items():
        study = study.with_seconds(option, seconds)
    return study


def draw(bench: Bench, wanted: tuple[Option, ...], axes: tuple[str, ...], number: int, file: Path) -> None:
    """A picture for each axis, beside the file; every axis has an option that can run."""
    made: dict[Option, Tensor] = {}
    for axis in axes:
        default = next(default for default in DEFAULTS if default in AXES[axis])
        title = f"{caption(triple_of(number))}: all blocks in fp32, {default.steps} steps"
        shown = [Shown(caption=title, clip=clip(bench.full(default, [number])[0]).cpu())]
        for option in (option for option in AXES[axis] if option in wanted):
            if option not in made:
                made[option] = clip(bench.frames(option, [number])[0]).cpu()
            shown.append(Shown(caption=option.name, clip=made[option]))
        sheet = contact_sheet(shown, COLUMNS).quantize(COLOURS, dither=Image.Dither.NONE)
        sheet.save(picture(file, axis), optimize=True)


def tell(what: str) -> None:
    print(f"{time.strftime('%X')} {what}", file=sys.stderr, flush=True)


def picture(file: Path, axis: str) -> Path:
    return file.with_name(f"{file.stem}_{axis}.png")


def write_page(study: Study, file: Path) -> None:
    pictures = {axis: path.name for axis in AXES if (path := picture(file, axis)).is_file()}
    file.with_suffix(".md").write_text(page(study, pictures), encoding="utf-8")


def subject(bench: Bench) -> Subject:
    on_gpu = bench.device.type == "cuda"
    processor = torch.cuda.get_device_name(bench.device) if on_gpu else f"CPU, threads: {torch.get_num_threads()}"
    digits = {
        name: hashlib.sha256(path.read_bytes()).hexdigest()[:DIGITS] for name, path in bench.measured_files.items()
    }
    return Subject(device=processor, versions=suite.versions(), size=size_text(bench.size), model=digits)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="the .json to write, or to go on with")
    parser.add_argument("--videos", type=int, default=60, help="of each option; there are 30 held-out captions")
    parser.add_argument("--compared", type=int, default=12, help="of how many of them to measure the PSNR")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="of the whole call; call again to go on")
    parser.add_argument("--times", type=int, default=0, help="instead of making videos, time each option so often")
    parser.add_argument("--axes", default=",".join(AXES), help="which options")
    parser.add_argument("--size", type=size_argument, default="160x160x81", help="width x height x frames")
    parser.add_argument("--shown", type=int, default=0, help="number of the video in the pictures")
    parser.add_argument("--bundle", type=Path, default=demo_bundle.FOLDER, help="folder with the model's files")
    parser.add_argument("--state", type=Path, help="the training's file that the text-to-video model was exported from")
    parser.add_argument("--device", choices=("cuda", "cpu"), default=default_device().type)
    given = parser.parse_args()
    given.axes = tuple(given.axes.split(","))
    if unknown := set(given.axes) - set(AXES):
        parser.error(f"axes: must be of {', '.join(AXES)}, got {', '.join(sorted(unknown))}")
    if given.file.suffix != ".json":
        parser.error(f"file: must be a .json, got {given.file.name}; the page and the pictures are named after it")
    if given.videos < 1 or min(given.shown, given.compared, given.times) < 0:
        parser.error("videos must be 1 or more; shown, compared and times 0 or more")
    return given


def measure(given: argparse.Namespace, folder: Path, deadline: float) -> tuple[Study, int]:
    """The study, and how many videos are still to be made."""
    bench = Bench(given.bundle, folder, torch.device(given.device), given.size, state=given.state)
    study = quality_data.resumed(given.file, subject(bench), datetime.date.today().isoformat())
    bench.prepare(range(max(given.videos, given.shown + 1)))
    study, wanted = served(bench, study, options(given.axes))
    tell(f"{len(wanted)} options are ready")
    given.file.parent.mkdir(parents=True, exist_ok=True)
    if given.times:
        study = timed(bench, study, wanted, given.times)
        study.write(given.file)
        return study, 0
    axes = tuple(axis for axis in given.axes if set(AXES[axis]) & set(wanted))
    if not study.results or not all(picture(given.file, axis).is_file() for axis in axes):
        draw(bench, wanted, axes, given.shown, given.file)
        tell("pictures are drawn")
    study = run(bench, study, given.file, wanted, given.videos, given.compared, deadline)
    return study, sum(max(0, given.videos - study.count(option)) for option in wanted)


def main() -> None:
    given = arguments()
    deadline = time.monotonic() + 60 * given.minutes
    torch.backends.cudnn.allow_tf32 = False  # for the fp32 references; bf16 has no use for it
    try:
        with tempfile.TemporaryDirectory() as folder:
            study, left = measure(given, Path(folder), deadline)
    except TurboWanError as error:
        raise SystemExit(str(error)) from error
    write_page(study, given.file)
    print(table(study, options(given.axes)))
    if left:
        print(f"{left} videos are still to be made: call again to go on")


if __name__ == "__main__":
    main()
