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
    tables = _to_device([function(a) for function in (torch.cos, torch.sin) for a in angles], device)
    return Rotation(*(_over_grid(axes, grid) for axes in (tables[:3], tables[3:])))


def _axis_angles(steps: int, scale: float, shift: float, dim: int) -> Tensor:
    """fp64 [steps, dim/2], on the CPU: small, and not every GPU has fp64."""
    positions = shift + torch.arange(steps, dtype=torch.float64) * scale
    return torch.outer(positions, THETA ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim))


def _to_device(tables: list[Tensor], device: torch.device) -> list[Tensor]:
    """fp32 copies, in one transfer that does not wait for what the device does."""
    flat = torch.cat([table.flatten() for table in tables]).to(torch.float32).to(device, non_blocking=True)
    parts = flat.split([table.numel() for table in tables])
    return [part.view(table.shape) for part, table in zip(parts, tables, strict=True)]


def _over_grid(axes: list[Tensor], grid: tuple[int, int, int]) -> Tensor:
    """One table per axis → [L, D/2]."""
    return torch.cat([axis.expand(*grid, -1) for axis in axes], dim=-1).flatten(0, 2)
