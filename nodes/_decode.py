"""A latent to images: our decoder on the host's Wan 2.1 VAE, any other VAE's own decoder."""

from __future__ import annotations

import logging

from comfy.sd import VAE
from torch import Tensor

from ..turbo_core import vae as wan_vae
from ._frames import Frames
from ._operations import progress_bar, throw_if_interrupted
from ._sampling import VAE_REMEDY, memory_advice
from ._wan_vae import lend, output_dtype, refusal

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
    extent = tuple(latent.shape[2:])
    decoder, budget = lend(vae, "decode", lambda shapes: shapes.plan_decode(extent, chunk=None, budget=None))
    size = (latent.shape[0], *wan_vae.video_size(*extent))
    images = Frames(
        size, device=vae.output_device, source=decoder.device, dtype=output_dtype(vae), finish=vae.process_output
    )
    with images as frames:
        decoder.decode_to(
            frames.receive,
            latent,
            memory_budget_bytes=budget,
            progress=progress_bar(),
            interrupted=throw_if_interrupted,
            output_device=vae.output_device,
        )
    return frames.images
