"""Videos of held-out captions by option, many at once, and the fp32 videos that they are held against.

A demo video is too small for a GPU: alone, it waits for Python. Many are walked through the pipeline's own steps
together, each from the noise that `Pipeline.sample` would draw for it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from turbowan.benchmarks.block_sets import forced_blocks, recorded_blocks
from turbowan.benchmarks.quality_data import EQUAL_DB, QualityError, Video
from turbowan.benchmarks.quality_options import Option
from turbowan.benchmarks.request import Size
from turbowan.demo import evaluate, vae_network
from turbowan.demo.detector import detect
from turbowan.demo.export_vae import averaged
from turbowan.demo.first_frame import first_frame
from turbowan.demo.vocabulary import HELD_OUT, Triple, caption
from turbowan.turbo_core import checkpoint, vae_weights
from turbowan.turbo_core.block_int8 import dequantize_tensors
from turbowan.turbo_core.errors import BackendUnavailableError
from turbowan.turbo_core.expert import NetworkSettings
from turbowan.turbo_core.pipeline import ModelFiles, Pipeline, initial_noise
from turbowan.turbo_core.rcm import MAX_STEPS, StepNoise
from turbowan.turbo_core.request import Request
from turbowan.turbo_core.vae import LATENT_CHANNELS, latent_size

CLIPS_AT_ONCE = 8  # that are decoded and looked at
FULL = NetworkSettings(attention="sla", topk=1.0)


def bundle_files(bundle: Path, *, i2v: bool = False) -> ModelFiles:
    """The text-to-video model's, or the pair's.

    Raises:
        QualityError: if one is missing.
    """
    files = evaluate.files(bundle, i2v=i2v)
    missing = [path for path in files.paths if not path.is_file()]
    if missing:
        names = ", ".join(path.relative_to(bundle).as_posix() for path in missing)
        raise QualityError(
            f"quality: the demo model must lie in {bundle}, {names} is not there; make it as demo/README.md says, or "
            "give its folder with --bundle"
        )
    return files


def write_unquantized(network: Path, path: Path, state: Path | None = None) -> Path:
    """A network in fp32: a training state's averaged weights, or the file's as they dequantize."""
    source = checkpoint.read(network)
    tensors = dequantize_tensors(source.tensors, torch.float32) if state is None else averaged(state)
    # Copies, because safetensors writes no tensors that share the memory of a mapped file.
    save_file({name: tensor.to(torch.float32, copy=True).contiguous() for name, tensor in tensors.items()}, path)
    if checkpoint.read(path).config.num_layers != source.config.num_layers:
        raise QualityError(
            f"quality: {state} must be the training state of {network.name}, it has another number of blocks"
        )
    return path


@dataclass(frozen=True, kw_only=True)
class _Beginnings:
    """What the videos of `numbers` are made from, each from its own seed and caption, whatever the option.

    Attributes:
        noise: [B, 16, T, H, W]; `draws` are as large, what the SDE adds step by step.
        text: [B, tokens, dim].
    """

    numbers: tuple[int, ...]
    noise: Tensor
    draws: tuple[Tensor, ...]
    text: Tensor


class Bench:
    """Makes the videos of a bundle, many at once; its image-to-video pair may be missing.

    Args:
        folder: for the unquantized networks and the first frames; must outlive the bench.
        state: what the training left of the text-to-video model. Then "bf16" and "fp8" start from it, and so does the
            reference.
    """

    def __init__(
        self, bundle: Path, folder: Path, device: torch.device, size: Size, *, state: Path | None = None
    ) -> None:
        self.device, self.size, self.trained = device, size, state is not None
        self._folder = folder
        files = bundle_files(bundle)
        unquantized = write_unquantized(files.network, folder / "unquantized.safetensors", state)
        self._files = {False: files}
        self._unquantized = {False: replace(files, network=unquantized)}
        self._pair_missing: str | None = None
        try:
            self._add_pair(bundle_files(bundle, i2v=True))
        except QualityError as error:
            self._pair_missing = str(error)
        self._vae = vae_weights.from_tensors(load_file(files.vae), device=device, dtype=torch.float32)
        self._pipelines: dict[tuple[Path, NetworkSettings, torch.dtype | None], Pipeline] = {}
        self._warm: set[tuple[Pipeline, int]] = set()
        self._texts: dict[str, Tensor] = {}
        self._images: dict[tuple[int, torch.dtype], Tensor] = {}
        self._beginnings: _Beginnings | None = None
        self._full: dict[tuple[bool, int, str], Tensor] = {}
        """Of the numbers that `_beginnings` are of."""

    def _add_pair(self, files: ModelFiles) -> None:
        self._files[True] = files
        high = write_unquantized(files.network, self._folder / "high.safetensors")
        low = write_unquantized(files.low, self._folder / "low.safetensors")
        self._unquantized[True] = replace(files, network=high, low=low)

    @property
    def measured_files(self) -> dict[str, Path]:
        """Everything that videos are made of, by its name."""
        named = {path.name: path for files in self._files.values() for path in files.paths}
        return named | ({"the training's weights": self._unquantized[False].network} if self.trained else {})

    def prepare(self, numbers: range) -> None:
        """Encode the captions of these videos, in one walk through the text encoder."""
        captions = list(dict.fromkeys(caption(triple_of(number)) for number in numbers))
        encoder = Pipeline(self._files[False], NetworkSettings(), self.device)
        self._texts = dict(zip(captions, encoder.encode(captions), strict=True))

    def refusal(self, option: Option) -> str | None:
        """Why the option cannot run here."""
        if option.image and self._pair_missing is not None:
            return self._pair_missing
        try:
            self._pipeline(option)
        except BackendUnavailableError as error:
            return str(error)
        return None

    def measure(self, option: Option, numbers: Sequence[int], *, compare: bool) -> list[Video]:
        """Make the videos; with `compare`, both of their references too."""
        pipeline = self._pipeline(option)
        self._warm_up(pipeline, option, numbers)
        with recorded_blocks() as blocks:
            frames = self._frames(self._walk(pipeline, option, numbers))
        seen = self._seen(frames, numbers)
        if not compare:
            return [Video(**each) for each in seen]
        exact = self._reference(FULL if option.sparse else NetworkSettings(attention="dense"), option)
        self._warm_up(exact, option, numbers)
        with forced_blocks(blocks):
            exact_frames = self._frames(self._walk(exact, option, numbers))
        numeric, full = psnr(frames, exact_frames), psnr(frames, self.full(option, numbers))
        return [
            Video(**each, numeric_db=one, full_db=other) for each, one, other in zip(seen, numeric, full, strict=True)
        ]

    def seconds(self, option: Option, number: int) -> float:
        """To sample one video as a user's is, without text encoder and decode."""
        request, pipeline = self._request(option, number), self._pipeline(option)
        began = time.perf_counter()
        pipeline.sample(request, self._texts[request.prompt])
        self._wait()
        return time.perf_counter() - began

    def frames(self, option: Option, numbers: Sequence[int]) -> Tensor:
        """The option's videos, uint8 [B, 3, T, H, W] on the device."""
        return self._frames(self._walk(self._pipeline(option), option, numbers))

    def full(self, option: Option, numbers: Sequence[int]) -> Tensor:
        """The fp32 videos over all blocks in the option's steps; those of the latest numbers are kept."""
        self._begin(numbers)
        way = option.image, option.steps, option.sampler
        if way not in self._full:
            self._full[way] = self._frames(self._walk(self._reference(FULL, option), option, numbers))
        return self._full[way]

    def _seen(self, frames: Tensor, numbers: Sequence[int]) -> list[dict[str, bool]]:
        """What the detector sees as it was asked for."""
        findings = [finding for some in frames.split(CLIPS_AT_ONCE) for finding in detect(clip(some))]
        return [
            {kind: getattr(finding, kind) == expected for kind, expected in triple_of(number)._asdict().items()}
            for number, finding in zip(numbers, findings, strict=True)
        ]

    def _request(self, option: Option, number: int) -> Request:
        return Request(
            prompt=caption(triple_of(number)),
            size=self.size[:2],
            frames=self.size[2],
            seed=number,
            steps=option.steps,
            sampler=option.sampler,
            image=self._first_frame(number) if option.image else None,
        )

    def _first_frame(self, number: int) -> Path:
        path = self._folder / f"first_{number}.png"
        if not path.is_file():
            width, height, frames = self.size
            first_frame(triple_of(number), number, frames=frames, height=height, width=width).save(path)
        return path

    def _pipeline(self, option: Option) -> Pipeline:
        unquantized = option.precision == "fp8" or (self.trained and option.precision == "bf16")
        return self._opened(self._unquantized if unquantized else self._files, option.image, option.network, None)

    def _reference(self, settings: NetworkSettings, option: Option) -> Pipeline:
        return self._opened(self._unquantized, option.image, settings, torch.float32)

    def _opened(
        self, files: dict[bool, ModelFiles], image: bool, settings: NetworkSettings, dtype: torch.dtype | None
    ) -> Pipeline:
        key = files[image].network, settings, dtype
        if key not in self._pipelines:
            self._pipelines[key] = Pipeline(files[image], settings, self.device, dtype=dtype)
        return self._pipelines[key]

    def _warm_up(self, pipeline: Pipeline, option: Option, numbers: Sequence[int]) -> None:
        """Compile what it will run: compiling routes, which must not count among the blocks."""
        if self.device.type == "cuda" and (pipeline, len(numbers)) not in self._warm:
            self._walk(pipeline, replace(option, steps=1), numbers)
            self._warm.add((pipeline, len(numbers)))

    def _begin(self, numbers: Sequence[int]) -> _Beginnings:
        """Drawn as `Pipeline.sample` draws them."""
        if self._beginnings is None or self._beginnings.numbers != tuple(numbers):
            width, height, frames = self.size
            shape = torch.Size((1, LATENT_CHANNELS, *latent_size(frames, height, width)))
            drawers = [StepNoise(shape, self.device, number) for number in numbers]
            self._full.clear()
            self._beginnings = _Beginnings(
                numbers=tuple(numbers),
                noise=torch.cat([initial_noise(shape, number) for number in numbers]),
                draws=tuple(torch.cat([draw() for draw in drawers]) for _ in range(MAX_STEPS)),
                text=torch.cat([self._texts[caption(triple_of(number))] for number in numbers]),
            )
        return self._beginnings

    def _walk(self, pipeline: Pipeline, option: Option, numbers: Sequence[int]) -> Tensor:
        """Latents of `pipeline` in the option's steps."""
        given = self._begin(numbers)
        image = None
        if option.image:
            image = torch.cat([self._image(pipeline, option, number) for number in numbers])
        request = self._request(option, numbers[0])
        return pipeline.walk(request, given.noise, iter(given.draws).__next__, given.text, image)

    def _image(self, pipeline: Pipeline, option: Option, number: int) -> Tensor:
        """An encoded first frame, which depends on nothing but the dtype."""
        key = number, pipeline.dtype
        if key not in self._images:
            self._images[key] = pipeline.encode_image(self._request(option, number))
        return self._images[key]

    @torch.inference_mode()
    def _frames(self, latents: Tensor) -> Tensor:
        """By one decoder for all, in fp32, so that options differ in their latents alone."""
        parts = [vae_network.decode(self._vae, some) for some in latents.split(CLIPS_AT_ONCE)]
        return torch.cat([part.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8) for part in parts])

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def triple_of(number: int) -> Triple:
    """What the video of a number is asked to show; the number is its seed too."""
    return HELD_OUT[number % len(HELD_OUT)]


def clip(frames: Tensor) -> Tensor:
    """uint8 → fp32 in [-1, 1]."""
    return frames.to(torch.float32) / 127.5 - 1


def psnr(frames: Tensor, reference: Tensor) -> list[float]:
    """Of each of several 8-bit videos, in dB; `EQUAL_DB` where they are equal."""
    pairs = zip(frames.to(torch.float32), reference.to(torch.float32), strict=True)
    errors = [(video - other).square().mean(dtype=torch.float64).item() for video, other in pairs]
    return [EQUAL_DB if error == 0 else round(10 * math.log10(255**2 / error), 2) for error in errors]
