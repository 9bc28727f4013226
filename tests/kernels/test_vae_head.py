"""The VAE's head as products of all taps and their sums: references against the convolution, kernels against them."""

import pytest
import torch
import torch.nn.functional as F
from tolerances import HALF_PRODUCTS, SAME_MATHS_FP32, relative_error

from turbowan.kernels import vae_head
from turbowan.kernels.vae_head_triton import sum_taps_triton, tap_products_triton
from turbowan.kernels.vae_norm import channel_norm_ref

pytestmark = [pytest.mark.interpreter, pytest.mark.usefixtures("poisoned_memory")]

# (C_out, C_in, (T, H, W)): the released head, one with alpha, positions that end inside a program.
CASES = [(3, 96, (2, 5, 7)), (4, 32, (3, 1, 9)), (3, 64, (1, 13, 11)), (1, 32, (2, 1, 1))]


def inputs(case, generator, dtype=torch.float64, device="cpu"):
    c_out, c_in, size = case
    shapes = (1, c_in, *size), (c_in, 1, 1, 1), (c_out, c_in, 3, 3, 3), (c_out,), (1, c_in, 2, *size[1:])
    x, gamma, weight, bias, behind = (torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes)
    frames = (tensor.contiguous(memory_format=torch.channels_last_3d) for tensor in (x, behind))
    return *frames, 1 + gamma / 10, weight / (27 * c_in) ** 0.5, bias


def head_ref(x, behind, gamma, weight, bias):
    """The convolution as such, over the frames behind and these."""
    frames = x if behind is None else torch.cat((behind, x), 2)
    normed = torch.empty_like(frames)
    channel_norm_ref(frames, gamma, silu=True, out=normed)
    normed = F.pad(normed, (1, 1, 1, 1, 2, 0))
    return F.conv3d(normed, weight, bias)[:, :, -x.shape[2] :]


def products_of(x, gamma, weight):
    return vae_head.tap_products_ref(x, gamma, weight, torch.float64)


@pytest.mark.parametrize("follows", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_references_equal_the_convolution(case, follows, generator):
    x, behind, gamma, weight, bias = inputs(case, generator)
    height, begun = x.shape[-2], None
    if follows:
        _, begun = vae_head.sum_taps_ref(products_of(behind, gamma, weight), None, bias, height)
    out, _ = vae_head.sum_taps_ref(products_of(x, gamma, weight), begun, bias, height)
    expected = head_ref(x, behind if follows else None, gamma, weight, bias)
    assert relative_error(out, expected) < SAME_MATHS_FP32  # of the sums


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_clip_frame_by_frame(case, generator):
    """A single frame leaves two sums begun, the later of them by the frame before."""
    x, behind, gamma, weight, bias = inputs(case, generator)
    clip, begun, frames = torch.cat((behind, x), 2), None, []
    for frame in clip.split(1, 2):
        out, begun = vae_head.sum_taps_ref(products_of(frame, gamma, weight), begun, bias, x.shape[-2])
        frames.append(out)
    assert relative_error(torch.cat(frames, 2), head_ref(clip, None, gamma, weight, bias)) < SAME_MATHS_FP32


@pytest.mark.parametrize("case", CASES, ids=str)
def test_products_kernel(case, half, device, generator):
    x, _, gamma, weight, _ = inputs(case, generator, half, device)
    rows = vae_head.tap_rows(weight)
    out = tap_products_triton(x.movedim(1, -1)[0], gamma, rows)
    expected = vae_head.tap_products_ref(x.double(), gamma.double(), weight.double(), torch.float64)
    assert relative_error(out, expected) < HALF_PRODUCTS[half]


@pytest.mark.parametrize("follows", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_sums_kernel(case, follows, half, device, generator):
    c_out, _, (frames, height, width) = case
    products = torch.randn(1, 1, frames, vae_head.TAPS * c_out * height, width, generator=generator)
    begun = torch.randn(1, c_out, vae_head.REACH, height, width, generator=generator) if follows else None
    products, begun = products.to(device, vae_head.PRODUCT_TYPE), begun.to(device) if follows else None
    bias = torch.randn(c_out, generator=generator).to(device, half)
    out, left = sum_taps_triton(products, begun, bias, height)
    expected, expected_left = vae_head.sum_taps_ref(products, begun, bias.float(), height)
    assert relative_error(out, expected) < HALF_PRODUCTS[half]
    assert relative_error(left, expected_left) < SAME_MATHS_FP32


def test_products_of_another_height_are_refused(device):
    products = torch.zeros(1, 1, 1, 27 * 4, 2, dtype=vae_head.PRODUCT_TYPE, device=device)
    with pytest.raises(ValueError, match="27·1·5 rows, got 108"):
        sum_taps_triton(products, None, torch.zeros(1, device=device), 5)


def test_wide_heads_do_not_fit():
    assert vae_head.fits(torch.empty(3, 96, 3, 3, 3))
    assert not vae_head.fits(torch.empty(32, 384, 3, 3, 3))
    assert not vae_head.fits(torch.empty(3, 8, 3, 3, 3))
