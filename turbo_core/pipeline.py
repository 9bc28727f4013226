"""A prompt, or a prompt and an image, to a video: the text encoder, the network and the VAE in turns on one device.

    prompt ─ umT5 ─┐
    image ─ VAE ───┼─ network, 1 to 4 steps (an image-to-video model's two experts in turns) ─ VAE ─ frames
    seed ─ noise ──┘

A seed with `noise` "comfy" gives the latents that the nodes give for the same conditioning. On a GPU whatever does not
fit beside its successor leaves before it comes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from . import at_precision, checkpoint, rcm, start_image, vae_weights
from .checkpoint import Checkpoint
from .config import LATENT_CHANNELS, Family
from .errors import CheckpointError, ConditioningError, SettingsError
from .expert import Expert, NetworkSettings, check_settings, working_bytes
from .hooks import Hooks
from .memory import free_bytes, memory_advice
from .rcm import StepNoise
from .request import Request
from .text_encoder import TextEncoder
from .vae import WanVAE, denormalize, latent_size
from .vae_plan import BUDGET_SHARE, Plan
from .weight_file import open_weights

log = logging.getLogger("turbowan")

Stage = Literal["prompt", "image", "weights", "kernels", "sampling", "frames"]
Progress = Callable[[Stage, int, int], None]
"""Called with (stage, done, in all)."""
Receive = Callable[[Tensor], None]
"""Called with the next frames of the video, fp32 [3, t, H, W] in 0…1, on the device that made them."""

REMEDY = "choose fewer frames or a smaller size, a quantized model, attention sla instead of dense, or --device cpu"


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    network: Path
    """A text-to-video model, or the high-noise expert of an image-to-video pair."""
    low: Path | None = None
    """The low-noise expert."""
    vae: Path
    text_encoder: Path

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(path for path in (self.network, self.low, self.vae, self.text_encoder) if path is not None)


@dataclass(frozen=True)
class _Turn:
    """An expert's part of the schedule."""

    slot: Literal["high", "low"]
    times: Tensor


