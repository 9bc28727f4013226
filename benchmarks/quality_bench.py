"""Videos of held-out captions by option, and the fp32 videos that they are held against."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from turbowan.benchmarks.block_sets import forced_blocks, recorded_blocks
from turbowan.benchmarks.quality_data import EQUAL_DB, QualityError, Video
from turbowan.benchmarks.quality_options import Option
from turbowan.benchmarks.request import Size
from turbowan.demo import evaluate
from turbowan.demo.detector import detect
from turbowan.demo.export_vae import averaged
from turbowan.demo.first_frame import first_frame
from turbowan.demo.vocabulary import HELD_OUT, Triple, caption
from turbowan.turbo_core import checkpoint
from turbowan.turbo_core.block_int8 import dequantize_tensors
from turbowan.turbo_core.errors import BackendUnavailableError
from turbowan.turbo_core.expert import NetworkSettings
from turbowan.turbo_core.pipeline import ModelFiles, Pipeline
from turbowan.turbo_core.request import Request

FULL = NetworkSettings(attention="sla", topk=1.0)


def bundle_files(bundle: Path, *, i2v: bool = False) -> ModelFiles:
    """The text-to-video model's, or the pair's.

    Raises:
        QualityError: if one is missing.
    """
    files = evaluate.files(bundle, i2v=i2v)
    needed = (files.network, files.low, files.vae, files.text_encoder)
    missing = [path for path in needed if path is not None and not path.is_file()]
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


class Bench:
    """Makes the videos of a bundle; its image-to-video pair may be missing.

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
        self._pipelines: dict[tuple[Path, NetworkSettings, torch.dtype | None], Pipeline] = {}
        self._decoder = Pipeline(files, NetworkSettings(), device)
        self._texts: dict[str, Tensor] = {}
        self._full: dict[tuple[bool, int, str], Tensor] = {}
        self._full_of: int | None = None

    def _add_pair(self, files: ModelFiles) -> None:
        self._files[True] = files
        high = write_unquantized(files.network, self._folder / "high.safetensors")
        low = write_unquantized(files.low, self._folder / "low.safetensors")
        self._unquantized[True] = replace(files, network=high, low=low)

    @property
    def measured_files(self) -> dict[str, Path]:
        """Everything that videos are made of, by its name."""
        found = [
            path
            for files in self._files.values()
            for path in (files.network, files.low, files.vae, files.text_encoder)
            if path is not None
        ]
        named = {path.name: path for path in found}
        return named | ({"the training's weights": self._unquantized[False].network} if self.trained else {})

    def prepare(self, numbers: range) -> None:
        """Encode the captions of these videos, in one walk through the text encoder."""
        captions = list(dict.fromkeys(caption(triple_of(number)) for number in numbers))
        self._texts = dict(zip(captions, self._decoder.encode(captions), strict=True))

    def refusal(self, option: Option) -> str | None:
        """Why the option cannot run here."""
        if option.image and self._pair_missing is not None:
            return self._pair_missing
        try:
            self._pipeline(option)
        except BackendUnavailableError as error:
            return str(error)
        return None

    def measure(self, option: Option, number: int, *, compare: bool) -> Video:
        """Make the video; with `compare`, both of its references too."""
        if not compare:
            return Video(**self._seen(self.frames(option, number), number))
        with recorded_blocks() as blocks:
            frames = self.frames(option, number)
        exact = self._reference(FULL if option.sparse else NetworkSettings(attention="dense"), option)
        with forced_blocks(blocks):
            exact_frames = self._frames(self._sample(exact, self._request(option, number)))
        return Video(
            numeric_db=psnr(frames, exact_frames),
            full_db=psnr(frames, self.full(option, number)),
            **self._seen(frames, number),
        )

    def seconds(self, option: Option, number: int) -> float:
        """To sample the video, without text encoder and decode."""
        request, pipeline = self._request(option, number), self._pipeline(option)
        began = time.perf_counter()
        self._sample(pipeline, request)
        return time.perf_counter() - began

    def frames(self, option: Option, number: int) -> Tensor:
        """The option's video, uint8 [3, T, H, W] on the device."""
        return self._frames(self._sample(self._pipeline(option), self._request(option, number)))

    def full(self, option: Option, number: int) -> Tensor:
        """The fp32 video over all blocks in the option's steps; those of one number are kept."""
        if self._full_of != number:
            self._full, self._full_of = {}, number
        walk = option.image, option.steps, option.sampler
        if walk not in self._full:
            reference = self._reference(FULL, option)
            self._full[walk] = self._frames(self._sample(reference, self._request(option, number)))
        return self._full[walk]

    def _seen(self, frames: Tensor, number: int) -> dict[str, bool]:
        """What the detector sees as it was asked for."""
        finding = detect(clip(frames)[None])[0]
        return {kind: getattr(finding, kind) == expected for kind, expected in triple_of(number)._asdict().items()}

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
        return self._ready(self._unquantized if unquantized else self._files, option.image, option.network, None)

    def _reference(self, settings: NetworkSettings, option: Option) -> Pipeline:
        return self._ready(self._unquantized, option.image, settings, torch.float32)

    def _ready(
        self, files: dict[bool, ModelFiles], image: bool, settings: NetworkSettings, dtype: torch.dtype | None
    ) -> Pipeline:
        """A pipeline that has compiled what it runs: compiling routes, which must not count among the blocks."""
        key = files[image].network, settings, dtype
        if key not in self._pipelines:
            pipeline = Pipeline(files[image], settings, self.device, dtype=dtype)
            if self.device.type == "cuda":
                self._sample(pipeline, self._request(Option(steps=1, image=image), 0))
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
        self._decoder.decode(latent, lambda piece: pieces.append(piece.to(self.device)))
        return torch.cat(pieces, dim=1).mul(255).round().to(torch.uint8)


def triple_of(number: int) -> Triple:
    """What the video of a number is asked to show; the number is its seed too."""
    return HELD_OUT[number % len(HELD_OUT)]


def clip(frames: Tensor) -> Tensor:
    """uint8 → fp32 in [-1, 1]."""
    return frames.to(torch.float32) / 127.5 - 1


def psnr(frames: Tensor, reference: Tensor) -> float:
    """Of 8-bit frames, in dB; `EQUAL_DB` where they are equal."""
    error = (frames.to(torch.float64) - reference.to(torch.float64)).square().mean()
    return EQUAL_DB if error == 0 else round(10 * (255**2 / error).log10().item(), 2)
