"""The VAE's causal convolution, 3x3x3 or 3x1x1, with bias and residual, over frames and the two frames before them.

    out[t, y, x] = bias + residual[t, y, x] + Σ W[dt, dy, dx] · frames[t + dt, y + dy - 1, x + dx - 1]

with dt, dy, dx in 0…2 (dy = dx = 1 for 3x1x1), frames = past, x one after the other, and zeros outside a frame.
Tensors are [B, C, T, H, W], channels-last in memory. 54·C_in·C_out operations a position; the kernel rounds once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .dispatch import Kernel

CAUSAL_CONV = Kernel(
    name="VAE convolution",
    last_dim_multiple=32,
    contiguous=True,
    gluon_probe="run_vae_probe",
)
REACH = 2  # frames that a convolution sees behind its input
ROWS = 192  # of the kernel's accumulators: channels of an output frame, or of two
WEIGHT_ROWS = 32  # weights are packed in multiples of this


def causal_conv_ref(x: Tensor, past: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None) -> Tensor:
    """x [B, C_in, T, H, W], past [B, C_in, 2, H, W], residual [B, C_out, T, H, W] or None; x's dtype."""
    frames = torch.cat((past, x), 2)
    out = F.conv3d(
        frames, weight.to(x.dtype), bias.to(x.dtype), padding=(0, weight.shape[3] // 2, weight.shape[4] // 2)
    )
    return out if residual is None else out + residual


def packs(weight: Tensor) -> bool:
    """Whether the kernel takes a weight of this shape: 96 channels or a multiple of 192, from a multiple of 32."""
    c_out, c_in, *taps = weight.shape
    return taps in ([3, 3, 3], [3, 1, 1]) and c_in % 32 == 0 and (2 * c_out == ROWS or c_out % ROWS == 0)


def packed_elements(weight: Tensor) -> int:
    """Elements of `pack_weight`'s result."""
    c_out, c_in, _, height, width = weight.shape
    return height * width * c_in * (2 * ROWS if 2 * c_out == ROWS else 3 * c_out)


def pack_weight(weight: Tensor) -> Tensor:
    """[C_out, C_in, 3, …] as the kernel reads it: [parts·taps·stack, C_in], of each part of C_out and tap (dy, dx)
    the time taps W2, W1, W0 below each other; with two frames a program 32 rows of zeros before them and 64 after.
    """
    c_out, c_in, _, height, width = weight.shape
    channels, padding = (c_out, (WEIGHT_ROWS, 2 * WEIGHT_ROWS)) if 2 * c_out == ROWS else (ROWS, (0, 0))
    taps = weight.reshape(-1, channels, c_in, 3, height * width).flip(3)
    taps = taps.permute(0, 4, 3, 1, 2)  # [parts, taps, dt, channels, C_in]
    return F.pad(taps.reshape(-1, 3 * channels, c_in), (0, 0, *padding)).reshape(-1, c_in).contiguous()


def kernel_takes(x: Tensor) -> bool:
    """Whether `causal_conv` can run: its kernel is there for x, a sample of at least two frames."""
    return x.shape[0] == 1 and x.shape[2] > 1 and CAUSAL_CONV.accepts(x.movedim(1, -1))


def causal_conv(
    pieces: Sequence[Tensor], past: Tensor, packed: Tensor, bias: Tensor, residual: Tensor | None, side: int
) -> Tensor:
    """`causal_conv_ref` by the kernel, on x in one piece or two, only where `kernel_takes` x.

    ``packed`` is `pack_weight` of a 3 x side x side weight.
    """
    from .vae_conv_gluon import causal_conv_gluon

    rows = [_rows(piece) for piece in pieces]
    added = None if residual is None else _rows(residual)
    return causal_conv_gluon(rows, _rows(past), packed, bias.to(rows[0].dtype), added, side)[None].movedim(-1, 1)


def _rows(x: Tensor) -> Tensor:
    """[1, C, T, H, W] as [T, H, W, C], which copies nothing of what is channels-last."""
    return x.movedim(1, -1)[0].contiguous()
