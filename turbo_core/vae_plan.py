"""How a clip goes through the VAE in bounded memory: frames per pass and level, tiles where one is too much.

A level is a run of layers at one resolution. Working memory of a sample, in bytes:

    itemsize · H · W · ( Σ_levels area · Σ_layers tail  +  max_levels area · max_layers work(frames)
                         + Σ_boundaries area · channels · frames waiting  +  held  +  32 · T )
    + itemsize · Σ_layers packed

T, H and W are the latent's, ``area`` the positions of a level's frame per latent position, ``tail``, ``work`` and
``packed`` come from the layers, and frames wait where two levels take a different share of the clip. Where a
clip stands still, ``held`` is the largest frame that a layer takes over and over. The weights, the convolutions'
own workspace and the finished result come on top; the latent itself is counted twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from .errors import SettingsError
from .vae_layers import CausalConv3d, Layer, Upsample

BUDGET_SHARE = 0.65  # of the free memory, as a budget: convolutions need workspace that no plan counts
OVERLAP = 8  # latent positions that neighbouring tiles share
LATENT_COPIES = 2 * 16  # elements per position: as given and through the 1x1x1 convolution
LEAST_TILE = 24  # at least 2·OVERLAP + 4: no position lies in three tiles of a row


@dataclass(frozen=True, kw_only=True)
class Level:
    """Layers at one resolution, with what enters them."""

    layers: tuple[Layer, ...]
    channels: int
    area: int
    """Positions of a frame per latent position: 1, 4, 16 or 64."""
    rate: int
    """Frames per latent frame: 1, 2 or 4."""
    passes: tuple[int, ...]
    """Frames per pass where there is room, then with less and less of it; even where frames are halved."""

    def work(self, frames: int) -> int:
        return self.area * max(layer.work(frames) for layer in self.layers)

    def tail(self) -> int:
        return self.area * sum(layer.tail() for layer in self.layers)

    def held(self) -> int:
        convolutions = (module for layer in self.layers for module in layer.modules())
        return self.area * max(conv.c_in for conv in convolutions if isinstance(conv, CausalConv3d))

    def packed(self) -> int:
        modules = (module for layer in self.layers for module in layer.modules())
        return sum(module.packed() for module in modules if isinstance(module, (CausalConv3d, Upsample)))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """``frames[i]`` most frames per pass of level i; ``rows`` x ``columns`` tiles in latent positions."""

    frames: tuple[int, ...]
    rows: tuple[tuple[int, int], ...]
    columns: tuple[tuple[int, int], ...]
    working_bytes: int

    @property
    def tiles(self) -> int:
        return len(self.rows) * len(self.columns)


def working_bytes(
    levels: Sequence[Level],
    frames: Sequence[int],
    *,
    size: tuple[int, int, int],
    itemsize: int,
    still: bool = False,
) -> int:
    """The formula above for a latent of ``size`` (T, H, W); a single latent frame leaves nothing behind."""
    latent_frames, height, width = size
    tails = packed = 0
    if latent_frames > 1:
        tails, packed = sum(level.tail() for level in levels), sum(level.packed() for level in levels)
    waiting = LATENT_COPIES * latent_frames
    for i in range(1, len(levels)):
        arriving = frames[i - 1] * levels[i].rate // levels[i - 1].rate
        if arriving != frames[i]:
            waiting += levels[i].area * levels[i].channels * max(arriving, frames[i])
    work = max(level.work(count) for level, count in zip(levels, frames, strict=True))
    held = max(level.held() for level in levels) if still else 0
    return itemsize * (height * width * (tails + work + waiting + held) + packed)


def make_plan(
    levels: Sequence[Level],
    *,
    size: tuple[int, int, int],
    itemsize: int,
    chunk: int | None,
    budget: int | None,
    still: bool = False,
) -> Plan:
    """The largest passes over whole frames that fit the budget; where none do, the fewest tiles that fit.

    ``chunk`` is the most latent frames that any level takes at once, and what every level takes where that fits.
    ``still``: the clip's last given frame stands for those that were not given.
    """
    if chunk is not None and chunk < 1:
        raise SettingsError(f"VAE: chunk must be at least 1 latent frame, got {chunk}; leave it out to choose it")
    choices = _choices(levels, size[0], chunk)
    whole = ((0, size[1]),), ((0, size[2]),)
    needed_by = partial(working_bytes, levels, itemsize=itemsize, still=still)
    for frames in choices:
        needed = needed_by(frames, size=size)
        if budget is None or needed <= budget:
            return Plan(frames=frames, rows=whole[0], columns=whole[1], working_bytes=needed)
    return _tiled_plan(needed_by, choices, size, budget)


def _choices(levels: Sequence[Level], latent_frames: int, chunk: int | None) -> list[tuple[int, ...]]:
    """Frames per pass and level, largest first."""
    if latent_frames == 1:
        return [tuple(1 for _ in levels)]
    rest = latent_frames - 1  # the first frame goes alone
    most = min(rest, chunk or rest)
    first = [tuple(most * level.rate for level in levels)] if chunk else []
    own = zip(*(level.passes for level in levels), strict=True)
    bounded = [tuple(min(count, most * level.rate) for count, level in zip(c, levels, strict=True)) for c in own]
    return list(dict.fromkeys(first + bounded))


def _tiled_plan(
    needed_by: Callable[..., int], choices: Sequence[tuple[int, ...]], size: tuple[int, int, int], budget: int
) -> Plan:
    latent_frames, height, width = size
    counts = [1, 1]
    while True:
        tile = tuple(_tile_length(side, count) for side, count in zip((height, width), counts, strict=True))
        fitting = [
            (frames, needed)
            for frames in choices
            if (needed := needed_by(frames, size=(latent_frames, *tile))) <= budget
        ]
        if fitting:
            rows, columns = (spans(side, count) for side, count in zip((height, width), counts, strict=True))
            return Plan(frames=fitting[0][0], rows=rows, columns=columns, working_bytes=fitting[0][1])
        longer = 0 if tile[0] >= tile[1] else 1
        counts[longer] += 1
        if _tile_length((height, width)[longer], counts[longer]) < LEAST_TILE:
            least = needed_by(choices[-1], size=(latent_frames, *tile))
            raise SettingsError(
                f"VAE: the memory budget must be at least {math.ceil(least / 2**20)} MiB at this size, "
                f"got {budget / 2**20:.0f} MiB; choose a smaller video, or free GPU memory"
            )


def _tile_length(side: int, count: int) -> int:
    return -(-(side + (count - 1) * OVERLAP) // count)


def spans(side: int, count: int) -> tuple[tuple[int, int], ...]:
    """``count`` stretches of one length that cover ``side``, neighbours sharing at least OVERLAP."""
    length = _tile_length(side, count)
    starts = [i * (side - length) // max(1, count - 1) for i in range(count)]
    return tuple((start, start + length) for start in starts)


def blend_weights(stretches: Sequence[tuple[int, int]], *, scale: int) -> list[Tensor]:
    """fp32 weights of each stretch, ``scale`` per latent position: raised cosines that sum to 1."""
    weights = [torch.ones((stop - start) * scale) for start, stop in stretches]
    for i in range(1, len(stretches)):
        shared = (stretches[i - 1][1] - stretches[i][0]) * scale
        rise = 0.5 - 0.5 * torch.cos(torch.pi * (torch.arange(shared) + 0.5) / shared)
        weights[i][:shared] = rise
        weights[i - 1][-shared:] = 1 - rise
    return weights
