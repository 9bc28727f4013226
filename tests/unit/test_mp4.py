"""The MP4 writer and the thread that feeds it: what a player finds in the file, cancelling, errors, waiting frames."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from torch import Tensor

from turbowan.turbo_core import mp4, recorder, yuv
from turbowan.turbo_core.errors import SettingsError
from turbowan.turbo_core.mp4 import Format, Mp4, Sound
from turbowan.turbo_core.recorder import Recorder

WIDTH, HEIGHT = 64, 48


@dataclass(frozen=True)
class Found:
    """What a player sees."""

    frames: np.ndarray
    times: list[float]
    tags: tuple[int, int, int, int]
    seconds: Fraction
    sound_seconds: float | None


def wanted(frames: int, **settings: Any) -> Format:
    return Format(**({"width": WIDTH, "height": HEIGHT, "frames": frames, "fps": 16.0} | settings))


def clip(frames: int) -> Tensor:
    """A moving gradient [1, 3, T, H, W] in -1…1."""
    t, y, x = torch.meshgrid(torch.arange(frames), torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    waves = [torch.sin(0.1 * x + 0.4 * t), torch.cos(0.1 * y - 0.3 * t), torch.sin(0.05 * (x + y))]
    return torch.stack(waves)[None]


def finish(image: Tensor) -> Tensor:
    return image.add_(1).div_(2).clamp_(0, 1)


def encode(video: Tensor, format: Format) -> io.BytesIO:
    with Mp4(format) as file:
        packets = [file.add(frame) for frame in yuv.to_planes(finish(video[0].clone())).numpy()]
        packets += list(file.flush())
    assert sum(packets) == video.shape[2]
    return file.data


def record(video: Tensor, format: Format, **callbacks: Any) -> io.BytesIO:
    frames, file = video.shape[2], Mp4(format)
    with Recorder(file, **callbacks) as made:
        for first in range(0, frames, 4):
            made.write(finish(video[0, :, first : first + 4].clone()))
            made.decoded(min(first + 4, frames), frames)
        made.complete()
    return file.data


def play(data: io.BytesIO) -> Found:
    with av.open(io.BytesIO(data.getvalue())) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        tags = context.color_primaries, context.color_trc, context.colorspace, context.color_range
        frames = list(container.decode(stream))
        seconds = stream.duration * stream.time_base
        assert (context.name, context.pix_fmt, context.profile) == ("h264", "yuv420p", "High")
    sound_seconds = None
    with av.open(io.BytesIO(data.getvalue())) as container:
        if container.streams.audio:
            decoded = list(container.decode(audio=0))
            sound_seconds = sum(frame.samples for frame in decoded) / decoded[0].sample_rate
    images = np.stack([frame.to_ndarray(format="rgb24") for frame in frames])
    return Found(images, [float(frame.time) for frame in frames], tuple(map(int, tags)), seconds, sound_seconds)


@pytest.mark.parametrize("frames", [1, 2, 9, 61])
def test_every_frame_in_its_place(frames: int) -> None:
    video = clip(frames)
    found = play(encode(video, wanted(frames, crf=10)))
    assert found.times == [frame / 16 for frame in range(frames)]
    assert found.seconds == Fraction(frames, 16)
    exact = finish(video[0].clone()).movedim(0, -1).numpy() * 255
    assert np.square(found.frames - exact).mean() ** 0.5 < 6
    if frames > 2:
        assert np.square(found.frames[1:] - exact[:-1]).mean() ** 0.5 > 12, "a neighbouring frame must be told apart"


def test_on_disk_its_index_comes_first(tmp_path: Path) -> None:
    """A browser begins to play it before it has come whole."""
    exact = finish(clip(9)[0])
    with Mp4(wanted(9, crf=10), tmp_path / "a:b.mp4", "told") as file:
        for frame in yuv.to_planes(exact).numpy():
            file.add(frame)
        list(file.flush())
    content = (tmp_path / "a:b.mp4").read_bytes()
    assert 0 < content.find(b"moov") < content.find(b"mdat")
    found = play(io.BytesIO(content))
    assert found.times == [frame / 16 for frame in range(9)]
    assert np.square(found.frames - exact.movedim(0, -1).numpy() * 255).mean() ** 0.5 < 6
    with av.open(io.BytesIO(content)) as container:
        assert container.metadata[mp4.COMMENT] == "told"


def test_colour_tags_as_comfyui_writes_them() -> None:
    assert play(encode(clip(2), wanted(2))).tags == (1, 13, 1, 1)  # BT.709, sRGB's curve, BT.709, limited range


@pytest.mark.parametrize("fps", [1.0, 23.976, 120.0])
def test_frame_rate(fps: float) -> None:
    found = play(encode(clip(5), wanted(5, fps=fps)))
    assert np.allclose(np.diff(found.times), 1 / fps, rtol=1e-3)


def test_crf_is_the_quality() -> None:
    noise = torch.randn(1, 3, 9, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0)).mul_(0.3)
    sizes = [len(encode(noise, wanted(9, crf=crf)).getvalue()) for crf in (1, 23, 51)]
    assert sizes[0] > 1.5 * sizes[1] > 3 * sizes[2]


@pytest.mark.parametrize("channels", mp4.LAYOUTS)
@pytest.mark.parametrize("length", ["longer", "shorter"])
def test_sound_is_cut_where_the_frames_end(channels: int, length: str) -> None:
    samples = {"longer": 96_000, "shorter": 12_000}[length]
    sound = Sound(waveform=0.1 * torch.randn(channels, samples), rate=48_000)
    found = play(encode(clip(9), wanted(9, sound=sound)))
    assert len(found.frames) == 9
    assert found.sound_seconds == pytest.approx(min(9 / 16, samples / 48_000), abs=2 * 1024 / 48_000)  # AAC's frames


def test_sound_that_aac_does_not_take() -> None:
    with pytest.raises(SettingsError, match="1, 2 or 6 channels, got 3; mix"):
        Sound(waveform=torch.zeros(3, 100), rate=48_000)
    with pytest.raises(SettingsError, match="sample rate of AAC, got 44000; resample"):
        Sound(waveform=torch.zeros(2, 100), rate=44_000)


def test_odd_sides() -> None:
    with pytest.raises(SettingsError, match="sides must be even, got 63x48; resize"):
        wanted(1, width=63)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The planes that reach the encoder. Files do not compare: x264 may write other bytes the second time (seen below
    240 lines, with one thread too)."""
    frames: list[np.ndarray] = []
    add = Mp4.add

    def note_and_add(file: Mp4, planes: np.ndarray) -> int:
        frames.append(planes.copy())
        return add(file, planes)

    monkeypatch.setattr(Mp4, "add", note_and_add)
    return frames


