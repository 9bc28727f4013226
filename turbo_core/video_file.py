"""MP4 files: what `recorder` makes, with the video's parameters as JSON in the comment tag.

A file grows under a temporary name beside its target and takes the target's name when it is complete.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from .errors import CheckpointError, SettingsError
from .video_size import Size

QUALITY = 18  # x264's constant rate factor: hardly told from the source
PARTIAL = ".partial"


class VideoFile:
    """Takes frames and becomes `path` at a clean end of its `with` block, and nothing at any other."""

    def __init__(self, path: Path, size: Size, frames: int, fps: int, comment: Mapping[str, Any]) -> None:
        from .mp4 import Format, Mp4
        from .recorder import Recorder

        if not path.parent.is_dir():
            raise SettingsError(f"output: the folder {path.parent} must exist, it does not; make it first")
        self.path = path
        self._partial = partial_name(path)
        wanted = Format(width=size[0], height=size[1], frames=frames, fps=fps, crf=QUALITY)
        try:
            self._recorder = Recorder(Mp4(wanted, self._partial, json.dumps(comment, ensure_ascii=False)))
        except BaseException:
            self._partial.unlink(missing_ok=True)  # PyAV may not have made it yet
            raise

    def write(self, rgb_CTHW: Tensor) -> None:
        """Append frames, fp32 in 0…1."""
        self._recorder.write(rgb_CTHW)

    def __enter__(self) -> VideoFile:
        self._recorder.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            try:
                if kind is None:
                    self._recorder.complete()
            finally:
                self._recorder.__exit__(kind, error, trace)
            if kind is None:
                _to_disk(self._partial)
                self._take_name()
        finally:
            self._partial.unlink(missing_ok=True)

    def _take_name(self) -> None:
        try:
            self._partial.replace(self.path)
        except PermissionError as error:  # Windows: a player has the old file open
            spare = self._partial.with_suffix(self.path.suffix)
            self._partial.replace(spare)
            raise SettingsError(
                f"output: {self.path} must be free to be replaced, another program holds it; the video lies in {spare}"
            ) from error


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

    from .mp4 import COMMENT, ffmpegs

    try:
        with av.open(ffmpegs(path)) as container:
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