class Pipeline:
    """The models of `files` on `device`; reads their headers at once and their weights when they are needed.

    Args:
        progress: what is going on, and how far it is.
        interrupted: called often, everywhere; raises to cancel, after which the pipeline may be used again.
        dtype: what the network computes in, if it is not to be the device's own.
    """

    def __init__(
        self,
        files: ModelFiles,
        settings: NetworkSettings,
        device: torch.device,
        *,
        progress: Progress | None = None,
        interrupted: Callable[[], None] | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.files, self.settings, self.device = files, settings, device
        self._progress = progress or (lambda *_: None)
        self._interrupted = interrupted or (lambda: None)
        self.dtype = dtype or _compute_dtype(device)
        self._sources = _sources(files)
        self._experts: dict[str, Expert] = {}
        for source in self._sources.values():
            check_settings(source, settings, device, self.dtype)
        self._compiled: set[object] = set()
        self._vae_tensors = _read_vae(files.vae)
        self._vae_dtype = torch.bfloat16 if self.dtype == torch.bfloat16 else torch.float32
        self._vae = vae_weights.shaped_like(self._vae_tensors, self._vae_dtype)
        """Without data: to plan with."""

    @property
    def family(self) -> Family:
        return self._sources["high"].config.family

    def check(self, request: Request) -> None:
        """Raise for what this model cannot do, before anything is computed."""
        where = self._sources["high"].config.name
        request.check(where)
        if self.family == "i2v" and request.image is None:
            raise ConditioningError(f"{where}: an image-to-video model needs an image, got none; give --image FILE")
        if self.family == "t2v" and request.image is not None:
            raise ConditioningError(
                f"{where}: a text-to-video model takes no image, got {request.image}; choose an image-to-video model"
            )
        self._turns(request)

    def encode(self, prompts: Sequence[str]) -> list[Tensor]:
        """Conditioning of each prompt, [1, tokens, dim] on the CPU; many cost the time of one."""
        encoder = TextEncoder.open(self.files.text_encoder)
        wanted = self._sources["high"].config.text_dim
        if encoder.shape.dim != wanted:
            raise ConditioningError(
                f"text encoder: {self.files.text_encoder.name} must give states of {wanted} for this model, it gives "
                f"{encoder.shape.dim}; use the text encoder that belongs to the model"
            )
        with memory_advice("text encoder", self.device, "free GPU memory, or choose --device cpu"):
            return encoder.encode(
                prompts, self.device, progress=self._reporter("prompt"), interrupted=self._interrupted
            )

    def generate(self, request: Request, text: Tensor, receive: Receive) -> None:
        """Make the video; its frames go to `receive` as they are decoded."""
        self.decode(self.sample(request, text), receive)

    @torch.inference_mode()
    def sample(self, request: Request, text: Tensor) -> Tensor:
        """The raw latent [1, 16, T, H, W] of a video, as the nodes' LATENT holds it."""
        self.check(request)
        with memory_advice("pipeline", self.device, REMEDY):
            image = None if request.image is None else self.encode_image(request)
            shape = torch.Size((1, LATENT_CHANNELS, *latent_size(request.frames, request.size[1], request.size[0])))
            noise = StepNoise(shape, self.device, request.seed, request.noise)
            initial = initial_noise(shape, request.seed) if noise.initial is None else noise.initial
            if request.chosen_sampler == "sde":
                noise.draw_ahead()
            return self.walk(request, initial, noise, text, image)

    @torch.inference_mode()
    def walk(
        self, request: Request, initial: Tensor, noise: Callable[[], Tensor], text: Tensor, image: Tensor | None
    ) -> Tensor:
        """Standard normal noise [B, 16, T, H, W] to raw latents, in the request's steps.

        Args:
            request: what all of them have in common; not its prompt, seed and image.
            noise: draws what the SDE adds in a step, as much as `initial`.
            text: [B, tokens, dim].
            image: [B, 20, T, H, W], what an image-to-video model reads beside the noise.
        """
        turns = self._turns(request)
        x = initial.to(self.device) * turns[0].times[0].to(self.device)
        stochastic = request.chosen_sampler == "sde"
        done = 0
        for turn in turns:
            expert = self._bring(turn.slot, x.shape)
            predict = self._predictor(expert, text.to(self.device), image, done, request.steps)
            x = rcm.sample(predict, x, turn.times, stochastic=stochastic, noise=noise, first_step=done)
            done += len(turn.times) - 1
        return denormalize(x.to(torch.float32))

    @torch.inference_mode()
    def decode(self, latent: Tensor, receive: Receive) -> None:
        """The frames of a raw latent."""

        def hand_on(_: int, __: int, piece_1CTHW: Tensor) -> None:
            receive(piece_1CTHW[0].to(torch.float32, copy=True).add_(1).div_(2).clamp_(0, 1))

        with memory_advice("VAE decode", self.device, REMEDY):
            plan = self._vae.plan_decode(tuple(latent.shape[2:]), chunk=None, budget=None)
            vae, budget = self._lend_vae("decode", plan)
            vae.decode_to(
                hand_on,
                latent,
                memory_budget_bytes=budget,
                progress=self._reporter("frames"),
                interrupted=self._interrupted,
                output_device="cpu",
            )

    def release(self) -> None:
        """Give the GPU's memory back."""
        for expert in self._experts.values():
            expert.release()

    def _turns(self, request: Request) -> list[_Turn]:
        """The schedule, cut where the experts change; an expert without a step has no turn."""
        exact = rcm.schedule(request.steps, request.first_sigma)
        times = exact.to(torch.float32)
        if self.family == "t2v":
            return [_Turn("high", times)]
        switch = rcm.split_at_boundary(exact, request.boundary)
        turns = [_Turn("high", times[: switch + 1]), _Turn("low", times[switch:])]
        turns = [turn for turn in turns if len(turn.times) > 1]
        if "low" not in self._sources and any(turn.slot == "low" for turn in turns):
            raise SettingsError(
                f"low-noise expert: {request.steps} steps at boundary {request.boundary:g} need it, no file was given; "
                "give both experts, or choose 1 or 2 steps"
            )
        return turns

    @torch.inference_mode()
    def encode_image(self, request: Request) -> Tensor:
        """What the network gets of the request's image beside the noise, [1, 20, T, H, W] in its dtype."""
        frames = start_image.image_then_grey(start_image.load_image(request.image), request.size)[: request.frames]
        size = latent_size(request.frames, request.size[1], request.size[0])
        plan = self._vae.plan_encode(size, chunk=None, budget=None, still=request.frames > len(frames))
        vae, budget = self._lend_vae("encode", plan)
        encoded = vae.encode(
            frames.movedim(-1, 0)[None] * 2 - 1,
            length=request.frames,
            memory_budget_bytes=budget,
            progress=self._reporter("image"),
            interrupted=self._interrupted,
        )
        return start_image.condition(encoded).to(self.dtype)

    def _bring(self, slot: str, shape: torch.Size) -> Expert:
        """An expert ready for a latent of `shape`; on a GPU the other one leaves if they do not fit together."""
        on_gpu, source = self.device.type == "cuda", self._sources[slot]
        if slot not in self._experts:
            converts = at_precision.converts(source, self.settings.precision)
            if on_gpu and converts and free_bytes(self.device) < at_precision.CONVERSION_BYTES:
                self.release()
            reporter = self._reporter("weights")
            self._experts[slot] = Expert(source, self.settings, self.device, self.dtype, reporter)
        expert = self._experts[slot]
        if on_gpu:
            tokens = shape[0] * shape[2:].numel() // expert.network.config.patch_volume
            needed = working_bytes(expert.network.config, tokens)
            if expert.here and free_bytes(self.device) < needed:
                expert.release()
            if not expert.here and free_bytes(self.device) < needed + expert.nbytes:
                self.release()
            expert.bring(free_bytes(self.device), tokens)
        return expert

    def _predictor(
        self, expert: Expert, text: Tensor, image: Tensor | None, first_step: int, steps: int
    ) -> Callable[[Tensor, float], Tensor]:
        """x and t to the clean latent that the network sees in x."""
        network, blocks = expert.network, expert.network.config.num_layers
        step = first_step - 1

        def after_block(index: int) -> None:
            self._progress("sampling", step * blocks + index + 1, steps * blocks)

        hooks = _Watching(self._interrupted, after_block)

        def predict(x: Tensor, t: float) -> Tensor:
            nonlocal step
            step += 1
            inputs = x.to(self.dtype) if image is None else torch.cat([x.to(self.dtype), image], dim=1)
            timestep = x.new_full((len(x),), t) * 1000
            if expert.source.turbodiffusion:
                timestep = rcm.round_timestep(timestep)
            self._compile_ahead(expert, inputs, timestep, text)
            return x - network(inputs, timestep, text, hooks=hooks) * t

        return predict

    def _compile_ahead(self, expert: Expert, inputs: Tensor, timestep: Tensor, text: Tensor) -> None:
        kind = (inputs.shape, text.shape, expert.network.attention)
        if kind not in self._compiled:
            expert.network.compile_ahead(
                inputs,
                timestep,
                text.to(inputs.dtype),
                progress=self._reporter("kernels"),
                interrupted=self._interrupted,
            )
            self._compiled.add(kind)

    def _lend_vae(self, direction: Literal["encode", "decode"], plan: Plan) -> tuple[WanVAE, int | None]:
        """The VAE on the device, and the bytes that its passes may take there."""
        if self.device.type == "cuda":
            weights = sum(tensor.numel() for tensor in self._vae_tensors.values()) * self._vae_dtype.itemsize
            if BUDGET_SHARE * (free_bytes(self.device) - weights) < plan.working_bytes:
                self.release()
        vae = vae_weights.from_tensors(
            self._vae_tensors, device=self.device, dtype=self._vae_dtype, direction=direction
        )
        if direction not in self._compiled:
            vae.compile_ahead(direction, progress=self._reporter("kernels"), interrupted=self._interrupted)
            self._compiled.add(direction)
        return vae, int(BUDGET_SHARE * free_bytes(self.device)) if self.device.type == "cuda" else None

    def _reporter(self, stage: Stage) -> Callable[[int, int], None]:
        def report(done: int, total: int) -> None:
            self._interrupted()
            self._progress(stage, done, total)

        return report


class _Watching(Hooks):
    """Looks whether to go on, and tells each block that is done."""

    def __init__(self, interrupted: Callable[[], None], after_block: Callable[[int], None]) -> None:
        self._interrupted, self._after_block = interrupted, after_block

    def interrupted(self) -> None:
        self._interrupted()

    def after_block(self, index: int, x: Tensor, latent: Tensor, time: Tensor) -> Tensor:
        self._after_block(index)
        return x


def default_device() -> torch.device:
    """The GPU, where torch has a working one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _compute_dtype(device: torch.device) -> torch.dtype:
    """What the network computes in: bf16 on GPUs that have it, fp32 on the CPU."""
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16


def _sources(files: ModelFiles) -> dict[str, Checkpoint]:
    """The checkpoints by slot; SettingsError where they do not belong together."""
    sources = {"high": checkpoint.read(files.network)}
    if files.low is not None:
        sources["low"] = checkpoint.read(files.low)
    families = {source.config.family for source in sources.values()}
    if len(sources) == 2 and families != {"i2v"}:
        raise SettingsError(
            f"model: a pair must be two image-to-video experts, got {files.network.name} "
            f"({sources['high'].config.name}) and {files.low.name} ({sources['low'].config.name}); "
            "give a text-to-video model alone"
        )
    for slot, source in sources.items():
        if source.expert not in (None, slot):
            log.warning(
                "%s is the %s-noise expert according to its file, and takes the %s-noise steps here; if the video is "
                "noise or washed out, swap the two files",
                *(source.path.name, source.expert, slot),
            )
    return sources


def _read_vae(path: Path) -> dict[str, Tensor]:
    content = open_weights(path).content
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"VAE: {path.name} must hold named tensors alone; use wan_2.1_vae.safetensors")
    return content


def initial_noise(shape: torch.Size, seed: int) -> Tensor:
    """As ComfyUI draws it: on the CPU, from the seed itself."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
