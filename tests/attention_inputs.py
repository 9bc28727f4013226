"""Queries, keys and values for tests of SLA's kernels: odd lengths, in buffers of NaN."""

import math

import torch
from torch import Tensor

DIM = 128
# batch, tokens, heads, ratio: tails of 1 in queries and keys, short clips, several samples, one block, all blocks,
# more kept ones than lie in shared memory at once.
SHAPES = [(1, 257, 2, 0.4), (2, 193, 1, 1.0), (1, 129, 1, 0.01), (1, 40, 2, 0.5), (1, 384, 1, 0.5), (1, 705, 1, 0.8)]
SHAPE_IDS = [f"B{b}-L{length}-H{h}-ratio{r}" for b, length, h, r in SHAPES]


def qkv(shape, device, dtype, generator, magnitude: float = 1.5) -> list[Tensor]:
    """q, k, v [B, L, H, D] inside larger buffers of NaN, so that a read past the end shows; keys are off centre."""
    batch, length, heads, _ = shape
    out = []
    for scale, offset in ((magnitude, 0.0), (magnitude, 1.0), (1.0, 0.0)):
        buffer = torch.full((batch, length + 64, heads, DIM), math.nan, device=device, dtype=dtype)
        shift = offset * torch.randn(DIM, generator=generator)
        values = torch.randn(batch, length, heads, DIM, generator=generator) * scale + shift
        buffer[:, :length] = values.to(device, dtype)
        out.append(buffer[:, :length])
    return out


def proj_l(device, generator) -> tuple[Tensor, Tensor]:
    return (
        (torch.randn(DIM, DIM, generator=generator) / DIM**0.5).to(device),
        torch.randn(DIM, generator=generator).to(device),
    )
