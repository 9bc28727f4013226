"""What is really inside an MP4: decoded with PyAV."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO

import av


@dataclass(frozen=True, kw_only=True)
class Video:
    width: int
    height: int
    frames: int
    fps: float


def decode(data: bytes) -> Video:
    """Decode every frame of ``data``."""
    with av.open(BytesIO(data)) as container:
        stream = container.streams.video[0]
        frames = [(frame.width, frame.height) for frame in container.decode(stream)]
        fps = float(stream.average_rate)
    assert len(set(frames)) == 1, f"all frames must have one size, got {set(frames)}"
    return Video(width=frames[0][0], height=frames[0][1], frames=len(frames), fps=fps)
