"""rCM sampling through ComfyUI's samplers: guiders, previews, masks and memory management stay the host's.

A `Trajectory` is the host's sampler function. It keeps the latent in fp64 from the first step to the last, also
where a second model takes over half-way: the host's LATENT between two samplers would be divided by 1 − σ and
rounded to fp32.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import comfy.model_base
import comfy.model_management
import comfy.model_sampling
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor
from tqdm.auto import tqdm

from ..turbo_core import memory, rcm
from ..turbo_core.config import I2V_CHANNELS, T2V_CHANNELS, Family
from ..turbo_core.errors import ConditioningError, SettingsError
from ..turbo_core.rcm import NoiseOrder, StepNoise

log = logging.getLogger("turbowan")

Latent = dict[str, Any]
Conditioning = list[Any]

_LATENT_FIXES = inspect.signature(comfy.sample.fix_empty_latent_channels).parameters
_RATIOS = ("downscale_ratio_spacial", "downscale_ratio_temporal")  # the host's spelling
SAMPLER_REMEDY = (
    "choose fewer frames or a smaller size, a quantized model (TurboLoader precision 'int8'), attention 'sla' instead "
    "of 'dense', or start ComfyUI with --lowvram"
)
VAE_REMEDY = (
    "choose fewer frames or a smaller size, close other programs that use the GPU, or start ComfyUI with --lowvram"
)
_FAMILY_OF_CHANNELS: dict[int, Family] = {T2V_CHANNELS: "t2v", I2V_CHANNELS: "i2v"}


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A model and the part of the schedule it walks."""

    model: ModelPatcher
    times: Tensor


class Trajectory:
    """A latent's way through the schedule; the host calls it once per stage.

    Attributes:
        stochastic: SDE if true, else ODE.
        noise: draws the steps' noise; made from the host's seed in the first stage if not given.
    """

    def __init__(self, *, stochastic: bool, noise: StepNoise | None = None) -> None:
        self.stochastic = stochastic
        self.noise = noise
        self._state: Tensor | None = None
        self._steps_done = 0

    def __call__(
        self,
        model: comfy.samplers.KSamplerX0Inpaint,
        x: Tensor,
        sigmas: Tensor,
        extra_args: dict[str, Any] | None = None,
        callback: Callable[[dict[str, Any]], None] | None = None,
        disable: bool | None = None,
    ) -> Tensor:
        _require_flow(model.inner_model.inner_model)
        options = extra_args or {}
        if self._state is None:
            self._state = x
        if self.noise is None:
            self.noise = StepNoise(x.shape, x.device, options.get("seed") or 0)
        if self.stochastic:
            self.noise.draw_ahead()

        def predict(state: Tensor, t: float) -> Tensor:
            return model(state, state.new_full(state.shape[:1], t), **options)

        with tqdm(total=len(sigmas) - 1, disable=disable) as bar:

            def report(step: int, x0: Tensor, state: Tensor) -> None:
                bar.update()
                sigma = sigmas[step - self._steps_done]
                if callback is not None:
                    callback({"x": state, "i": step, "sigma": sigma, "sigma_hat": sigma, "denoised": x0})

            self._state = rcm.sample(
                predict,
                self._state,
                sigmas,
                stochastic=self.stochastic,
                noise=self.noise,
                on_step=report,
                first_step=self._steps_done,
            )
        self._steps_done += len(sigmas) - 1
        return self._state.to(x.dtype)


def rcm_sampler(
    model: comfy.samplers.KSamplerX0Inpaint,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], None] | None = None,
    disable: bool | None = None,
    stochastic: bool = True,
) -> Tensor:
    """A whole schedule in one call: what SAMPLER holds."""
    return Trajectory(stochastic=stochastic)(model, x, sigmas, extra_args, callback, disable)


def sampler_object(stochastic: bool) -> comfy.samplers.KSAMPLER:
    """The host's SAMPLER for SamplerCustom and SamplerCustomAdvanced."""
    return comfy.samplers.KSAMPLER(rcm_sampler, extra_options={"stochastic": stochastic})


def sigmas(steps: int, sigma_max: float) -> Tensor:
    """The host's SIGMAS: rectified-flow times in fp32."""
    return rcm.schedule(steps, sigma_max).to(torch.float32)


