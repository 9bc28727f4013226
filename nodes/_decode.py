"""A latent to images: our decoder on the host's Wan 2.1 VAE, any other VAE's own decoder."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from comfy.sd import VAE
from torch import Tensor

from ..turbo_core import vae as wan_vae
from ._frames import Frames
from ._operations import progress_bar, throw_if_interrupted
from ._sampling import VAE_REMEDY, memory_advice
from ._wan_vae import lend, output_dtype, refusal

log = logging.getLogger("turbowan")


@dataclass(frozen=True, kw_only=True)
class LentDecoder:
    """`run(receive, progress=…)` decodes one latent; the pieces come from `device`, blended ones from the VAE's."""

    run: Callable[..., None]
    device: torch.device


def decode(vae: VAE, latent: Tensor) -> Tensor:
    """Images [frames, H, W, 3] in 0…1, batches one after another, as VAEDecode gives them."""
    where = "TurboVAEDecode"
    if not decodes_here(vae, latent, where):
        return own_images(vae, latent)
    with memory_advice(where, vae.device, VAE_REMEDY), lend_decoder(vae, latent) as decoder:
        images = Frames(
            video_size(latent),
            device=vae.output_device,
            source=decoder.device,
            dtype=output_dtype(vae),
            finish=vae.process_output,
        )
        with images as frames:
            decoder.run(frames.receive, progress=progress_bar())
    return frames.images


def decodes_here(vae: VAE, latent: Tensor, where: str) -> bool:
    """Whether our decoder takes this VAE and latent; the log says why not."""
    reason = refusal(vae, "decode")
    if reason is None and latent.ndim != 5:
        reason = f"the latent has {latent.ndim} dimensions, not 5"
    if reason is not None:
        log.info("%s: the VAE's own decoder, because %s", where, reason)
    return reason is None


def own_images(vae: VAE, latent: Tensor) -> Tensor:
    """By the VAE itself: [frames, H, W, channels]."""
    images = vae.decode(latent)
    return images.reshape(-1, *images.shape[-3:])


@contextmanager
def lend_decoder(vae: VAE, latent: Tensor) -> Iterator[LentDecoder]:
    """Our decoder for one latent, with the host's memory cleared for it."""
    extent = tuple(latent.shape[2:])
    with lend(vae, "decode", lambda shapes: shapes.plan_decode(extent, chunk=None, budget=None)) as (decoder, budget):
        run = partial(
            decoder.decode_to,
            z_BCTHW=latent,
            memory_budget_bytes=budget,
            interrupted=throw_if_interrupted,
            output_device=vae.output_device,
        )
        yield LentDecoder(run=run, device=decoder.device)


def video_size(latent: Tensor) -> tuple[int, int, int, int]:
    """Samples, frames, height and width of a Wan latent's video."""
    return latent.shape[0], *wan_vae.video_size(*latent.shape[2:])
