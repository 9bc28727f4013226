"""What each option costs in quality, on the demo model's trained weights: PSNR, what the detector sees, and time.

    python -m turbowan.benchmarks.quality docs/bench/quality_h200.json [--minutes 8] [--videos 60] [--axes steps,topk]

Videos are of held-out captions, each with a seed of its own that all options share, and every option makes one before
any makes the next. FILE.json is written after each and gone on with by the next call; FILE.md has the tables, and
FILE_AXIS.png a row for each option, one caption and seed. An option that this device cannot serve is left out, with
the reason. The reference has the bundle's weights dequantized to fp32, or with --state those that the training left,
so that the cost of quantizing them shows too.
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
from safetensors.torch import save_file
from torch import Tensor

from turbowan.benchmarks import quality_data, suite
from turbowan.benchmarks.block_sets import forced_blocks, recorded_blocks
from turbowan.benchmarks.quality_data import EQUAL_DB, Study, Subject, Video
from turbowan.benchmarks.quality_options import AXES, DEFAULT, Option, options
from turbowan.benchmarks.request import Size, size_argument, size_text
from turbowan.demo import evaluate
from turbowan.demo.detector import detect
from turbowan.demo.export_vae import averaged
from turbowan.demo.pictures import Shown, contact_sheet
from turbowan.demo.vocabulary import HELD_OUT, Triple, caption
from turbowan.turbo_core import checkpoint, demo_bundle
from turbowan.turbo_core.block_int8 import dequantize_tensors
from turbowan.turbo_core.errors import BackendUnavailableError, TurboWanError
from turbowan.turbo_core.expert import NetworkSettings
from turbowan.turbo_core.pipeline import ModelFiles, Pipeline, default_device
from turbowan.turbo_core.request import Request

FULL = NetworkSettings(attention="sla", topk=1.0)
COLUMNS = 6  # frames of a video in a picture
COLOURS = 128  # of a picture: a third of the bytes, and shapes on plain grounds have no more
DIGITS = 12  # of a file's SHA-256


def bundle_files(bundle: Path) -> ModelFiles:
    """The text-to-video model's.

    Raises:
        QualityError: if one is missing.
    """
    files = evaluate.files(bundle, i2v=False)
    missing = [path for path in (files.network, files.vae, files.text_encoder) if not path.is_file()]
    if missing:
        names = ", ".join(str(path.relative_to(bundle)) for path in missing)
        raise quality_data.QualityError(
            f"quality: the demo model must lie in {bundle}, {names} is not there; make it as demo/README.md says, or "
            "give its folder with --bundle"
        )
    return files


def write_unquantized(files: ModelFiles, state: Path | None, path: Path) -> Path:
    """The model in fp32: a training state's averaged weights, or the bundle's as they dequantize."""
    source = checkpoint.read(files.network)
    tensors = dequantize_tensors(source.tensors, torch.float32) if state is None else averaged(state)
    # Copies, because safetensors writes no tensors that share the memory of a mapped file.
    save_file({name: tensor.to(torch.float32, copy=True).contiguous() for name, tensor in tensors.items()}, path)
    if checkpoint.read(path).config.num_layers != source.config.num_layers:
        raise quality_data.QualityError(
            f"quality: {state} must be the training state of {files.network.name}, it has another number of blocks"
        )
    return path


class Bench:
    """Makes videos of held-out captions by option, and the fp32 videos that they are held against."""

    def __init__(
        self, files: ModelFiles, unquantized: Path, device: torch.device, size: Size, *, trained: bool = False
    ) -> None:
        """`trained`: the unquantized weights are those of the training, and "bf16" means them."""
        self.files, self.device, self.size, self.trained = files, device, size, trained
        self._unquantized = ModelFiles(network=unquantized, vae=files.vae, text_encoder=files.text_encoder)
        self._pipelines: dict[tuple[NetworkSettings, torch.dtype | None], Pipeline] = {}
        self._decoder = Pipeline(files, NetworkSettings(), device)
        self._texts: dict[str, Tensor] = {}
        self._full: dict[tuple[int, str], Tensor] = {}
        self._full_of: int | None = None

    def prepare(self, numbers: range) -> None:
        """Encode the captions of these videos, in one walk through the text encoder."""
        captions = list(dict.fromkeys(caption(triple_of(number)) for number in numbers))
        self._texts = dict(zip(captions, self._decoder.encode(captions), strict=True))

    def refusal(self, option: Option) -> str | None:
        """Why the option cannot run on this device."""
        try:
            self._pipeline(option)
        except BackendUnavailableError as error:
            return str(error)
        return None

    def measure(self, option: Option, number: int) -> Video:
        """Make the video and both of its references."""
        request, pipeline = self._request(option, number), self._pipeline(option)
        with recorded_blocks() as blocks:
            began = time.perf_counter()
            latent = self._sample(pipeline, request)
            seconds = time.perf_counter() - began
        frames = self._frames(latent)
        exact = self._reference(FULL if option.sparse else NetworkSettings(attention="dense"))
        with forced_blocks(blocks):
            exact_frames = self._frames(self._sample(exact, request))
        finding = detect(clip(frames).to(self.device)[None])[0]
        seen = {kind: getattr(finding, kind) == expected for kind, expected in triple_of(number)._asdict().items()}
        return Video(
            numeric_db=psnr(frames, exact_frames),
            full_db=psnr(frames, self.full(option, number)),
            seconds=round(seconds, 4),
            **seen,
        )

    def frames(self, option: Option, number: int) -> Tensor:
        """The option's video, uint8 [T, H, W, 3]."""
        return self._frames(self._sample(self._pipeline(option), self._request(option, number)))

    def full(self, option: Option, number: int) -> Tensor:
        """The fp32 video over all blocks in the option's steps; those of one number are kept."""
        if self._full_of != number:
            self._full, self._full_of = {}, number
        walk = option.steps, option.sampler
        if walk not in self._full:
            self._full[walk] = self._frames(self._sample(self._reference(FULL), self._request(option, number)))
        return self._full[walk]

    def _request(self, option: Option, number: int) -> Request:
        return Request(
            prompt=caption(triple_of(number)),
            size=self.size[:2],
            frames=self.size[2],
            seed=number,
            steps=option.steps,
            sampler=option.sampler,
        )

    def _pipeline(self, option: Option) -> Pipeline:
        unquantized = option.precision == "fp8" or (self.trained and option.precision == "bf16")
        return self._ready(self._unquantized if unquantized else self.files, option.network, None)

    def _reference(self, settings: NetworkSettings) -> Pipeline:
        return self._ready(self._unquantized, settings, torch.float32)

    def _ready(self, files: ModelFiles, settings: NetworkSettings, dtype: torch.dtype | None) -> Pipeline:
        """A pipeline that has compiled what it runs: compiling routes, which must not count among the blocks."""
        key = settings, dtype
        if key not in self._pipelines:
            pipeline = Pipeline(files, settings, self.device, dtype=dtype)
            if self.device.type == "cuda":
                self._sample(pipeline, self._request(Option(steps=1), 0))
            self._pipelines[key] = pipeline
        return self._pipelines[key]

    def _sample(self, pipeline: Pipeline, request: Request) -> Tensor:
        latent = pipeline.sample(request, self._texts[request.prompt])
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return latent

    def _frames(self, latent: Tensor) -> Tensor:
        """By one decoder for all, so that options differ in their latents alone."""
        pieces: list[Tensor] = []
        self._decoder.decode(latent, pieces.append)
        return torch.cat(pieces).cpu()


