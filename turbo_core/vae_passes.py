"""Running a clip through the levels of the VAE piece by piece, and putting the pieces together again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from .vae_layers import TIME, Layer, Past
from .vae_plan import Level, Plan, blend_weights
from .vae_still import StillClip

log = logging.getLogger(__name__)

HANDED_ON = 4  # frames of a blended result: tiles are for where memory is short

Progress = Callable[[int, int], None]
"""Called with (frames done, frames in all), counted once per tile."""

Receive = Callable[[int, int, Tensor], None]
"""Called with (sample, first frame, finished frames [1, C, T, H, W])."""


def stream(
    levels: Sequence[Level],
    frames: Sequence[int],
    x: Tensor,
    *,
    like: Tensor,
    interrupted: Callable[[], None] | None,
    length: int | None = None,
) -> Iterator[Tensor]:
    """Frames as they leave the last level, computed on the device and in the type of ``like``.

    ``length``: frames of the clip, where ``x`` holds its beginning and the last given frame stands to the end.
    """
    still = None if length is None else StillClip(frames=length, distinct=x.shape[TIME])
    layout = torch.channels_last_3d if like.device.type == "cuda" else torch.contiguous_format
    past = Past(memory_format=layout, wanted=(length or x.shape[TIME]) > 1)
    pieces = (piece.to(like, memory_format=layout) for piece in regroup(iter((x,)), frames[0]))
    for level, count in zip(levels, frames, strict=True):
        for layer in level.layers:
            if still is not None:
                pieces = hold(pieces, still.distinct, still.wanted(layer))
                still = still.behind(layer)
            pieces = _passes(layer, regroup(pieces, count), past, interrupted)
    return pieces if still is None else hold(pieces, still.distinct, still.frames)


def _passes(
    layer: Layer, pieces: Iterator[Tensor], past: Past, interrupted: Callable[[], None] | None
) -> Iterator[Tensor]:
    for x in pieces:
        if interrupted is not None:
            interrupted()
        last = [layer(x, past)]
        del x  # while suspended, a generator must not hold what the next layer has taken over
        yield last.pop()


def hold(pieces: Iterator[Tensor], given: int, wanted: int) -> Iterator[Tensor]:
    """The pieces, ``given`` frames in all, then their last frame again and again: ``wanted`` frames.

    The frames that repeat are one tensor; no layer writes to its input.
    """
    again: list[Tensor] = []
    for piece in pieces:
        given -= piece.shape[TIME]
        wanted -= piece.shape[TIME]
        if given == 0 < wanted:
            again = [piece[:, :, -1:].clone()] * wanted  # a view would keep the whole piece
        last = [piece]
        del piece  # as in _passes
        yield last.pop()
    while again:
        yield again.pop()


def regroup(pieces: Iterator[Tensor], count: int) -> Iterator[Tensor]:
    """The same frames in other pieces: the first alone, then ``count`` at a time, then what is left."""
    held: list[Tensor] = []
    wanted = 1
    for piece in pieces:
        held.append(piece)
        del piece  # as in _passes
        while sum(part.shape[TIME] for part in held) >= wanted:
            group = wanted
            wanted = count
            yield _take(held, group)
    if held:
        yield _take(held, sum(part.shape[TIME] for part in held))


def _take(held: list[Tensor], count: int) -> Tensor:
    whole = held[0] if len(held) == 1 else torch.cat(held, TIME)
    held.clear()
    if whole.shape[TIME] > count:
        held.append(whole[:, :, count:])
    return whole[:, :, :count]


class Canvas:
    """The result while it grows, and the order of its tiles.

    With ``receive`` frames are handed on as soon as they are finished, and kept only while tiles blend.
    """

    def __init__(
        self,
        plan: Plan,
        shape: tuple[int, ...],
        scale: int,
        device: torch.device | str,
        dtype: torch.dtype,
        progress: Progress | None,
        receive: Receive | None = None,
    ):
        self._receive = receive
        self._plan = plan
        self._scale = scale
        self._dtype = dtype
        self._progress = progress
        self._total = shape[0] * shape[TIME] * plan.tiles
        self._done = 0
        self._frame = 0
        self._samples = shape[0]
        if plan.tiles == 1:
            self._out = None if receive else torch.empty(shape, device=device, dtype=dtype)
            return
        log.info("VAE: %d x %d blended tiles, to stay in the memory budget", len(plan.rows), len(plan.columns))
        self._out = torch.zeros(shape, device=device, dtype=torch.promote_types(dtype, torch.float32))
        self._row_weights = [w.to(device)[:, None] for w in blend_weights(plan.rows, scale=scale)]
        self._column_weights = [w.to(device) for w in blend_weights(plan.columns, scale=scale)]

    def tiles(self) -> Iterator[tuple[int, int, int]]:
        """(sample, row, column) of each tile; ``paint`` continues at its first frame."""
        for sample in range(self._samples):
            for row in range(len(self._plan.rows)):
                for column in range(len(self._plan.columns)):
                    self._frame = 0
                    yield sample, row, column

    def paint(self, piece_1CTHW: Tensor, sample: int, row: int, column: int) -> None:
        count = piece_1CTHW.shape[TIME]
        rows, columns = (
            slice(*(self._scale * edge for edge in span)) for span in (self._plan.rows[row], self._plan.columns[column])
        )
        if self._out is None:
            self._receive(sample, self._frame, piece_1CTHW)
        else:
            room = self._out[sample, :, self._frame : self._frame + count, rows, columns]
            if self._plan.tiles == 1:
                room.copy_(piece_1CTHW[0])
            else:
                piece = piece_1CTHW[0].to(room.device, room.dtype)
                room.add_(piece.mul(self._row_weights[row]).mul_(self._column_weights[column]))
        self._frame += count
        self._done += count
        if self._progress is not None:
            self._progress(self._done, self._total)

    def result(self) -> Tensor:
        return self._out.to(self._dtype)

    def hand_on(self) -> None:
        """Give ``receive`` what only the last tile finished, a few frames at a time: it may copy what it gets."""
        if self._out is None:
            return
        for sample in range(self._samples):
            for first in range(0, self._out.shape[TIME], HANDED_ON):
                piece = self._out[sample : sample + 1, :, first : first + HANDED_ON]
                self._receive(sample, first, piece.to(self._dtype))
