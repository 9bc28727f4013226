"""Rotary positions of video tokens.

Token (t, h, w) rotates 44 of a head's 128 dimensions by its frame, 42 by its row and 42 by its column:
angle_i = position · 10000^(−2i/d) for each axis of d dimensions, in fp32 tables computed in fp64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.norm import Rotation

THETA = 10000.0


@dataclass(frozen=True, kw_only=True)
class RopeOptions:
    """Stretch or shift positions: an axis of n positions spans (n − 1)·scale + 1, starting at shift."""

    scale_t: float = 1.0
    scale_y: float = 1.0
    scale_x: float = 1.0
    shift_t: float = 0.0
    shift_y: float = 0.0
    shift_x: float = 0.0


PLAIN = RopeOptions()


def axis_dims(head_dim: int) -> tuple[int, int, int]:
    """How many of a head's dimensions frames, rows and columns rotate."""
    spatial = 2 * (head_dim // 6)
    return head_dim - 2 * spatial, spatial, spatial


def rotation(grid: tuple[int, int, int], head_dim: int, device: torch.device, options: RopeOptions = PLAIN) -> Rotation:
    """Tables for a grid of (frames, rows, columns) tokens: fp32 [L, head_dim/2] cos and sin."""
    scales = (options.scale_t, options.scale_y, options.scale_x)
    shifts = (options.shift_t, options.shift_y, options.shift_x)
    angles = []
    for axis, (steps, dim) in enumerate(zip(grid, axis_dims(head_dim), strict=True)):
        view = [1, 1, 1, dim // 2]
        view[axis] = steps
        angles.append(_axis_angles(steps, scales[axis], shifts[axis], dim).view(view))
    return Rotation(*(_over_grid([function(a) for a in angles], grid, device) for function in (torch.cos, torch.sin)))


def _axis_angles(steps: int, scale: float, shift: float, dim: int) -> Tensor:
    """fp64 [steps, dim/2], on the CPU: small, and not every GPU has fp64."""
    positions = shift + torch.arange(steps, dtype=torch.float64) * scale
    return torch.outer(positions, THETA ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim))


def _over_grid(axes: list[Tensor], grid: tuple[int, int, int], device: torch.device) -> Tensor:
    """One table per axis → fp32 [L, D/2] on the device."""
    tables = [axis.to(device, torch.float32).expand(*grid, -1) for axis in axes]
    return torch.cat(tables, dim=-1).flatten(0, 2)
