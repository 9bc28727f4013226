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
        table = _axis_angles(steps, scales[axis], shifts[axis], dim, device)
        view = [1, 1, 1, dim // 2]
        view[axis] = steps
        angles.append(table.view(view).expand(*grid, -1))
    flat = torch.cat(angles, dim=-1).reshape(-1, head_dim // 2)
    return Rotation(flat.cos().to(torch.float32), flat.sin().to(torch.float32))


def _axis_angles(steps: int, scale: float, shift: float, dim: int, device: torch.device) -> Tensor:
    positions = shift + torch.arange(steps, dtype=torch.float64, device=device) * scale
    frequencies = THETA ** (-torch.arange(0, dim, 2, dtype=torch.float64, device=device) / dim)
    return torch.outer(positions, frequencies)
