"""Sizes and lengths that the models make.

An image-to-video model stretches its image, so the size follows the image's shape: for an area A and an image of
height/width r, height = √(A·r) and width = √(A/r), each rounded to a multiple of 16.
"""

from __future__ import annotations

import math

from .errors import LatentError
from .vae import SIDE_STRIDE, TIME_STRIDE

SIDE_MULTIPLE = 2 * SIDE_STRIDE  # the network takes patches of 2×2 latent positions
FPS = 16

Size = tuple[int, int]  # width, height


def adaptive_size(area: int, ratio: float) -> Size:
    """The size of `area` pixels nearest to height/width = `ratio`."""
    sides = math.sqrt(area / ratio), math.sqrt(area * ratio)
    width, height = (SIDE_MULTIPLE * max(1, round(side / SIDE_MULTIPLE)) for side in sides)
    return width, height


def check_sides(size: Size, where: str) -> None:
    """LatentError unless both sides are multiples of 16."""
    if any(side < SIDE_MULTIPLE or side % SIDE_MULTIPLE for side in size):
        nearest = "x".join(str(SIDE_MULTIPLE * max(1, round(side / SIDE_MULTIPLE))) for side in size)
        raise LatentError(
            f"{where}: width and height must be divisible by {SIDE_MULTIPLE}, got {size[0]}x{size[1]}; use {nearest}"
        )


def check_length(length: int, where: str) -> None:
    """LatentError unless there are 4n+1 frames."""
    if length < 1 or length % TIME_STRIDE != 1:
        below = max(1, length - (length - 1) % TIME_STRIDE)
        raise LatentError(f"{where}: length must be 4n+1 frames, got {length}; use {below} or {below + TIME_STRIDE}")
