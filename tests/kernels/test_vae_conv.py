"""The VAE's convolutions: references against formulas, packed weights against references, kernels against both.

Triton's interpreter has no Gluon, so that without a Hopper GPU the kernels are only compiled.
"""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from tolerances import HALF_PRODUCTS, SAME_MATHS_FP32, SAME_MATHS_FP64, relative_error

from turbowan.kernels import vae_conv, vae_upsample

DOUBLE = {"dtype": torch.float64}
# (C_out, C_in, copies or side of the taps): two frames or pixels below each other, one, several parts.
CAUSAL = [(96, 32, 3), (192, 64, 3), (384, 32, 3), (96, 64, 1), (768, 32, 1)]
UPSAMPLES = [(96, 64, 1), (192, 32, 2), (384, 32, 1)]


def causal_inputs(generator, c_out: int, c_in: int, side: int, size: tuple[int, int, int]) -> list[torch.Tensor]:
    frames, height, width = size
    shapes = [(1, c_in, frames, height, width), (1, c_in, 2, height, width), (c_out, c_in, 3, side, side), (c_out,)]
    shapes.append((1, c_out, frames, height, width))
    x, past, weight, bias, residual = (torch.randn(shape, generator=generator, **DOUBLE) for shape in shapes)
    return [x, past, weight / (c_in * 3 * side**2) ** 0.5, bias, residual]


def upsample_inputs(generator, c_out: int, c_in: int, copies: int, size: tuple[int, int, int]) -> list[torch.Tensor]:
    shapes = (1, copies * c_in, *size), (c_out, c_in, 3, 3), (c_out,)
    x, weight, bias = (torch.randn(shape, generator=generator, **DOUBLE) for shape in shapes)
    return [x, weight / (9 * c_in) ** 0.5, bias]