def sample(
    stages: Sequence[Stage],
    conditioning: Conditioning,
    latent: Latent,
    *,
    seed: int,
    stochastic: bool,
    noise_order: NoiseOrder,
    where: str,
) -> Latent:
    """Walk the stages and return the clean LATENT. A later stage's model is loaded when its turn comes."""
    if not conditioning:
        raise ConditioningError(f"{where}: conditioning must hold an encoded prompt, got none; connect CLIPTextEncode")
    start = _prepared(stages[0].model, latent)
    noise, step_noise = _noise(start, latent, seed, noise_order, stages[0].model.load_device)
    trajectory = Trajectory(stochastic=stochastic, noise=step_noise)
    steps = sum(len(stage.times) - 1 for stage in stages)
    preview = latent_preview.prepare_callback(stages[0].model, steps)
    with memory_advice(where, stages[0].model.load_device, SAMPLER_REMEDY):
        for stage in stages:
            guider = comfy.samplers.CFGGuider(stage.model)
            guider.inner_set_conds({"positive": conditioning})
            samples = guider.sample(
                noise,
                start,
                comfy.samplers.KSAMPLER(trajectory),
                stage.times,
                denoise_mask=latent.get("noise_mask"),
                callback=lambda step, x0, x, _: preview(step, x0, x, steps),
                disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
                seed=seed,
            )
    result = {name: value for name, value in latent.items() if name not in _RATIOS}
    result["samples"] = samples.to(comfy.model_management.intermediate_device())
    return result


def expert_stages(
    high: ModelPatcher, low: ModelPatcher, steps: int, sigma_max: float, boundary: float, where: str
) -> list[Stage]:
    """The experts' parts of the schedule; an expert without a step is left out, and so never loaded."""
    for model in (high, low):
        require_family(model, "i2v", where, "use TurboT2VSampler with a T2V model")
    warn_if_swapped(high, low, where)
    switch = rcm.split_at_boundary(rcm.schedule(steps, sigma_max), boundary)
    times = sigmas(steps, sigma_max)
    parts = ((high, times[: switch + 1]), (low, times[switch:]))
    return [Stage(model=model, times=part) for model, part in parts if len(part) > 1]


def require_family(model: ModelPatcher, family: Family, where: str, remedy: str) -> None:
    """SettingsError unless `model` is a Wan flow model of the family."""
    base = model.model
    if not isinstance(base, comfy.model_base.WAN21):
        raise SettingsError(
            f"{where}: the model must be Wan 2.1 or 2.2, got {type(base).__name__}; load one with TurboLoader"
        )
    channels = base.diffusion_model.patch_embedding.weight.shape[1]
    found = _FAMILY_OF_CHANNELS.get(channels)
    if found != family:
        got = found.upper() if found else f"a Wan model with {channels} input channels"
        raise SettingsError(f"{where}: the model must be {family.upper()}, got {got}; {remedy}")


def warn_if_swapped(high: ModelPatcher, low: ModelPatcher, where: str) -> None:
    """Say so where the files' own marks contradict the slots; marks may be missing or wrong, so nothing is refused."""
    for slot, model in (("high", high), ("low", low)):
        expert = getattr(model.model, "expert", None)
        if expert is not None and expert != slot:
            log.warning(
                "%s: model_%s holds the %s-noise expert according to its file; if the video is noise or washed out, "
                "swap the two models",
                *(where, slot, expert),
            )


def memory_advice(where: str, device: torch.device, remedy: str) -> AbstractContextManager[None]:
    """`turbo_core.memory.memory_advice` with the host's own idea of such an error."""
    return memory.memory_advice(where, device, remedy, _is_out_of_memory)


def _is_out_of_memory(error: RuntimeError) -> bool:
    decide = getattr(comfy.model_management, "is_oom", None)
    return decide(error) if decide else isinstance(error, comfy.model_management.OOM_EXCEPTION)


def _require_flow(base: comfy.model_base.BaseModel) -> None:
    if not isinstance(base.model_sampling, comfy.model_sampling.CONST):
        raise SettingsError(
            f"TurboWan sampler: the model must be a flow model such as Wan, got {type(base).__name__} with "
            f"{type(base.model_sampling).__name__}; use another sampler with it"
        )


def _prepared(model: ModelPatcher, latent: Latent) -> Tensor:
    """The start latent with the channels and dimensions of the model, as the host's own samplers do it."""
    ratios = {name: latent.get(name) for name in _RATIOS if name in _LATENT_FIXES}
    return comfy.sample.fix_empty_latent_channels(model, latent["samples"], **ratios)


def _noise(
    start: Tensor, latent: Latent, seed: int, order: NoiseOrder, device: torch.device
) -> tuple[Tensor, StepNoise | None]:
    """The initial noise, and the steps' noise where it comes from the same generator."""
    if order == "comfy":
        return comfy.sample.prepare_noise(start, seed, latent.get("batch_index")), None
    draws = StepNoise(start.shape, device, seed, order)
    return draws.initial, draws