def test_recorder_encodes_every_frame(encoded: list[np.ndarray]) -> None:
    video, seen = clip(30), []
    data = record(video, wanted(30), progress=lambda done, total: seen.append((done, total)))
    assert np.array_equal(encoded, yuv.to_planes(finish(video[0].clone())).numpy())
    assert len(play(data).frames) == 30
    assert {total for _, total in seen} == {60}
    assert seen == sorted(seen)
    assert seen[-1] == (60, 60)


def encoding_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("turbowan-mp4")]


class Gate:
    """Lets frames into the encoder only while it is open."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = threading.Event()
        add = Mp4.add

        def wait_and_add(file: Mp4, planes: np.ndarray) -> int:
            assert self.open.wait(20)
            return add(file, planes)

        monkeypatch.setattr(Mp4, "add", wait_and_add)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(monkeypatch)
    yield gate
    gate.open.set()


def test_cancelled_while_the_encoder_is_behind(gate: Gate) -> None:
    """Frames pile up to the limit; there the decoder waits, and a cancellation reaches it."""
    taken = 0

    def cancel() -> None:
        gate.open.set()
        raise InterruptedError

    def decode() -> None:
        nonlocal taken
        with Recorder(Mp4(wanted(400)), interrupted=cancel) as made:
            for _ in range(400):
                made.write(finish(clip(1)[0]))
                taken += 1

    with pytest.raises(InterruptedError):
        decode()
    assert recorder.WAITING <= taken <= recorder.WAITING + 1  # and one in the encoder
    assert not encoding_threads()


def test_cancelled_behind_the_last_frame(gate: Gate) -> None:
    def cancel() -> None:
        gate.open.set()
        raise InterruptedError

    with pytest.raises(InterruptedError):
        record(clip(8), wanted(8), interrupted=cancel)
    assert not encoding_threads()


def test_an_error_of_the_decoder_ends_the_thread() -> None:
    def decode() -> None:
        with Recorder(Mp4(wanted(9))) as made:
            made.write(finish(clip(1)[0]))
            raise MemoryError

    before = time.monotonic()
    with pytest.raises(MemoryError):
        decode()
    assert not encoding_threads()
    assert time.monotonic() - before < 10


@pytest.mark.parametrize("pieces", [1, 40], ids=["at the end", "at a later piece"])
def test_an_error_of_the_encoder_reaches_the_decoder(monkeypatch: pytest.MonkeyPatch, pieces: int) -> None:
    def fail(file: Mp4, planes: np.ndarray) -> int:
        raise OSError("no room")

    monkeypatch.setattr(Mp4, "add", fail)
    with pytest.raises(OSError, match="no room"):
        record(clip(4 * pieces), wanted(4 * pieces))
    assert not encoding_threads()


@pytest.mark.gpu
def test_from_a_gpu_that_is_still_computing(encoded: list[np.ndarray]) -> None:
    video = clip(30)
    with Recorder(Mp4(wanted(30))) as made:
        for first in range(0, 30, 4):
            torch.cuda._sleep(20_000_000)
            piece = finish(video[0, :, first : first + 4].cuda())
            made.write(piece)
            piece.fill_(float("nan"))  # a decoder reuses its memory
        made.complete()
    exact = yuv.to_planes(finish(video[0].clone())).numpy()
    assert abs(np.subtract(encoded, exact, dtype=int)).max() <= 1, "roundings of the GPU alone"