@pytest.mark.parametrize("side", [1, 3])
def test_causal_reference_equals_the_formula(side, generator):
    x, past, weight, bias, residual = causal_inputs(generator, 2, 3, side, (2, 4, 5))
    frames = F.pad(torch.cat((past, x), 2), (side // 2,) * 4)
    expected = residual + bias[:, None, None, None]
    for dt, dy, dx in product(range(3), range(side), range(side)):
        shifted = frames[:, :, dt : dt + 2, dy : dy + 4, dx : dx + 5]
        expected = expected + torch.einsum("oi,bithw->bothw", weight[:, :, dt, dy, dx], shifted)
    assert relative_error(vae_conv.causal_conv_ref(x, past, weight, bias, residual), expected) < SAME_MATHS_FP64


def test_upsample_reference_equals_the_formula(generator):
    x, weight, bias = upsample_inputs(generator, 2, 3, 2, (2, 3, 4))
    out = vae_upsample.upsample_conv_ref(x, weight, bias, 2)
    assert out.shape == (1, 2, 4, 6, 8)
    for frame in range(4):
        source = x[:, frame % 2 * 3 : frame % 2 * 3 + 3, frame // 2]
        expected = F.conv2d(F.interpolate(source, scale_factor=2), weight, bias, padding=1)
        assert relative_error(out[:, :, frame], expected) < SAME_MATHS_FP64


def block_rows(part: torch.Tensor, tile: torch.Tensor, start: int) -> torch.Tensor:
    """What a warpgroup adds for a tile: 192 rows of weights from ``start`` on, 64 at a time, where all 64 exist."""
    out = torch.zeros(192, tile.shape[1], **DOUBLE)
    for row in range(0, 192, 64):
        if start + row >= 0 and start + row + 64 <= part.shape[0]:
            out[row : row + 64] = part[start + row : start + row + 64] @ tile
    return out


@pytest.mark.parametrize(("c_out", "c_in", "side"), CAUSAL)
def test_packed_weights_give_the_causal_reference(c_out, c_in, side, generator):
    x, past, weight, bias, _ = causal_inputs(generator, c_out, c_in, side, (4, 3, 5))
    packed = vae_conv.pack_weight(weight)
    assert packed.numel() == vae_conv.packed_elements(weight)
    channels = min(c_out, 192)
    per_program, padding = 192 // channels, 32 if channels == 96 else 0
    stacks = packed.reshape(c_out // channels, side**2, -1, c_in)[:, :, : 3 * channels + 2 * padding]
    frames = F.pad(torch.cat((past, x), 2), (side // 2,) * 4)[0]
    out = torch.empty(c_out // channels, 4 // per_program, 192, 15, **DOUBLE)
    for part, first in product(range(out.shape[0]), range(out.shape[1])):
        rows = torch.zeros(192, 15, **DOUBLE)
        for tap, frame in product(range(side**2), range(per_program + 2)):
            dy, dx = divmod(tap, side)
            tile = frames[:, first * per_program + frame, dy : dy + 3, dx : dx + 5].reshape(c_in, 15)
            rows += block_rows(stacks[part, tap], tile, padding + (2 - frame) * channels)
        out[part, first] = rows
    out = out.view(-1, 4 // per_program, per_program, channels, 3, 5).permute(0, 3, 1, 2, 4, 5).reshape(c_out, 4, 3, 5)
    expected = vae_conv.causal_conv_ref(x, past, weight, bias, None)[0] - bias[:, None, None, None]
    assert relative_error(out, expected) < SAME_MATHS_FP64


@pytest.mark.parametrize(("c_out", "c_in", "copies"), UPSAMPLES)
def test_packed_weights_give_the_upsample_reference(c_out, c_in, copies, generator):
    x, weight, bias = upsample_inputs(generator, c_out, c_in, copies, (1, 3, 5))
    packed = vae_upsample.pack_weight(weight)
    assert packed.numel() == vae_upsample.packed_elements(weight)
    columns = 3 if c_out == 96 else 2
    v = packed.double().view(-1, 2, columns, 2, 192, c_in)  # [part, py, column, a, row, C_in]
    frames = F.pad(x[0].view(copies, c_in, 3, 5), (1, 1, 1, 1))
    out = torch.zeros(copies, 3, 2, 5, v.shape[0], 192, **DOUBLE)
    for frame, part, py, column, a in product(range(copies), range(v.shape[0]), range(2), range(columns), range(2)):
        left = column + (part * 192 // c_out if columns == 2 else 0)
        tile = frames[frame, :, py + a : py + a + 3, left : left + 5]
        out[frame, :, py, :, part] += torch.einsum("ri,iyx->yxr", v[part, py, column, a], tile)
    out = out.reshape(copies, 6, 10, c_out).permute(3, 0, 1, 2) + bias[:, None, None, None]
    expected = vae_upsample.upsample_conv_ref(x, weight, bias, copies)[0]
    assert relative_error(out, expected) < SAME_MATHS_FP32


def test_other_shapes_are_not_packed():
    assert not vae_conv.packs(torch.empty(96, 3, 3, 3, 3))
    assert not vae_conv.packs(torch.empty(3, 96, 3, 3, 3))
    assert not vae_conv.packs(torch.empty(192, 96, 1, 1, 1))
    assert not vae_upsample.packs(torch.empty(64, 128, 3, 3))
    assert vae_upsample.packs(torch.empty(96, 192, 3, 3))


# --- the kernels ---


def is_channels_last(tensor: torch.Tensor) -> bool:
    """By its strides alone, as torch decides: a wrong one of a single sample makes cuDNN convert every tensor."""
    return tensor.stride() == torch.empty_like(tensor, memory_format=torch.channels_last_3d).stride()


def channels_last(tensor: torch.Tensor, like: tuple[torch.device, torch.dtype]) -> torch.Tensor:
    return tensor.to(*like).contiguous(memory_format=torch.channels_last_3d)


# Odd sides, a tile and more, one frame too many for a program; large channels in few positions.
SIZES = [(4, 8, 16), (5, 13, 21), (2, 3, 50), (3, 1, 1)]


@pytest.mark.gpu
@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("c_out", "c_in", "side"), CAUSAL)
def test_causal_kernel(c_out, c_in, side, size, half, device, generator):
    given = causal_inputs(generator, c_out, c_in, side, size)
    x, past, residual = (channels_last(given[i], (device, half)) for i in (0, 1, 4))
    weight, bias = (given[i].to(device, half) for i in (2, 3))
    if not vae_conv.kernel_takes(x):
        pytest.skip(f"the kernel is not for this GPU: {vae_conv.CAUSAL_CONV.refusal(x.movedim(1, -1))}")
    for added in (None, residual):
        out = vae_conv.causal_conv((x,), past, vae_conv.pack_weight(weight), bias, added, side)
        assert is_channels_last(out)
        wide = [None if tensor is None else tensor.double() for tensor in (x, past, weight, bias, added)]
        assert relative_error(out, vae_conv.causal_conv_ref(*wide)) < HALF_PRODUCTS[half]


@pytest.mark.gpu
@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("c_out", "c_in", "copies"), UPSAMPLES)
def test_upsample_kernel(c_out, c_in, copies, size, half, device, generator):
    x, weight, bias = upsample_inputs(generator, c_out, c_in, copies, size)
    x, weight, bias = channels_last(x, (device, half)), weight.to(device, half), bias.to(device, half)
    if not vae_upsample.kernel_takes(x):
        pytest.skip(f"the kernel is not for this GPU: {vae_upsample.UPSAMPLE_CONV.refusal(x.movedim(1, -1))}")
    out = vae_upsample.upsample_conv(x, vae_upsample.pack_weight(weight), bias, copies)
    assert is_channels_last(out)
    ref = vae_upsample.upsample_conv_ref(x.double(), weight.double(), bias.double(), copies)
    assert relative_error(out, ref) < HALF_PRODUCTS[half]
