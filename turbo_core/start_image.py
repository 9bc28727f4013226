"""A start image as TurboDiffusion conditions on it.

y = [mask: 1 in the first latent frame, 4 channels; normalize(VAE([image, grey, grey, …])), 16 channels]
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from . import vae
from .errors import ConditioningError
from .video_size import Size

if TYPE_CHECKING:
    from PIL.Image import Image

MASK_CHANNELS = 4
GREY = 0.5  # 0 to the VAE


def load_image(path: Path) -> Tensor:
    """[1, H, W, 3] in 0…1, turned upright as its camera noted."""
    image = _open(path)
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(1, image.height, image.width, 3) / 255


def image_size(path: Path) -> Size:
    """Width and height, upright."""
    return _open(path).size


def _open(path: Path) -> Image:
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as file:
            return ImageOps.exif_transpose(file).convert("RGB")
    except FileNotFoundError as error:
        raise ConditioningError(f"image: {path} must exist, there is no such file; check the name") from error
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise ConditioningError(
            f"image: {path} must be a readable picture, it is not ({error}); save it as PNG or JPEG"
        ) from error


def image_then_grey(image_1HWC: Tensor, size: Size) -> Tensor:
    """[2, H, W, 3] in 0…1: the image stretched to `size`, then the grey frame that all others repeat."""
    width, height = size
    rgb = image_1HWC[..., :3].movedim(-1, 1).to(torch.float32)
    stretched = F.interpolate(rgb, size=(height, width), mode="bilinear", antialias=True).clamp(0, 1)
    start = stretched.movedim(1, -1)
    return torch.cat([start, torch.full_like(start, GREY)])


def condition(encoded_1CTHW: Tensor) -> Tensor:
    """y [1, 20, T, H, W] in fp32 of the raw latent of image and grey frames."""
    latent = vae.normalize(encoded_1CTHW.to(torch.float32))
    mask = torch.zeros_like(latent[:, :MASK_CHANNELS])
    mask[:, :, 0] = 1
    return torch.cat([mask, latent], dim=1)
