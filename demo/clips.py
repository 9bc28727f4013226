"""Clips of one coloured shape that moves over a plain background, drawn on any device.

Positions are in units of the frame's shorter side, y pointing down; frame f of a clip lies at

    moving     start + f·speed                  along one axis
    bouncing   x as above; y = floor - 4·height·u·(1 - u),  u = frac(f / period + phase)
    spinning   start; angle = f·TURN    clockwise, upright at first

A shape is its signed distance d in pixels, and covers a pixel by clamp(1/2 - d, 0, 1). Polygons and stars of n points
fold the plane into one sector of 2π/n, in which the outline is the line from a tip to the notch beside it; a cross is
the union of two bars. All randomness comes from the generator, on the CPU: a seed gives the same clips on any device,
up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .vocabulary import BACKGROUNDS, COLOURS, SHAPES, Triple

POINTS = {"square": 4, "triangle": 3, "star": 5}
NOTCH = {"square": math.cos(math.pi / 4), "triangle": math.cos(math.pi / 3), "star": 0.42}  # of the tip's radius
ARM = 0.34  # half the width of a cross's arms, of its radius
SIZE = {"ball": 0.88, "square": 1.1, "triangle": 1.15, "star": 1.2, "cross": 1.0}  # tip radius at equal weight
REACH = 1.2  # the most that a shape reaches, of its radius
TURN = math.radians(1.6)  # of a spinning shape a frame: a third of a turn in 81
MARGIN = 0.03  # kept free at the frame's edges


@dataclass(frozen=True, kw_only=True)
class Scenes:
    """What the clips of a batch show; tensors of B on the CPU, ``centre`` [B, T, 2] as (x, y), ``angle`` [B, T]."""

    triples: Sequence[Triple]
    backgrounds: Sequence[str]
    tilt: Tensor
    """Brightness of the background's bottom less that of its top."""
    radius: Tensor
    centre: Tensor
    angle: Tensor

    def __len__(self) -> int:
        return len(self.triples)

    @property
    def frames(self) -> int:
        return self.angle.shape[1]


def draw_scenes(
    triples: Sequence[Triple], *, frames: int, height: int, width: int, generator: torch.Generator
) -> Scenes:
    """A scene of each triple for clips of that length and size, the shape inside the frame throughout."""
    count, short = len(triples), min(height, width)
    sides = torch.tensor([width / short, height / short])
    rolled = iter(torch.rand(9, count, generator=generator))

    def between(low: float, high: float) -> Tensor:
        return low + (high - low) * next(rolled)

    backgrounds = [tuple(BACKGROUNDS)[int(i)] for i in (next(rolled) * len(BACKGROUNDS)).tolist()]
    tilt, radius, speed, phase = between(-0.08, 0.08), between(0.14, 0.18), between(0.0052, 0.0062), between(0, 1)
    period, bounce, start = between(20, 26), between(0.32, 0.46), torch.stack([next(rolled), next(rolled)], -1)

    direction = torch.tensor([_direction(triple.motion) for triple in triples])
    bounces = torch.tensor([triple.motion.startswith("bounce") for triple in triples])
    spins = torch.tensor([triple.motion == "spin" for triple in triples])
    velocity = direction * speed[:, None]

    # The start lies where neither it nor the end leaves the frame.
    room = (REACH * radius + MARGIN)[:, None]
    travel = velocity * (frames - 1)
    first, last = room - travel.clamp(max=0), sides - room - travel.clamp(min=0)
    start = first + (last - first).clamp(min=0) * start

    f = torch.arange(frames)
    centre = start[:, None] + velocity[:, None] * f[:, None]
    u = (f / period[:, None] + phase[:, None]) % 1
    floor = (sides[1] - room) - 4 * bounce[:, None] * u * (1 - u)
    centre[..., 1] = torch.where(bounces[:, None], floor, centre[..., 1])
    angle = torch.where(spins[:, None], TURN * f, 0.0)
    return Scenes(triples=triples, backgrounds=backgrounds, tilt=tilt, radius=radius, centre=centre, angle=angle)


def _direction(motion: str) -> tuple[int, int]:
    if motion == "up":
        return 0, -1
    if motion == "down":
        return 0, 1
    return (motion.endswith("right") - motion.endswith("left")), 0


def draw(scenes: Scenes, *, height: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """The clips [B, 3, T, H, W] in [-1, 1], fp32."""
    cover = _cover(scenes, height, width, torch.device(device))[:, None]  # [B, 1, T, H, W]
    colours = torch.tensor([COLOURS[triple.colour] for triple in scenes.triples], device=device)
    grounds = torch.tensor([BACKGROUNDS[name] for name in scenes.backgrounds], device=device)
    slope = torch.linspace(-0.5, 0.5, height, device=device) * scenes.tilt.to(device)[:, None]  # [B, H]
    ground = (grounds[:, :, None] + slope[:, None]).clamp(0, 1)[:, :, None, :, None]  # [B, 3, 1, H, 1]
    return torch.lerp(2 * ground - 1, 2 * colours[:, :, None, None, None] - 1, cover)


def _cover(scenes: Scenes, height: int, width: int, device: torch.device) -> Tensor:
    """How much of each pixel the shape covers, [B, T, H, W]."""
    short = min(height, width)
    radius = (scenes.radius * short).to(device).view(-1, 1, 1, 1)
    centre, angle = (scenes.centre * short).to(device), scenes.angle.to(device)
    y = (torch.arange(height, device=device) + 0.5)[:, None] - centre[..., 1, None, None]  # [B, T, H, 1]
    x = torch.arange(width, device=device) + 0.5 - centre[..., 0, None, None]  # [B, T, 1, W]
    cos, sin = angle.cos()[..., None, None], angle.sin()[..., None, None]
    u, v = cos * x + sin * y, cos * y - sin * x  # the shape's own axes
    distance = torch.empty(u.shape, device=device)
    for shape in SHAPES:
        rows = [i for i, triple in enumerate(scenes.triples) if triple.shape == shape]
        if rows:
            distance[rows] = _distance(shape, u[rows], v[rows], SIZE[shape] * radius[rows])
    return (0.5 - distance).clamp(0, 1)


def _distance(shape: str, u: Tensor, v: Tensor, radius: Tensor) -> Tensor:
    """Signed distance to the outline, in pixels; exact near the edges."""
    if shape == "ball":
        return torch.hypot(u, v) - radius
    if shape == "cross":
        along, across = torch.maximum(u.abs(), v.abs()), torch.minimum(u.abs(), v.abs())
        return torch.maximum(along - radius, across - ARM * radius)
    sector = 2 * math.pi / POINTS[shape]
    start = math.pi / 4 if shape == "square" else math.pi / 2  # a corner there: squares lie flat, others point up
    theta = torch.atan2(-v, u) - start
    folded = ((theta + sector / 2) % sector - sector / 2).abs()
    length = torch.hypot(u, v)
    along, across = length * folded.cos(), length * folded.sin()
    # The line from the tip (R, 0) to the notch (N cos, N sin), and its normal outwards.
    notch = NOTCH[shape]
    edge = notch * math.cos(sector / 2) - 1, notch * math.sin(sector / 2)
    size = math.hypot(*edge)
    return ((along - radius) * edge[1] - across * edge[0]) / size
