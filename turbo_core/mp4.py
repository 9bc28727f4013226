"""An MP4, in memory or on disk: H.264 at a constant quality, with the settings of ComfyUI's SaveVideo, and AAC sound.

x264 works on several frames at once (frame threads); PyAV alone would let it cut each frame into slices, which is
slower and costs quality. No frame is encoded before the encoder has seen `LOOKAHEAD` further ones, so that this many
are left when the last frame comes: half of a clip with x264's own 40. With 20 a file is 0 to 7 % smaller and 0 to 0.15
dB further from its frames, as with a CRF up to half a step higher (the one loss: a still that is panned, 0.4 dB at the
same size).
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np
from av.codec.codec import UnknownCodecError
from av.container import OutputContainer
from av.video.reformatter import ColorRange
from torch import Tensor

from .errors import BackendUnavailableError, SettingsError

DEFAULT_CRF = 23  # FFmpeg's for libx264, and so ComfyUI's
LOOKAHEAD = 20  # frames
COMMENT = "comment"  # the tag's name
BT709, SRGB_CURVE = 1, 13  # codes of H.273, as are the tags of ComfyUI's own files
LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}
AAC_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350)
RATE_STEPS = 1000  # ComfyUI rounds frames a second to a thousandth


@dataclass(frozen=True, kw_only=True)
class Sound:
    """``waveform`` [channels, samples] in -1…1, and its samples a second."""

    waveform: Tensor
    rate: int

    def __post_init__(self) -> None:
        if len(self.waveform) not in LAYOUTS:
            raise SettingsError(f"MP4: sound must have 1, 2 or 6 channels, got {len(self.waveform)}; mix it to stereo")
        if self.rate not in AAC_RATES:
            raise SettingsError(f"MP4: sound must have a sample rate of AAC, got {self.rate}; resample it to 48000")


@dataclass(frozen=True, kw_only=True)
class Format:
    """Of a video: even sides, frames in all, frames a second, quality (1…51, less is better), sound."""

    width: int
    height: int
    frames: int
    fps: float
    crf: int = DEFAULT_CRF
    sound: Sound | None = None

    def __post_init__(self) -> None:
        if self.width % 2 or self.height % 2:
            raise SettingsError(
                f"MP4: sides must be even, got {self.width}x{self.height}; resize or crop the images to even sides"
            )

    @property
    def rate(self) -> Fraction:
        return Fraction(round(self.fps * RATE_STEPS), RATE_STEPS)


class Mp4:
    """The file while it grows, to be closed as a context; one in memory is ``data`` then.

    Args:
        path: where to write it; without, in memory.
        comment: the text of its comment tag.
    """

    def __init__(self, wanted: Format, path: Path | None = None, comment: str = "") -> None:
        self.wanted = wanted
        self._buffer = io.BytesIO()
        self._frames = 0
        if path is None:
            self._container = av.open(self._buffer, mode="w", format="mp4")
        else:
            self._container = av.open(ffmpegs(path), mode="w", format="mp4", options={"movflags": "+faststart"})
        try:
            if comment:
                self._container.metadata[COMMENT] = comment
            self._video = h264_stream(self._container, (wanted.width, wanted.height), wanted.rate, wanted.crf)
            if wanted.sound is not None:
                self._add_sound(wanted.sound, Fraction(wanted.frames) / wanted.rate)
        except BaseException:
            self._container.close()
            raise

    def add(self, planes: np.ndarray) -> int:
        """Encode a frame, uint8 [3·H/2, W] as `yuv.to_planes` makes it; the packets that came out of it."""
        frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
        frame.pts, frame.time_base = self._frames, 1 / self.wanted.rate
        self._frames += 1
        return self._write(self._video.encode(frame))

    def flush(self) -> Iterator[int]:
        """Encode what x264 still holds, a packet at a time."""
        for packet in self._video.encode_lazy(None):
            yield self._write([packet])

    @property
    def data(self) -> io.BytesIO:
        self._buffer.seek(0)
        return self._buffer

    def _add_sound(self, sound: Sound, seconds: Fraction) -> None:
        layout = LAYOUTS[len(sound.waveform)]
        stream = self._container.add_stream("aac", rate=sound.rate, layout=layout)
        samples = sound.waveform[:, : math.ceil(seconds * sound.rate)].float().cpu().contiguous().numpy()
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
        frame.sample_rate, frame.pts = sound.rate, 0
        self._write(stream.encode(frame))
        self._write(stream.encode(None))

    def _write(self, packets: Sequence[av.Packet]) -> int:
        self._container.mux(packets)
        return len(packets)

    def __enter__(self) -> Mp4:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._container.close()


def ffmpegs(path: Path) -> str:
    """The path as FFmpeg takes it, which reads `scene:1.mp4` as an address."""
    return str(path.absolute())


def h264_stream(container: OutputContainer, size: tuple[int, int], rate: Fraction | int, crf: int) -> av.VideoStream:
    """A stream of yuv420p frames (width, height) as `yuv` makes them, for a container that has none yet."""
    try:
        stream = container.add_stream("h264", rate=rate)
    except UnknownCodecError as error:
        raise BackendUnavailableError(
            f"MP4: PyAV {av.__version__} must have an H.264 encoder, it has none; install its own build with "
            "'pip install --force-reinstall av'"
        ) from error
    stream.width, stream.height = size
    stream.pix_fmt = "yuv420p"
    stream.options = {"crf": str(crf), "rc-lookahead": str(LOOKAHEAD)}
    context = stream.codec_context
    context.thread_type = "FRAME"
    context.color_primaries = context.colorspace = BT709
    context.color_trc, context.color_range = SRGB_CURVE, ColorRange.MPEG
    return stream
