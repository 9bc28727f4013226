"""RGB to the planes of BT.709: known colours, an independent formula in fp64, and FFmpeg's way back."""

from __future__ import annotations

import av
import numpy as np
import pytest
import torch
from torch import Tensor

from turbowan.turbo_core import yuv

COLOURS = {  # Y, Cb, Cr of BT.709 in 8 bits, from the standard's table of colour bars
    (0, 0, 0): (16, 128, 128),
    (1, 1, 1): (235, 128, 128),
    (1, 0, 0): (63, 102, 240),
    (0, 1, 0): (173, 42, 26),
    (0, 0, 1): (32, 240, 118),
    (1, 1, 0): (219, 16, 138),
}


def split(planes_THW: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    flat = planes_THW.flatten(1)
    quarter = height * width // 4
    luma, cb, cr = flat.split([height * width, quarter, quarter], 1)
    half = (-1, height // 2, width // 2)
    return luma.view(-1, height, width), cb.view(half), cr.view(half)


@pytest.mark.parametrize("colour", COLOURS)
def test_known_colours(colour: tuple[int, int, int]) -> None:
    frame = torch.tensor(colour, dtype=torch.float32).view(3, 1, 1, 1).expand(3, 2, 6, 4)
    planes = yuv.to_planes(frame)
    assert planes.shape == (2, 9, 4)
    assert planes.dtype == torch.uint8
    for plane, value in zip(split(planes, 6, 4), COLOURS[colour], strict=True):
        assert (plane == value).all()


@pytest.mark.parametrize(("height", "width"), [(2, 2), (6, 10), (16, 32)])
def test_formula(height: int, width: int) -> None:
    """Within one rounding of fp64, on frames of noise, where a wrong neighbour or weight shows."""
    rgb = torch.rand(3, 3, height, width, generator=torch.Generator().manual_seed(0))
    red, green, blue = rgb.double()
    luma = 0.2126 * red + 0.7152 * green + 0.0722 * blue

    def mean(x: Tensor) -> Tensor:
        return (x[:, ::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, ::2] + x[:, 1::2, 1::2]) / 4

    wanted = 16 + 219 * luma, 128 + 224 * mean(blue - luma) / 1.8556, 128 + 224 * mean(red - luma) / 1.5748
    for plane, exact in zip(split(yuv.to_planes(rgb), height, width), wanted, strict=True):
        assert (plane - exact).abs().max() < 0.5 + 1e-4


def test_as_ffmpeg_converts() -> None:
    """FFmpeg's planes of the same smooth 8-bit frames differ by its rounding alone."""
    y, x = np.mgrid[:64, :96] / 96
    rgb = np.stack([x, y, 0.5 + 0.5 * np.sin(6 * x)], -1)
    eight_bit = np.round(rgb * 255).astype(np.uint8)
    frame = av.VideoFrame.from_ndarray(eight_bit, format="rgb24").reformat(format="yuv420p", dst_colorspace=1)
    ours = yuv.to_planes(torch.from_numpy(eight_bit).float().div(255).movedim(-1, 0)[:, None])[0].numpy()
    difference = ours.astype(int) - frame.to_ndarray(format="yuv420p")
    assert abs(difference).max() <= 2
    assert abs(difference).mean() < 0.6


def test_any_layout_and_no_change_of_the_input() -> None:
    rgb = torch.rand(1, 3, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    before = rgb.clone()
    channels_last = rgb.to(memory_format=torch.channels_last_3d)
    assert torch.equal(yuv.to_planes(channels_last[0]), yuv.to_planes(rgb[0]))
    assert torch.equal(rgb, before)
