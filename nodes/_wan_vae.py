"""The host's Wan 2.1 VAE lent to our code: its weights, its device and dtype, its memory management."""

from __future__ import annotations

from collections.abc import Callable

import comfy.ldm.wan.vae
import comfy.model_management
import torch
from comfy.sd import VAE

from ..turbo_core import vae as wan_vae
from ..turbo_core import vae_weights
from ..turbo_core.vae_plan import BUDGET_SHARE, Plan
from ..turbo_core.vae_weights import Direction
from ._operations import progress_bar, throw_if_interrupted

RGB = 3

_compiled_for: set[tuple[Direction, torch.device, torch.dtype, wan_vae.VAEConfig]] = set()


def refusal(vae: VAE, direction: Direction) -> str | None:
    """Why our code cannot stand in for the VAE's own, or None."""
    model = vae.first_stage_model
    if not isinstance(model, comfy.ldm.wan.vae.WanVAE):
        return f"it is {type(model).__name__}, not a Wan 2.1 VAE"
    channels = model.encoder.conv1.weight.shape[1] if direction == "encode" else model.decoder.head[-1].weight.shape[0]
    if channels != RGB:
        return f"it {direction}s {channels} channels, not {RGB}"
    return None


def output_dtype(vae: VAE) -> torch.dtype:
    """Of images and latents. ComfyUI 0.8 always gives fp32; later ones let --fp16-intermediates choose."""
    decide = getattr(vae, "vae_output_dtype", None)
    return decide() if decide else torch.float32


def lend(vae: VAE, direction: Direction, plan: Callable[[wan_vae.WanVAE], Plan]) -> tuple[wan_vae.WanVAE, int]:
    """Our VAE over the weights of a VAE without refusal, and the bytes its passes may take on the device.

    The host first makes room for the plan, which is made from the weights' shapes. What the direction needs of kernels
    is compiled the first time, with progress.
    """
    vae.throw_exception_if_invalid()
    ours = vae_weights.shaped_like(vae.first_stage_model.state_dict(), vae.vae_dtype)
    needed = plan(ours).working_bytes + comfy.model_management.module_size(vae.first_stage_model)
    comfy.model_management.load_models_gpu([vae.patcher], memory_required=needed, force_full_load=vae.disable_offload)
    # Weights that the host has put on the device are shared; what it streams is copied for the length of the call.
    weights = vae.first_stage_model.state_dict()
    vae_weights.fill(ours, weights, device=vae.device, dtype=vae.vae_dtype, direction=direction)
    kind = (direction, ours.device, ours.dtype, ours.config)
    if kind not in _compiled_for:
        ours.compile_ahead(direction, progress=progress_bar(), interrupted=throw_if_interrupted)
        _compiled_for.add(kind)
    return ours, int(BUDGET_SHARE * comfy.model_management.get_free_memory(vae.device))
