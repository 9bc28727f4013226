"""The host's Wan 2.1 VAE lent to our code: its weights, its device and dtype, its memory management."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import comfy.ldm.wan.vae
import comfy.model_management
from comfy.sd import VAE

from ..turbo_core import vae as wan_vae
from ..turbo_core.vae_plan import Plan

RGB = 3
BUDGET_SHARE = 0.65  # of the free memory: convolutions need workspace that no plan counts


def refusal(vae: VAE, direction: Literal["encode", "decode"]) -> str | None:
    """Why our code cannot stand in for the VAE's own, or None."""
    model = vae.first_stage_model
    if not isinstance(model, comfy.ldm.wan.vae.WanVAE):
        return f"it is {type(model).__name__}, not a Wan 2.1 VAE"
    channels = model.encoder.conv1.weight.shape[1] if direction == "encode" else model.decoder.head[-1].weight.shape[0]
    if channels != RGB:
        return f"it {direction}s {channels} channels, not {RGB}"
    return None


def lend(vae: VAE, plan: Callable[[wan_vae.WanVAE], Plan]) -> tuple[wan_vae.WanVAE, int]:
    """Our VAE over the weights of a VAE without refusal, and the bytes its passes may take on the device.

    The host first makes room for the plan, which is made from the weights' shapes.
    """
    vae.throw_exception_if_invalid()
    shapes = wan_vae.shaped_like(vae.first_stage_model.state_dict(), vae.vae_dtype)
    needed = plan(shapes).working_bytes + comfy.model_management.module_size(vae.first_stage_model)
    comfy.model_management.load_models_gpu([vae.patcher], memory_required=needed, force_full_load=vae.disable_offload)
    # Weights that the host has put on the device are shared; what it streams is copied for the length of the call.
    lent = wan_vae.from_tensors(vae.first_stage_model.state_dict(), device=vae.device, dtype=vae.vae_dtype)
    return lent, int(BUDGET_SHARE * comfy.model_management.get_free_memory(vae.device))
