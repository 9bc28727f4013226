"""A clip that stands still to a latent: our encoder on the host's Wan 2.1 VAE, any other VAE's own encoder."""

from __future__ import annotations

import logging

import torch
from comfy.sd import VAE
from torch import Tensor

from ..turbo_core.vae import latent_size
from ._operations import progress_bar, throw_if_interrupted
from ._sampling import VAE_REMEDY, memory_advice
from ._wan_vae import lend, output_dtype, refusal

log = logging.getLogger("turbowan")


def encode_still(vae: VAE, frames_THWC: Tensor, length: int, where: str) -> Tensor:
    """The latent that `vae.encode` gives for `length` frames in 0…1, of which the last given one stands to the end."""
    reason = refusal(vae, "encode")
    with memory_advice(where, vae.device, VAE_REMEDY):
        if reason is None:
            return _encode_wan(vae, frames_THWC, length)
        log.info("%s: the VAE's own encoder, because %s", where, reason)
        return vae.encode(_all_frames(frames_THWC, length))


def _encode_wan(vae: VAE, frames_THWC: Tensor, length: int) -> Tensor:
    given, height, width, _ = frames_THWC.shape
    size = latent_size(length, height, width)
    still = length > given
    with lend(vae, "encode", lambda shapes: shapes.plan_encode(size, chunk=None, budget=None, still=still)) as lent:
        encoder, budget = lent
        latent = encoder.encode(
            vae.process_input(frames_THWC.movedim(-1, 0)[None]),
            length=length,
            memory_budget_bytes=budget,
            progress=progress_bar(),
            interrupted=throw_if_interrupted,
            output_device=vae.output_device,
        )
    return latent.to(output_dtype(vae))


def _all_frames(frames: Tensor, length: int) -> Tensor:
    return torch.cat([frames, frames[-1:].expand(length - len(frames), -1, -1, -1)])
