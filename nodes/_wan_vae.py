"""The host's Wan 2.1 VAE lent to our code: its weights, its device and dtype, its memory management.

Weights that the host has put on the device are shared. Large ones that it streams are lent layer by layer, all of them
for the length of a call: they stay on the device for the next prompt, as after the host's own decode, until the host
wants that memory. What it has no room to keep is copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import comfy.ldm.wan.vae
import comfy.model_management
import comfy.ops
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import VAE
from torch import Tensor, nn

from ..turbo_core import vae as wan_vae
from ..turbo_core import vae_weights
from ..turbo_core.vae_plan import BUDGET_SHARE, Plan
from ..turbo_core.vae_weights import OTHER_PART, Direction
from . import _streamed_memory
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


def free_memory(vae: VAE) -> int:
    """Bytes that a call finds free, with those that the host's streaming of other models gives up when it needs them.

    A streamed network may fill the GPU, and stays there until then. The host's own count of both warns of every page
    that is in use meanwhile, and lent weights are.
    """
    entries = comfy.model_management.current_loaded_models
    loaded = [entry.model for entry in entries if entry.device == vae.device and entry.model is not None]
    others = [patcher for patcher in loaded if _streams(patcher) and patcher.model is not vae.first_stage_model]
    streamed = sum(patcher.loaded_size() - patcher.model.model_loaded_weight_memory for patcher in others)
    return comfy.model_management.get_free_memory(vae.device) + streamed


def _streams(patcher: ModelPatcher) -> bool:
    """ComfyUI 0.8 has no streaming, and does not say so."""
    return hasattr(patcher, "is_dynamic") and patcher.is_dynamic()


@contextmanager
def lend(
    vae: VAE, direction: Direction, plan: Callable[[wan_vae.WanVAE], Plan]
) -> Iterator[tuple[wan_vae.WanVAE, int]]:
    """Our VAE over the weights of a VAE without refusal, and the bytes its passes may take on the device.

    Both hold as long as the context. The host first makes room for the plan, which is made from the weights' shapes.
    What the direction needs of kernels is compiled the first time, with progress.
    """
    vae.throw_exception_if_invalid()
    model = vae.first_stage_model
    ours = vae_weights.shaped_like(model.state_dict(), vae.vae_dtype)
    needed = plan(ours).working_bytes + comfy.model_management.module_size(model)
    comfy.model_management.load_models_gpu([vae.patcher], memory_required=needed, force_full_load=vae.disable_offload)
    with _lent_weights(model, direction, vae.device, vae.vae_dtype) as weights:
        vae_weights.fill(ours, weights, device=vae.device, dtype=vae.vae_dtype, direction=direction)
        kind = (direction, ours.device, ours.dtype, ours.config)
        if kind not in _compiled_for:
            ours.compile_ahead(direction, progress=progress_bar(), interrupted=throw_if_interrupted)
            _compiled_for.add(kind)
        yield ours, int(BUDGET_SHARE * free_memory(vae))


@contextmanager
def _lent_weights(
    model: nn.Module, direction: Direction, device: torch.device, dtype: torch.dtype
) -> Iterator[dict[str, Tensor]]:
    """The model's tensors by name; those of the direction that the host streams are on the device."""
    weights = model.state_dict()
    with ExitStack() as loans:
        for path, module in model.named_modules():
            if path.startswith(OTHER_PART[direction]) or not _streamed_memory.is_streamed(module):
                continue
            weight, bias, loan = comfy.ops.cast_bias_weight(
                module, dtype=dtype, device=device, bias_dtype=dtype, offloadable=True
            )
            give_back = partial(comfy.ops.uncast_bias_weight, module, weight, bias, loan)
            if _streamed_memory.was_written(module):
                loans.callback(give_back)
            else:  # there was no room to stay: the next layer's weights come to the same place
                weight, bias = weight.clone(), bias.clone()
                give_back()
            weights |= {f"{path}.weight": weight, f"{path}.bias": bias}
        yield weights
