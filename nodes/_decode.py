"""The host's Wan 2.1 VAE with our decoder: its weights, its device and dtype, its memory management."""

from __future__ import annotations

import logging

import comfy.ldm.wan.vae
import comfy.model_management
import comfy.utils
import torch
from comfy.sd import VAE
from torch import Tensor

from ..turbo_core import vae as wan_vae
from ..turbo_core.vae_passes import Progress
from ._operations import throw_if_interrupted
from ._sampling import VAE_REMEDY, memory_advice

log = logging.getLogger("turbowan")

WHERE = "TurboVAEDecode"
RGB = 3
BUDGET_SHARE = 0.65  # of the free memory: convolutions need workspace that no plan counts


def decode(vae: VAE, latent: Tensor) -> Tensor:
    """Images [frames, H, W, 3] in 0…1, batches one after another, as VAEDecode gives them."""
    reason = _refusal(vae, latent)
    if reason is None:
        with memory_advice(WHERE, vae.device, VAE_REMEDY):
            images = _decode_wan(vae, latent)
    else:
        log.info("%s: the VAE's own decoder, because %s", WHERE, reason)
        images = vae.decode(latent)
    return images.reshape(-1, *images.shape[-3:])


def _refusal(vae: VAE, latent: Tensor) -> str | None:
    """Why our decoder cannot stand in for the VAE's own, or None."""
    model = vae.first_stage_model
    if not isinstance(model, comfy.ldm.wan.vae.WanVAE):
        return f"it is {type(model).__name__}, not a Wan 2.1 VAE"
    channels = model.decoder.head[-1].weight.shape[0]
    if channels != RGB:
        return f"it gives {channels} channels, not {RGB}"
    if latent.ndim != 5:
        return f"the latent has {latent.ndim} dimensions, not 5"
    return None


def _decode_wan(vae: VAE, latent: Tensor) -> Tensor:
    vae.throw_exception_if_invalid()
    shapes = wan_vae.shaped_like(vae.first_stage_model.state_dict(), vae.vae_dtype)
    plan = shapes.plan_decode(tuple(latent.shape[2:]), chunk=None, budget=None)
    needed = plan.working_bytes + comfy.model_management.module_size(vae.first_stage_model)
    comfy.model_management.load_models_gpu([vae.patcher], memory_required=needed, force_full_load=vae.disable_offload)
    # Weights that the host has put on the device are shared; what it streams is copied for the length of the call.
    decoder = wan_vae.from_tensors(vae.first_stage_model.state_dict(), device=vae.device, dtype=vae.vae_dtype)
    free = comfy.model_management.get_free_memory(vae.device)
    video = decoder.decode(
        latent,
        memory_budget_bytes=int(BUDGET_SHARE * free),
        progress=_progress(),
        interrupted=throw_if_interrupted,
        output_device=vae.output_device,
    )
    images = vae.process_output(video.to(torch.float32))
    return images.movedim(1, -1)


def _progress() -> Progress:
    bar = None

    def report(done: int, total: int) -> None:
        nonlocal bar
        if bar is None:
            bar = comfy.utils.ProgressBar(total)
        bar.update_absolute(done, total)

    return report
