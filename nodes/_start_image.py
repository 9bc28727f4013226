"""A start image under the host's names: a latent, and a mask that is 0 where the image is given.

WAN21.concat_cond makes of them what `turbo_core.start_image` describes.
"""

from __future__ import annotations

import math
from typing import Any

import comfy.model_management
import node_helpers
import torch
from comfy.sd import VAE
from torch import Tensor

from ..turbo_core.errors import ConditioningError, SettingsError
from ..turbo_core.start_image import image_then_grey
from ..turbo_core.vae import LATENT_CHANNELS, latent_size
from ..turbo_core.video_size import Size, adaptive_size, check_length, check_sides
from ._encode import encode_still
from .choices import ADAPTIVE, CUSTOM, SIZES

WHERE = "TurboImageToVideo"
AREA_ASPECT = "16:9"


def video_size(resolution: str, aspect: str, custom: Size, image: Tensor) -> Size:
    """Width and height of the video. `image` is [N, H, W, C]."""
    if resolution == CUSTOM:
        check_sides(custom, WHERE)
        return custom
    if resolution not in SIZES:
        raise SettingsError(f"{WHERE}: resolution must be one of {', '.join([*SIZES, CUSTOM])}, got {resolution!r}")
    sizes = SIZES[resolution]
    if aspect == ADAPTIVE:
        return adaptive_size(math.prod(sizes[AREA_ASPECT]), image.shape[1] / image.shape[2])
    if aspect not in sizes:
        raise SettingsError(f"{WHERE}: aspect must be one of {', '.join([ADAPTIVE, *sizes])}, got {aspect!r}")
    return sizes[aspect]


def attach(conditioning: list[Any], vae: VAE, image: Tensor, size: Size, length: int) -> list[Any]:
    """The conditioning with the encoded image under the host's names."""
    check_length(length, WHERE)
    if image.ndim != 4 or image.shape[0] != 1:
        raise ConditioningError(
            f"{WHERE}: image must be one image [1, height, width, 3], got {tuple(image.shape)}; "
            "choose one with ImageFromBatch"
        )
    width, height = size
    encoded = encode_still(vae, image_then_grey(image, size)[:length], length, WHERE)
    if encoded.ndim != 5 or encoded.shape[1] != LATENT_CHANNELS:
        raise ConditioningError(
            f"{WHERE}: vae must give {LATENT_CHANNELS} channels over frames, got {tuple(encoded.shape)}; "
            "load wan_2.1_vae.safetensors"
        )
    mask = torch.ones(1, 1, *latent_size(length, height, width))
    mask[:, :, 0] = 0.0
    values = {"concat_latent_image": encoded, "concat_mask": mask.to(encoded.device)}
    return node_helpers.conditioning_set_values(conditioning, values)


def empty_latent(size: Size, length: int, batch: int) -> dict[str, Tensor]:
    """The LATENT a sampler starts from."""
    width, height = size
    shape = (batch, LATENT_CHANNELS, *latent_size(length, height, width))
    return {"samples": torch.zeros(shape, device=comfy.model_management.intermediate_device())}
