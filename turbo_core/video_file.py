"""MP4 files: H.264 as `mp4` writes it, with the video's parameters as JSON in the comment tag.

A file grows under a temporary name beside its target and takes the target's name when it is complete. Frames are
encoded in another thread, while the next ones are made.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from .errors import CheckpointError, SettingsError

QUALITY = 18  # x264's constant rate factor: hardly told from the source
IN_FLIGHT = 2  # pieces that wait for the encoder
PARTIAL = ".partial"
COMMENT = "comment"


class VideoFile:
    """Takes frames and becomes `path` at a clean end of its `with` block, and nothing at any other."""

    def __init__(self, path: Path, size: tuple[int, int], fps: int, comment: Mapping[str, Any]) -> None:
        import av

        from .mp4 import h264_stream

        if not path.parent.is_dir():
            raise SettingsError(f"output: the folder {path.parent} must exist, it does not; make it first")
        self.path = path
        self._partial = partial_name(path)
        self._container = av.open(str(self._partial), "w", format="mp4", options={"movflags": "+faststart"})
        try:
            self._container.metadata[COMMENT] = json.dumps(comment, ensure_ascii=False)
            self._stream = h264_stream(self._container, size, fps, QUALITY)
        except BaseException:
            self._container.close()
            self._partial.unlink()
            raise
        self._tick = Fraction(1, fps)
        self._written = 0
        self._encoder = ThreadPoolExecutor(1, "turbowan-video")
        self._pending: deque[Future[None]] = deque()

    def write(self, frames_THWC: Tensor) -> None:
        """Append uint8 RGB frames."""
        while len(self._pending) >= IN_FLIGHT:
            self._pending.popleft().result()
        self._pending.append(self._encoder.submit(self._encode, frames_THWC.cpu().contiguous()))

    def _encode(self, frames_THWC: Tensor) -> None:
        import av

        for pixels in frames_THWC.numpy():
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
            frame.pts, frame.time_base = self._written, self._tick
            self._written += 1
            self._container.mux(self._stream.encode(frame))

    def __enter__(self) -> VideoFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            try:
                self._encoder.shutdown(wait=True, cancel_futures=kind is not None)
                if kind is None:
                    for piece in self._pending:
                        piece.result()
                    self._container.mux(self._stream.encode())
            finally:
                self._container.close()
            if kind is None:
                _to_disk(self._partial)
                self._partial.replace(self.path)
        finally:
            self._partial.unlink(missing_ok=True)


def _to_disk(path: Path) -> None:
    """A name that outlives a power failure must not outlive what it names."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def partial_name(path: Path) -> Path:
    """What a file is called while it grows."""
    return path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")


def read_comment(path: Path) -> dict[str, Any]:
    """The parameters that a video was written with; CheckpointError where it holds none."""
    import av

    try:
        with av.open(str(path)) as container:
            comment = container.metadata.get(COMMENT, "")
    except (av.FFmpegError, ValueError) as error:
        raise CheckpointError(f"video: {path} must be readable, it is not ({error}); check the file") from error
    try:
        parameters = json.loads(comment)
    except json.JSONDecodeError:
        parameters = None
    if not isinstance(parameters, dict):
        raise CheckpointError(
            f"video: {path} must carry its parameters, as `turbowan generate` writes them; this one came from elsewhere"
        )
    return parameters
