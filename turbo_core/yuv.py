"""RGB frames as the planes that H.264 takes: BT.709, limited range, a colour sample for 2x2 pixels.

    Y  =  16 + 219 y,    y = 0.2126 R + 0.7152 G + 0.0722 B,    R, G, B in 0…1
    Cb = 128 + 224 mean(B - y) / 1.8556
    Cr = 128 + 224 mean(R - y) / 1.5748                         rounded once, to nearest

The transfer curve stays the one that the frames have (sRGB).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

RED, GREEN, BLUE = 0.2126, 0.7152, 0.0722
BLACK, LUMA_RANGE = 16, 219
GREY, CHROMA_RANGE = 128, 224
CB_SPAN, CR_SPAN = 2 * (1 - BLUE), 2 * (1 - RED)  # of B - y and R - y


def to_planes(rgb_CTHW: Tensor) -> Tensor:
    """Floating-point frames in 0…1 with even sides to uint8 [T, 3·H/2, W]: Y, then Cb, then Cr of a quarter each."""
    _, frames, height, width = rgb_CTHW.shape
    red, green, blue = rgb_CTHW.unbind(0)  # [T, H, W]
    luma = (RED * red).add_(green, alpha=GREEN).add_(blue, alpha=BLUE)
    chroma = torch.stack([(blue - luma).div_(CB_SPAN), (red - luma).div_(CR_SPAN)], 1)  # [T, 2, H, W]
    chroma = F.avg_pool2d(chroma, 2).mul_(CHROMA_RANGE).add_(GREY)
    planes = torch.cat([luma.mul_(LUMA_RANGE).add_(BLACK).flatten(1), chroma.flatten(1)], 1)
    return planes.round_().to(torch.uint8).view(frames, height * 3 // 2, width)
