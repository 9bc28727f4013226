"""Frames on their way to an IMAGE: the same values wherever they come from. The file needs torch alone of the host."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

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
