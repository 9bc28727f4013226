"""The VAE's channel norm: the reference against the formula, the kernel against the reference."""

import pytest
import torch
from tolerances import ROUND_TRIP, SAME_MATHS_FP32, relative_error

from turbowan.kernels import dispatch, vae_norm
from turbowan.kernels.vae_norm_triton import channel_norm_triton

pytestmark = [pytest.mark.interpreter, pytest.mark.usefixtures("poisoned_memory")]

# [B, C, T, H, W]: the released widths, one below a power of two, runs of positions that end inside a program.
SHAPES = [(1, 96, 2, 5, 7), (2, 192, 1, 3, 11), (1, 384, 3, 1, 9), (1, 8, 1, 1, 1), (1, 24, 1, 33, 32)]


@pytest.fixture(params=SHAPES, ids=str)
def x(request, half, device, generator) -> torch.Tensor:
    values = torch.randn(request.param, generator=generator) * 3 + 0.5
    return values.to(device, half).contiguous(memory_format=torch.channels_last_3d)


def gamma_of(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return (1 + 0.1 * torch.randn(x.shape[1], 1, 1, 1, generator=generator)).to(x)


def formula(x: torch.Tensor, gamma: torch.Tensor, silu: bool) -> torch.Tensor:
    x, gamma = x.double(), gamma.double()
    y = x / x.norm(dim=1, keepdim=True).clamp(min=1e-12) * x.shape[1] ** 0.5 * gamma.view(1, -1, 1, 1, 1)
    return y * torch.sigmoid(y) if silu else y


@pytest.mark.parametrize("silu", [False, True])
def test_reference_equals_the_formula(silu, generator):
    x = torch.randn(2, 6, 3, 4, 5, generator=generator)
    gamma, out = gamma_of(x, generator), torch.empty_like(x)
    vae_norm.channel_norm_ref(x, gamma, silu=silu, out=out)
    assert relative_error(out, formula(x, gamma, silu)) < SAME_MATHS_FP32


@pytest.mark.parametrize("silu", [False, True])
def test_kernel(x, silu, generator):
    gamma, out = gamma_of(x, generator), torch.empty_like(x)
    channel_norm_triton(x.movedim(1, -1), gamma, silu=silu, out=out.movedim(1, -1))
    assert relative_error(out, formula(x, gamma, silu)) < ROUND_TRIP[x.dtype]


def test_kernel_writes_the_end_of_a_window_and_nothing_before_it(half, device, generator):
    x = torch.randn(1, 96, 2, 3, 5, generator=generator).to(device, half)
    x = x.contiguous(memory_format=torch.channels_last_3d)
    window = torch.full((1, 96, 4, 3, 5), 7.0).to(x).contiguous(memory_format=torch.channels_last_3d)
    gamma = gamma_of(x, generator)
    channel_norm_triton(x.movedim(1, -1), gamma, silu=True, out=window[:, :, 2:].movedim(1, -1))
    assert (window[:, :, :2] == 7).all()
    assert relative_error(window[:, :, 2:], formula(x, gamma, True)) < ROUND_TRIP[half]


def test_silent_and_large_positions_are_finite(half, device):
    x = torch.zeros(1, 96, 1, 2, 2, dtype=half, device=device).contiguous(memory_format=torch.channels_last_3d)
    x[..., 1, :] = 60000.0
    out = torch.empty_like(x)
    channel_norm_triton(x.movedim(1, -1), torch.ones(96).to(x), silu=False, out=out.movedim(1, -1))
    assert (out[..., 0, :] == 0).all()
    assert relative_error(out[..., 1, :], torch.ones_like(out[..., 1, :])) < ROUND_TRIP[half]


def test_other_widths_are_refused(half, device):
    x, gamma = torch.zeros(1, 2, 2, 2, 16, device=device, dtype=half), torch.ones(8, device=device)
    with pytest.raises(ValueError, match="gamma 16 long"):
        channel_norm_triton(x, gamma, silu=False, out=torch.empty_like(x))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda x: x, None),
        (lambda x: x[..., :12].contiguous(), "12 is not a multiple of 8"),
        (lambda x: x.movedim(1, -1), "not contiguous"),
        (torch.Tensor.float, "float32 is none of"),
    ],
    ids=["taken", "width", "layout", "dtype"],
)
def test_declared_constraints(change, reason, monkeypatch):
    monkeypatch.setattr(dispatch, "triton_refusal", lambda *_: None)
    refusal = vae_norm.CHANNEL_NORM.refusal(change(torch.zeros(1, 16, 2, 2, 16, dtype=torch.bfloat16)))
    assert (refusal is None) if reason is None else reason in refusal
