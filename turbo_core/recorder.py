"""Decoded frames on their way into an MP4: encoded by a thread while the next ones are decoded.

Frames become 8-bit planes where they were decoded, a quarter of fp32's bytes for half of the samples, and wait there
until the thread copies them. At most `WAITING` pieces wait: an encoder that falls behind holds the decoder up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from queue import Empty, Full, Queue
from threading import Event
from types import TracebackType

import torch
from torch import Tensor

from . import yuv
from .mp4 import Mp4

WAITING = 8  # pieces, of four frames where a decoder chooses
POLL = 0.02  # seconds between two looks for a cancellation

Piece = tuple[Tensor, "torch.cuda.Event | None"]


class Recorder:
    """Takes a video's frames in their order and puts them into its MP4; a context, whose end closes the file.

    Args:
        progress: called with (done, in all), counting frames decoded and frames encoded.
        interrupted: called now and then while waiting; raises to cancel.
    """

    def __init__(
        self,
        file: Mp4,
        *,
        progress: Callable[[int, int], None] | None = None,
        interrupted: Callable[[], None] | None = None,
    ) -> None:
        self._file = file
        self._progress, self._interrupted = progress, interrupted
        self._decoded, self._to_decode = 0, file.wanted.frames
        self._encoded, self._to_encode = 0, file.wanted.frames
        self._pieces: Queue[Piece | None] = Queue(WAITING)
        self._stop = Event()
        self._thread = ThreadPoolExecutor(1, "turbowan-mp4")
        self._work: Future[None]

    def write(self, rgb_CTHW: Tensor) -> None:
        """Take the frames that follow on those before, fp32 in 0…1."""
        planes = yuv.to_planes(rgb_CTHW)
        computed = torch.cuda.current_stream(planes.device).record_event() if planes.is_cuda else None
        self._put((planes, computed))

    def decoded(self, done: int, total: int) -> None:
        """The decoder's progress."""
        self._decoded, self._to_decode = done, total
        self._report()

    def complete(self) -> None:
        """Wait for the file, once all frames came."""
        self._put(None)
        while not wait([self._work], POLL).done:
            self._wait()
        self._report()
        self._work.result()

    def _put(self, piece: Piece | None) -> None:
        while True:
            if self._work.done():
                self._work.result()  # raises what ended it
            try:
                return self._pieces.put(piece, timeout=POLL)
            except Full:
                self._wait()

    def _wait(self) -> None:
        self._report()
        if self._interrupted is not None:
            self._interrupted()

    def _report(self) -> None:
        if self._progress is not None:
            self._progress(self._decoded + self._encoded, self._to_decode + self._to_encode)

    def _encode(self) -> None:
        """The thread's work; after `_stop` it leaves half a file."""
        with self._file as file:
            for piece in self._copied():
                for planes in piece.numpy():
                    if self._stop.is_set():
                        return
                    self._encoded += file.add(planes)
            for packets in file.flush():
                if self._stop.is_set():
                    return
                self._encoded += packets

    def _copied(self) -> Iterator[Tensor]:
        """The pieces on the CPU, copied in a stream beside the decoder's."""
        stream = None
        while (piece := self._pieces.get()) is not None:
            planes, computed = piece
            if computed is None:
                yield planes.cpu()
                continue
            stream = stream or torch.cuda.Stream(planes.device)
            with torch.cuda.stream(stream):
                stream.wait_event(computed)
                copied = planes.cpu()  # waits for the copy, so that the memory may go
            del piece, planes
            yield copied

    def __enter__(self) -> Recorder:
        self._work = self._thread.submit(self._encode)  # here, where `__exit__` is sure to end it
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        with suppress(Empty):
            while True:
                self._pieces.get_nowait()
        self._pieces.put_nowait(None)  # for a thread that waits
        self._thread.shutdown(wait=True)
