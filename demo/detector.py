"""What a clip shows, found without learned weights: colour, shape and motion of one coloured shape, or None for each.

Cover of a pixel: its chroma (largest less smallest of R, G, B) between the ground's and the shape's, steepened. About
the centroid of the covered pixels, with ρ and θ in the plane,

    q_n = Σ ρ² e^{inθ} / Σ ρ²   (n = 3, 4, 5)         s = 2π Σ ρ² / area²

tell the shape: |q_n| and s don't change when it turns, moves or grows, and are compared with those of drawn shapes.
The centroid's track and the phase of q_n tell the motion. A shape whose area jumps, that matches no drawn one, or whose
track is none of the motions is None, which is never right.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from .clips import POINTS, Scenes, draw
from .vocabulary import COLOURS, SHAPES, Triple

ORDERS = (3, 4, 5)
LEAST_CHROMA = 0.3  # of a shape; grounds stay below 0.15
HUE_WITHIN = 24.0  # degrees, half the way to the next colour
AREA = (0.01, 0.2)  # of the frame
STEADY = (0.7, 1.4)  # a frame's area of the clip's median
FRAMES_STEADY = 0.9  # share of the frames that must be
FRAMES_AGREE = 0.6  # share of the frames that must show the shape
SHAPE_WITHIN = 0.25  # distance to a drawn shape's features
NEAR = 2.0  # times the radius of a disc of that area: what lies farther away does not belong to the shape
SPEED = 0.0025  # short sides a frame that a moving shape makes at least; drawn ones make 0.0052 to 0.0062
AT_REST = 0.06  # short sides that a spinning shape may wander
STRAIGHT = 0.35  # least way across a movement, of the way along it, that makes it crooked
BOUNCE = 0.18  # least height
TURN = math.radians(0.8)  # least a frame; drawn ones turn 1.6 degrees
TURN_FRAMES = 4  # over which a turn is measured: one frame's is small beside what a VAE does to an outline


@dataclass(frozen=True, kw_only=True)
class Finding:
    colour: str | None
    shape: str | None
    motion: str | None

    def confirms(self, triple: Triple) -> bool:
        return (self.colour, self.shape, self.motion) == tuple(triple)


@dataclass(frozen=True, kw_only=True)
class _Track:
    """Of each frame [B, T]: covered pixels, centroid in short sides, q_n, s; of each clip its mean colour [B, 3]."""

    area: Tensor
    centre: Tensor
    moments: Tensor
    spread: Tensor
    colour: Tensor
    share: Tensor
    """Covered part of the frame."""


def detect(video_BCTHW: Tensor) -> list[Finding]:
    """A finding for each clip, RGB in [-1, 1]."""
    track = _track(video_BCTHW.float().clamp(-1, 1) / 2 + 0.5)
    findings = []
    for i in range(len(video_BCTHW)):
        if not _is_steady(track, i):
            findings.append(Finding(colour=_colour(track.colour[i]), shape=None, motion=None))
            continue
        shape = _shape(track, i)
        motion = None if shape is None else _motion(track.centre[i], track.moments[i], shape)
        findings.append(Finding(colour=_colour(track.colour[i]), shape=shape, motion=motion))
    return findings


def _track(rgb: Tensor) -> _Track:
    height, width = rgb.shape[-2:]
    short = min(height, width)
    chroma = rgb.amax(1) - rgb.amin(1)  # [B, T, H, W]
    ground = chroma.flatten(1).median(1).values.view(-1, 1, 1, 1)
    # The median of the pixels that surely belong to the shape.
    strong = chroma > (ground + chroma.flatten(1).amax(1).view(-1, 1, 1, 1)) / 2
    peak = torch.stack([c[s].median() if s.any() else c.new_tensor(0.0) for c, s in zip(chroma, strong, strict=True)])
    peak = peak.clamp_min(LEAST_CHROMA).view(-1, 1, 1, 1)
    cover = (2 * (chroma - ground) / (peak - ground) - 0.5).clamp(0, 1)

    y = (torch.arange(height, device=rgb.device) + 0.5).view(-1, 1)
    x = torch.arange(width, device=rgb.device) + 0.5
    for _ in range(2):  # the second time without what lies far away
        area = cover.sum((-2, -1)).clamp_min(1e-3)
        cx, cy = (cover * x).sum((-2, -1)) / area, (cover * y).sum((-2, -1)) / area
        u, v = x - cx[..., None, None], y - cy[..., None, None]
        square = u * u + v * v
        cover = cover * (square < NEAR**2 * area[..., None, None] / math.pi)
    weight = cover * square
    total = weight.sum((-2, -1)).clamp_min(1e-3)
    theta = torch.atan2(v, u)
    moments = torch.stack(
        [
            torch.complex(*((weight * wave(n * theta)).sum((-2, -1)) / total for wave in (torch.cos, torch.sin)))
            for n in ORDERS
        ],
        -1,
    )
    inner = (cover == 1)[:, None]
    colour = (rgb * inner).sum((2, 3, 4)) / inner.sum((2, 3, 4)).clamp_min(1)
    return _Track(
        area=area.cpu(),
        centre=torch.stack([cx, cy], -1).cpu() / short,
        moments=moments.cpu(),
        spread=(2 * math.pi * total / area**2).cpu(),
        colour=colour.cpu(),
        share=(area / (height * width)).cpu(),
    )


def _is_steady(track: _Track, i: int) -> bool:
    area, share = track.area[i], track.share[i]
    ratio = area / area.median()
    fine = (ratio > STEADY[0]) & (ratio < STEADY[1]) & (share > AREA[0]) & (share < AREA[1])
    return fine.float().mean().item() >= FRAMES_STEADY


def _hue(rgb: Tensor) -> float:
    red, green, blue = rgb.tolist()
    return math.degrees(math.atan2(math.sqrt(3) * (green - blue), 2 * red - green - blue))


def _colour(rgb: Tensor) -> str | None:
    if rgb.max() - rgb.min() < LEAST_CHROMA / 2:
        return None
    hue = _hue(rgb)
    off = {name: abs((hue - _hue(torch.tensor(colour)) + 180) % 360 - 180) for name, colour in COLOURS.items()}
    nearest = min(off, key=off.__getitem__)
    return nearest if off[nearest] <= HUE_WITHIN else None


def _features(moments: Tensor, spread: Tensor) -> Tensor:
    return torch.cat([moments.abs(), spread[..., None] - 1], -1)


@cache
def _drawn_features() -> Tensor:
    """[shapes, 4], of large drawn shapes."""
    scenes = Scenes(
        triples=[Triple("red", shape, "up") for shape in SHAPES],
        backgrounds=["black"] * len(SHAPES),
        tilt=torch.zeros(len(SHAPES)),
        radius=torch.full((len(SHAPES),), 0.2),
        centre=torch.full((len(SHAPES), 1, 2), 0.5),
        angle=torch.zeros(len(SHAPES), 1),
    )
    track = _track(draw(scenes, height=128, width=128) / 2 + 0.5)
    return _features(track.moments, track.spread)[:, 0]


def _shape(track: _Track, i: int) -> str | None:
    distance = torch.cdist(_features(track.moments[i], track.spread[i]), _drawn_features())  # [T, shapes]
    nearest = distance.argmin(1)
    winner = nearest.mode().values.item()
    agree = (nearest == winner) & (distance[:, winner] < SHAPE_WITHIN)
    return SHAPES[winner] if agree.float().mean().item() >= FRAMES_AGREE else None


def _motion(centre: Tensor, moments: Tensor, shape: str) -> str | None:
    """``centre`` [T, 2], ``moments`` [T, 3] of one clip."""
    steps = len(centre) - 1
    way = centre[-3:].mean(0) - centre[:3].mean(0) if steps > 8 else centre[-1] - centre[0]
    span = centre.amax(0) - centre.amin(0)
    if _turns(moments, shape):
        return "spin" if span.max().item() < AT_REST else None
    along = way.abs() > SPEED * steps
    dx, dy = way.tolist()
    crooked = [(span[1 - axis] > STRAIGHT * span[axis]).item() for axis in (0, 1)]
    if along[0] and span[1] > BOUNCE and _comes_back(centre[:, 1]):
        return "bounce right" if dx > 0 else "bounce left"
    if along[0] and not crooked[0]:
        return "right" if dx > 0 else "left"
    if along[1] and not crooked[1] and not _comes_back(centre[:, 1]):
        return "down" if dy > 0 else "up"
    return None


def _comes_back(y: Tensor) -> bool:
    """Whether much of the way up is undone by way down or the reverse."""
    step = y.diff()
    return min(step.clamp(min=0).sum().item(), -step.clamp(max=0).sum().item()) > BOUNCE / 3


def _turns(moments: Tensor, shape: str) -> bool:
    order = 4 if shape == "cross" else POINTS.get(shape)
    if order is None:
        return False
    q = moments[:, ORDERS.index(order)]
    frames = max(1, min(TURN_FRAMES, len(q) - 1))
    turn = (q[frames:] * q[:-frames].conj()).angle() / (order * frames)
    return abs(turn.median().item()) > TURN
