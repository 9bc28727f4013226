"""A latent to images: our decoder on the host's Wan 2.1 VAE, any other VAE's own decoder."""

from __future__ import annotations

import logging

import torch
from comfy.sd import VAE
from torch import Tensor

from ._operations import throw_if_interrupted
from ._sampling import VAE_REMEDY, memory_advice
from ._wan_vae import lend, progress, refusal

log = logging.getLogger("turbowan")

WHERE = "TurboVAEDecode"


def decode(vae: VAE, latent: Tensor) -> Tensor:
    """Images [frames, H, W, 3] in 0…1, batches one after another, as VAEDecode gives them."""
    reason = refusal(vae, "decode")
    if reason is None and latent.ndim != 5:
        reason = f"the latent has {latent.ndim} dimensions, not 5"
    if reason is None:
        with memory_advice(WHERE, vae.device, VAE_REMEDY):
            images = _decode_wan(vae, latent)
    else:
        log.info("%s: the VAE's own decoder, because %s", WHERE, reason)
        images = vae.decode(latent)
    return images.reshape(-1, *images.shape[-3:])


def _decode_wan(vae: VAE, latent: Tensor) -> Tensor:
    size = tuple(latent.shape[2:])
    decoder, budget = lend(vae, lambda shapes: shapes.plan_decode(size, chunk=None, budget=None))
    video = decoder.decode(
        latent,
        memory_budget_bytes=budget,
        progress=progress(),
        interrupted=throw_if_interrupted,
        output_device=vae.output_device,
    )
    images = vae.process_output(video.to(torch.float32))
    return images.movedim(1, -1)
