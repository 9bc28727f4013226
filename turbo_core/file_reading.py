"""From a file to a device at the disk's speed: several reads under way at once, each into a buffer of its own.

    file ─ read by a thread ─▶ pinned buffer ─ copied on the current stream ─▶ tensor

A copy out of a memory mapping waits for one page after another on one core. Here a ring of buffers is filled in the
file's order of use; a buffer that was copied is filled again as soon as its copy has ended, so that disk and bus work
at the same time and host memory holds the ring alone.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from .errors import CheckpointError
from .file_spans import FileSpan, Spans, span_of
from .weight_file import DOWNLOAD_AGAIN

log = logging.getLogger("turbowan")

CHUNK = 8 << 20  # bytes of one read
BUFFERS = 16  # 128 MiB of pinned memory, which torch keeps for the next load
THREADS = 8


@dataclass(frozen=True)
class _Chunk:
    """Bytes [start, stop) of a span."""

    span: FileSpan
    start: int
    stop: int


class _Buffer:
    """Host memory for one chunk: `fill` runs in a thread, `empty` in the caller's."""

    def __init__(self, device: torch.device) -> None:
        self._device, pinned = device, device.type == "cuda"
        self._memory = torch.empty(CHUNK, dtype=torch.uint8, pin_memory=pinned)
        self._copied = torch.cuda.Event() if pinned else None
        self._file: BinaryIO | None = None  # of its own, so that no two threads share a position

    def fill(self, chunk: _Chunk) -> None:
        if self._copied is not None:
            self._copied.synchronize()
        span, view = chunk.span, memoryview(self._memory.numpy())[: chunk.stop - chunk.start]
        file = self._opened(span.path)
        file.seek(span.offset + chunk.start)
        done = 0
        while done < len(view):
            count = file.readinto(view[done:])
            if not count:
                raise CheckpointError(
                    f"checkpoint: {span.path.name} must keep its bytes up to {span.offset + span.size} while it is "
                    f"loaded, it ends at {span.offset + chunk.start + done}; {DOWNLOAD_AGAIN}"
                )
            done += count

    def empty(self, target: Tensor) -> None:
        target.copy_(self._memory[: target.numel()], non_blocking=True)
        if self._copied is not None:
            self._copied.record(torch.cuda.current_stream(self._device))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _opened(self, path: Path) -> BinaryIO:
        if self._file is None or self._file.name != str(path):
            self.close()
            self._file = open(str(path), "rb", buffering=0)  # noqa: SIM115 (closed with the buffer)
        return self._file


def read(spans: Sequence[FileSpan], device: torch.device) -> Iterator[Tensor]:
    """Each span's bytes as a tensor [size] uint8 on `device`, in order; reading goes ahead of what was taken.

    Raises:
        CheckpointError: if a file is shorter than it was.
        OSError: if it cannot be read.
    """
    chunks = _chunks(spans)
    buffers = [_Buffer(device) for _ in range(BUFFERS)]
    pool = ThreadPoolExecutor(THREADS, thread_name_prefix="turbowan-read")

    def started(buffer: _Buffer, chunk: _Chunk) -> tuple[_Buffer, Future[None]]:
        return buffer, pool.submit(buffer.fill, chunk)

    try:
        ahead = deque(started(buffer, chunk) for buffer, chunk in zip(buffers, chunks, strict=False))
        for span in spans:
            target = torch.empty(span.size, dtype=torch.uint8, device=device)
            for start in range(0, span.size, CHUNK):
                buffer, filled = ahead.popleft()
                filled.result()
                buffer.empty(target[start : start + CHUNK])
                ahead.extend(started(buffer, chunk) for chunk in islice(chunks, 1))
            yield target
    finally:
        pool.shutdown(cancel_futures=True)
        for buffer in buffers:
            buffer.close()


class MappedFile:
    """A file and where its mapped tensors lie in it, made when it was mapped."""

    def __init__(self, path: Path, spans: Spans) -> None:
        self.path, self.spans, self._state = path, spans, _state(path)

    def to_device(self, tensors: Sequence[Tensor], device: torch.device) -> Iterator[Tensor]:
        """Each tensor on `device`, in order: read from the file where it lies there whole, else copied.

        All are copied where the file is another by now: the mapping still holds the one that was opened.

        Raises:
            As `read`.
        """
        spans = [span_of(tensor, self.spans) for tensor in tensors]
        if any(spans) and _state(self.path) != self._state:
            log.warning(
                "%s was changed since it was opened; its weights come through the old file's mapping, which is slower",
                self.path.name,
            )
            spans = [None] * len(spans)
        with closing(read([span for span in spans if span is not None], device)) as data:
            for tensor, span in zip(tensors, spans, strict=True):
                yield tensor.to(device) if span is None else next(data).view(tensor.dtype).view(tensor.shape)


def _state(path: Path) -> tuple[int, ...] | None:
    """What changes if the file is replaced or written to; None if it is gone."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _chunks(spans: Iterable[FileSpan]) -> Iterator[_Chunk]:
    for span in spans:
        for start in range(0, span.size, CHUNK):
            yield _Chunk(span, start, min(start + CHUNK, span.size))