def triple_of(number: int) -> Triple:
    """What the video of a number is asked to show; the number is its seed too."""
    return HELD_OUT[number % len(HELD_OUT)]


def clip(frames: Tensor) -> Tensor:
    """uint8 [T, H, W, 3] → [3, T, H, W] in [-1, 1]."""
    return frames.permute(3, 0, 1, 2).to(torch.float32) / 127.5 - 1


def psnr(frames: Tensor, reference: Tensor) -> float:
    """Of 8-bit frames, in dB; `EQUAL_DB` where they are equal."""
    error = (frames.to(torch.float64) - reference.to(torch.float64)).square().mean()
    return EQUAL_DB if error == 0 else round(10 * (255**2 / error).log10().item(), 2)


def run(bench: Bench, study: Study, file: Path, wanted: tuple[Option, ...], videos: int, minutes: float) -> Study:
    """Add what is missing of each option's videos and write the file after each, until the minutes are over."""
    deadline = time.monotonic() + 60 * minutes
    reasons = {option.name: bench.refusal(option) for option in wanted}
    left_out = {name: reason for name, reason in reasons.items() if reason is not None}
    for name, reason in left_out.items():
        print(f"left out: {name}: {reason}", flush=True)
    study = dataclasses.replace(study, left_out=study.left_out | left_out)
    for number in range(videos):
        for option in wanted:
            if option.name in left_out or study.count(option) > number:
                continue
            if time.monotonic() > deadline:
                return study
            study = study.with_video(option, bench.measure(option, number))
            study.write(file)
        print(f"video {number + 1} of {videos}: {caption(triple_of(number))}", file=sys.stderr, flush=True)
    return study


