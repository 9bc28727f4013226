"""Frames on their way to an IMAGE: the same values wherever they come from. The file needs torch alone of the host."""

from __future__ import annotations

import contextlib
import importlib.util
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

SIZE = (2, 9, 48, 80)  # samples, frames, height, width


@pytest.fixture(scope="module")
def frames() -> ModuleType:
    path = Path(__file__).parents[2] / "nodes" / "_frames.py"
    spec = importlib.util.spec_from_file_location("turbowan_frames", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def finish(image: Tensor) -> Tensor:
    """As the host's VAE does it."""
    return image.add_(1.0).div_(2.0).clamp_(0.0, 1.0)


def deliver(frames: ModuleType, video: Tensor, device: torch.device, dtype: torch.dtype, delay: bool) -> Tensor:
    with frames.Frames(SIZE, device=device, source=video.device, dtype=dtype, finish=finish) as images:
        for sample in range(SIZE[0]):
            for first, stop in ((0, 1), (1, 5), (5, 9)):
                if delay:
                    torch.cuda._sleep(20_000_000)
                piece = video[sample : sample + 1, :, first:stop].clone()
                images.receive(sample, first, piece)
                piece.fill_(float("nan"))  # a decoder reuses its memory
    return images.images


def check(
    frames: ModuleType,
    source: torch.device,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    delay: bool = False,
) -> None:
    generator = torch.Generator().manual_seed(0)
    video = (1.2 * torch.randn(SIZE[0], 3, *SIZE[1:], generator=generator)).to(torch.bfloat16)
    want = finish(video.to(torch.float32, copy=True)).to(dtype).movedim(1, -1).reshape(-1, *SIZE[2:], 3)
    with torch.inference_mode():
        got = deliver(frames, video.to(source), device, dtype, delay)
    assert got.is_contiguous()
    assert got.device.type == device.type
    assert torch.equal(got.cpu(), want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_on_the_cpu(frames: ModuleType, dtype: torch.dtype) -> None:
    check(frames, torch.device("cpu"), torch.device("cpu"), dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_from_a_gpu_that_is_still_computing(frames: ModuleType, device: str, dtype: torch.dtype) -> None:
    check(frames, torch.device("cuda"), torch.device(device), dtype, delay=True)


class Stream:
    """In place of a GPU's: what is submitted to the copying thread waits for the test."""

    def __init__(self, *_: object) -> None:
        self.open = threading.Event()

    def record_event(self) -> Stream:
        return self

    def wait_event(self, event: Stream) -> None:
        assert self.open.wait(10)


@pytest.fixture
def copying(frames: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Frames that copy in their thread, as from a GPU."""
    monkeypatch.setattr(frames, "_on_gpu", lambda _: True)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    return frames


def images_of(copying: ModuleType) -> Any:
    return copying.Frames(
        SIZE, device=torch.device("cpu"), source=torch.device("cuda"), dtype=torch.float32, finish=finish
    )


def test_leaving_early_waits_for_copies_under_way(copying: ModuleType) -> None:
    images = images_of(copying)

    def cancelled() -> None:
        with images:
            images.receive(0, 0, torch.ones(1, 3, 1, *SIZE[2:]))
            threading.Timer(0.2, images._stream.open.set).start()
            raise InterruptedError

    with pytest.raises(InterruptedError):
        cancelled()
    assert (images.images[0] == 1).all(), "the memory may be gone afterwards"


@pytest.mark.parametrize("pieces", [1, 4], ids=["at the end", "at a later piece"])
def test_a_copy_that_fails_is_an_error(copying: ModuleType, pieces: int) -> None:
    images = images_of(copying)
    images._stream.open.set()

    def too_low() -> None:
        with images:
            for frame in range(pieces):
                images.receive(0, frame, torch.ones(1, 3, 1, SIZE[2] - 1, SIZE[3]))

    with pytest.raises(RuntimeError, match="must match"):
        too_low()


def test_pieces_do_not_pile_up(copying: ModuleType) -> None:
    with images_of(copying) as images:
        threading.Timer(0.2, images._stream.open.set).start()
        for frame in range(9):
            images.receive(1, frame, torch.full((1, 3, 1, *SIZE[2:]), frame / 8))
            assert len(images._pending) <= copying.IN_FLIGHT
    assert torch.equal(images.images[9:, 0, 0, 0], 0.5 + torch.arange(9) / 16)


def test_a_piece_that_lies_there_already_is_not_waited_for(copying: ModuleType, monkeypatch) -> None:
    """Blended tiles come from the images' device."""
    monkeypatch.setattr(copying, "_on_gpu", lambda images: images.is_cuda)
    with images_of(copying) as images:
        images.receive(0, 3, torch.ones(1, 3, 2, *SIZE[2:]))
        assert not images._pending
        assert (images.images[3:5] == 1).all()
