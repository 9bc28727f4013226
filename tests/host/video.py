"""What is really inside an MP4: decoded with PyAV."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from io import BytesIO

import av
import numpy as np


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


def images(data: bytes) -> np.ndarray:
    """Its frames, uint8 [T, H, W, 3]."""
    with av.open(BytesIO(data)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def packets(data: bytes) -> list[str]:
    """Hashes of its packets in their order, whatever the container."""
    with av.open(BytesIO(data)) as container:
        return [hashlib.sha256(bytes(packet)).hexdigest() for packet in container.demux() if packet.size]


def metadata(data: bytes) -> dict[str, str]:
    with av.open(BytesIO(data)) as container:
        return dict(container.metadata)


def sound_seconds(data: bytes) -> float:
    with av.open(BytesIO(data)) as container:
        frames = list(container.decode(audio=0))
    return sum(frame.samples for frame in frames) / frames[0].sample_rate
