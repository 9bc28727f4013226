"""A start image as TurboDiffusion conditions on it.

    y = [mask: 1 in the first latent frame, 4 channels; VAE([image, grey, grey, …])]

The host's convention holds the latent and a mask that is 0 where the image is given; WAN21.concat_cond makes y of it.
The image is stretched, so the size follows its shape: for an area A and an image of h/w = r,
height = √(A·r) and width = √(A/r), each rounded to a multiple of 16.
"""

from __future__ import annotations

import math
from typing import Any

import comfy.model_management
import node_helpers
import torch
import torch.nn.functional as F
from comfy.sd import VAE
from torch import Tensor

from ..turbo_core.errors import ConditioningError, LatentError, SettingsError
from ..turbo_core.vae import LATENT_CHANNELS, SIDE_STRIDE, TIME_STRIDE, latent_size
from ._encode import encode_still
from .choices import ADAPTIVE, CUSTOM, SIZES

WHERE = "TurboImageToVideo"
SIDE_MULTIPLE = 2 * SIDE_STRIDE  # the network takes patches of 2×2 latent positions
GREY = 0.5
AREA_ASPECT = "16:9"

Size = tuple[int, int]  # width, height


def video_size(resolution: str, aspect: str, custom: Size, image: Tensor) -> Size:
    """Width and height of the video. `image` is [N, H, W, C]."""
    if resolution == CUSTOM:
        _check_sides(custom)
        return custom
    if resolution not in SIZES:
        raise SettingsError(f"{WHERE}: resolution must be one of {', '.join([*SIZES, CUSTOM])}, got {resolution!r}")
    sizes = SIZES[resolution]
    if aspect == ADAPTIVE:
        return adaptive_size(math.prod(sizes[AREA_ASPECT]), image.shape[1] / image.shape[2])
    if aspect not in sizes:
        raise SettingsError(f"{WHERE}: aspect must be one of {', '.join([ADAPTIVE, *sizes])}, got {aspect!r}")
    return sizes[aspect]


def adaptive_size(area: int, ratio: float) -> Size:
    """The size of `area` pixels nearest to height/width = `ratio`."""
    sides = math.sqrt(area / ratio), math.sqrt(area * ratio)
    width, height = (SIDE_MULTIPLE * max(1, round(side / SIDE_MULTIPLE)) for side in sides)
    return width, height


def attach(conditioning: list[Any], vae: VAE, image: Tensor, size: Size, length: int) -> list[Any]:
    """The conditioning with the encoded image under the host's names."""
    _check_length(length)
    if image.ndim != 4 or image.shape[0] != 1:
        raise ConditioningError(
            f"{WHERE}: image must be one image [1, height, width, 3], got {tuple(image.shape)}; "
            "choose one with ImageFromBatch"
        )
    width, height = size
    encoded = encode_still(vae, _image_then_grey(image, size)[:length], length, WHERE)
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


def _image_then_grey(image: Tensor, size: Size) -> Tensor:
    """[2, H, W, 3]: the stretched image, then grey, which is 0 to the VAE."""
    width, height = size
    rgb = image[..., :3].movedim(-1, 1).to(torch.float32)
    stretched = F.interpolate(rgb, size=(height, width), mode="bilinear", antialias=True).clamp(0, 1)
    start = stretched.movedim(1, -1)
    return torch.cat([start, torch.full_like(start, GREY)])


def _check_sides(size: Size) -> None:
    if any(side < SIDE_MULTIPLE or side % SIDE_MULTIPLE for side in size):
        nearest = "x".join(str(SIDE_MULTIPLE * max(1, round(side / SIDE_MULTIPLE))) for side in size)
        raise LatentError(
            f"{WHERE}: width and height must be divisible by {SIDE_MULTIPLE}, got {size[0]}x{size[1]}; use {nearest}"
        )


def _check_length(length: int) -> None:
    if length < 1 or length % TIME_STRIDE != 1:
        below = max(1, length - (length - 1) % TIME_STRIDE)
        raise LatentError(f"{WHERE}: length must be 4n+1 frames, got {length}; use {below} or {below + TIME_STRIDE}")
