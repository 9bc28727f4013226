"""Bias and residual behind a convolution: the reference against the formula, the kernel against it."""

import pytest
import torch
from tolerances import ROUND_TRIP, SAME_MATHS_FP32, relative_error

from turbowan.kernels import vae_bias
from turbowan.kernels.vae_bias_triton import add_bias_triton

pytestmark = [pytest.mark.interpreter, pytest.mark.usefixtures("poisoned_memory")]

SHAPES = [(1, 96, 2, 5, 7), (2, 192, 1, 3, 11), (1, 8, 1, 1, 1), (1, 24, 1, 33, 32)]


def inputs(shape, generator, dtype=torch.float32, device="cpu"):
    tensors = (torch.randn(size, generator=generator).to(device, dtype) for size in (shape, shape))
    out, residual = (tensor.contiguous(memory_format=torch.channels_last_3d) for tensor in tensors)
    return out, torch.randn(shape[1], generator=generator).to(device, dtype), residual


@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_reference_equals_the_formula(shape, added, generator):
    out, bias, residual = inputs(shape, generator)
    expected = out.double() + bias.double()[:, None, None, None] + (residual.double() if added else 0)
    vae_bias.add_bias_ref(out, bias, residual if added else None)
    assert relative_error(out, expected) < SAME_MATHS_FP32


@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernel(shape, added, half, device, generator):
    out, bias, residual = inputs(shape, generator, half, device)
    before = residual.clone()
    expected = out.double() + bias.double()[:, None, None, None] + (residual.double() if added else 0)
    add_bias_triton(out.movedim(1, -1), bias, residual.movedim(1, -1) if added else None)
    assert relative_error(out, expected) < ROUND_TRIP[half]
    assert torch.equal(residual, before)


def test_other_widths_are_refused(half, device):
    out = torch.zeros(1, 2, 2, 2, 16, device=device, dtype=half)
    with pytest.raises(ValueError, match="16 elements"):
        add_bias_triton(out, torch.ones(8, device=device), None)
    with pytest.raises(ValueError, match=r"residual be \(1, 2, 2, 2, 16\)"):
        add_bias_triton(out, torch.ones(16, device=device), out[:, :1])