def draw(bench: Bench, study: Study, axes: tuple[str, ...], number: int, file: Path) -> None:
    """A picture for each axis, beside the file."""
    made: dict[Option, Tensor] = {}
    for axis in axes:
        shown = []
        for option in AXES[axis]:
            if study.of(option) is None:
                continue
            if option not in made:
                made[option] = clip(bench.frames(option, number))
            shown.append(Shown(caption=option.name, clip=made[option]))
        if not shown:
            continue
        title = f"{caption(triple_of(number))}: all blocks in fp32, {DEFAULT.steps} steps"
        shown.insert(0, Shown(caption=title, clip=clip(bench.full(DEFAULT, number))))
        sheet = contact_sheet(shown, COLUMNS).quantize(COLOURS, dither=Image.Dither.NONE)
        sheet.save(picture(file, axis), optimize=True)


def picture(file: Path, axis: str) -> Path:
    return file.with_name(f"{file.stem}_{axis}.png")


def subject(files: ModelFiles, unquantized: Path, device: torch.device, size: Size, *, trained: bool) -> Subject:
    on_gpu = device.type == "cuda"
    processor = torch.cuda.get_device_name(device) if on_gpu else f"CPU, threads: {torch.get_num_threads()}"
    used = {path.name: path for path in (files.network, files.vae, files.text_encoder)}
    if trained:
        used["the training's weights"] = unquantized
    digits = {name: hashlib.sha256(path.read_bytes()).hexdigest()[:DIGITS] for name, path in used.items()}
    return Subject(device=processor, versions=suite.versions(), size=size_text(size), model=digits)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="the .json to write, or to go on with")
    parser.add_argument("--videos", type=int, default=60, help="of each option; there are 30 held-out captions")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop measuring then; call again to go on")
    parser.add_argument("--axes", default=",".join(AXES), help="which options")
    parser.add_argument("--size", type=size_argument, default="160x160x81", help="width x height x frames")
    parser.add_argument("--shown", type=int, default=0, help="number of the video in the pictures")
    parser.add_argument("--bundle", type=Path, default=demo_bundle.FOLDER, help="folder with the model's files")
    parser.add_argument("--state", type=Path, help="the training's file that the bundle was exported from")
    parser.add_argument("--device", choices=("cuda", "cpu"), default=default_device().type)
    given = parser.parse_args()
    given.axes = tuple(given.axes.split(","))
    if unknown := set(given.axes) - set(AXES):
        parser.error(f"axes: must be of {', '.join(AXES)}, got {', '.join(sorted(unknown))}")
    if given.file.suffix != ".json":
        parser.error(f"file: must be a .json, got {given.file.name}; the page and the pictures are named after it")
    if given.videos < 1 or given.shown < 0:
        parser.error("videos must be 1 or more, shown 0 or more")
    return given


def main() -> None:
    given = arguments()
    device = torch.device(given.device)
    torch.backends.cudnn.allow_tf32 = False  # for the fp32 references; bf16 has no use for it
    try:
        files = bundle_files(given.bundle)
        with tempfile.TemporaryDirectory() as folder:
            unquantized = write_unquantized(files, given.state, Path(folder) / "unquantized.safetensors")
            trained = given.state is not None
            measured = subject(files, unquantized, device, given.size, trained=trained)
            study = quality_data.resumed(given.file, measured, datetime.date.today().isoformat())
            bench = Bench(files, unquantized, device, given.size, trained=trained)
            bench.prepare(range(max(given.videos, given.shown + 1)))
            wanted = options(given.axes)
            study = run(bench, study, given.file, wanted, given.videos, given.minutes)
            left = sum(
                max(0, given.videos - study.count(option)) for option in wanted if option.name not in study.left_out
            )
            if not left:
                draw(bench, study, given.axes, given.shown, given.file)
    except TurboWanError as error:
        raise SystemExit(str(error)) from error
    pictures = {axis: path.name for axis in AXES if (path := picture(given.file, axis)).is_file()}
    given.file.with_suffix(".md").write_text(quality_data.page(study, pictures), encoding="utf-8")
    print(quality_data.table(study, wanted))
    if left:
        print(f"{left} videos are still to be made: call again to go on")


if __name__ == "__main__":
    main()
