"""The way through the VAE that its kernels take, with their references in their place: pieces, memory, order."""

from __future__ import annotations

import pytest
import tiny
import torch
from tolerances import HALF_PRODUCTS, SAME_MATHS_FP32, relative_error
from vae_reference import decode_ref, encode_ref, latents, video

from turbowan.benchmarks import vae_kernels
from turbowan.kernels import vae_conv, vae_head, vae_upsample
from turbowan.turbo_core import vae_weights


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return tiny.tiny_vae_tensors()


@pytest.fixture
def calls(monkeypatch) -> dict[str, int]:
    """The kernels' references run wherever a weight has their form; how often each did."""
    seen = {"conv": 0, "upsample": 0, "head": 0}

    def conv(pieces, past, packed, bias, residual, side):
        seen["conv"] += 1
        assert packed.shape[-1] == side
        return vae_conv.causal_conv_ref(torch.cat(tuple(pieces), 2), past, packed, bias, residual)

    def upsample(x, packed, bias, copies):
        seen["upsample"] += 1
        return vae_upsample.upsample_conv_ref(x, packed, bias, copies)

    def products(x, gamma, weight):
        seen["head"] += 1
        return vae_head.tap_products_ref(x, gamma, weight, torch.float32)

    for module, taps, kernel in ((vae_conv, ((3, 3, 3), (3, 1, 1)), conv), (vae_upsample, ((3, 3),), upsample)):
        monkeypatch.setattr(module, "packs", lambda weight, taps=taps: tuple(weight.shape[2:]) in taps)
        monkeypatch.setattr(module, "packed_elements", torch.Tensor.numel)
        monkeypatch.setattr(module, "pack_weight", torch.Tensor.clone)
        monkeypatch.setattr(module, "causal_conv" if module is vae_conv else "upsample_conv", kernel)
    monkeypatch.setattr(vae_conv, "kernel_takes", lambda x: x.shape[2] > 1)
    monkeypatch.setattr(vae_upsample, "kernel_takes", lambda x: True)
    monkeypatch.setattr(vae_head, "kernel_takes", lambda x, weight: weight.shape[0] == 3)
    monkeypatch.setattr(vae_head, "tap_products", products)
    monkeypatch.setattr(vae_head, "sum_taps", vae_head.sum_taps_ref)
    return seen


@pytest.mark.parametrize("chunk", [None, 1, 2, 3])
@pytest.mark.parametrize("frames", [1, 2, 4])
def test_decode_as_formula(weights, calls, poisoned_memory, frames: int, chunk: int | None) -> None:
    model, z = vae_weights.from_tensors(weights), latents(frames, (3, 2))
    out = model.decode(z, chunk=chunk)
    assert calls["upsample"] > 0
    assert calls["head"] > 0
    assert (calls["conv"] > 0) == (frames > 1)
    assert relative_error(out, decode_ref(weights, z)) < SAME_MATHS_FP32


@pytest.mark.parametrize("chunk", [None, 1, 2, 3])
@pytest.mark.parametrize("frames", [2, 4])
def test_encode_as_formula(weights, calls, poisoned_memory, frames: int, chunk: int | None) -> None:
    model, x = vae_weights.from_tensors(weights), video(frames, (3, 2))
    out = model.encode(x, chunk=chunk)
    assert calls["conv"] > 0
    assert relative_error(out, encode_ref(weights, x)) < SAME_MATHS_FP32


def test_encode_of_a_clip_that_stands_still(weights, calls) -> None:
    model, x = vae_weights.from_tensors(weights), video(2, (3, 2))
    whole = torch.cat((x, x[:, :, -1:].expand(-1, -1, 36, -1, -1)), 2)
    out = model.encode(x, length=whole.shape[2])
    assert calls["conv"] > 0
    assert relative_error(out, encode_ref(weights, whole)) < SAME_MATHS_FP32


def test_a_pass_of_single_frames(weights, calls) -> None:
    """Under a small budget the last level takes frame by frame, and the products of two must stay."""
    model, z = vae_weights.from_tensors(weights), latents(4, (3, 2))
    usual = model.plan_decode((4, 3, 2), chunk=None, budget=None).working_bytes
    plans = (model.plan_decode((4, 3, 2), chunk=None, budget=usual - 2**13 * step) for step in range(100))
    single = next(plan for plan in plans if plan.tiles == 1 and plan.frames[-1] == 1)
    out = model.decode(z, memory_budget_bytes=single.working_bytes)
    assert relative_error(out, decode_ref(weights, z)) < SAME_MATHS_FP32


def test_a_benchmark_compares_the_same_operations() -> None:
    inputs = vae_kernels.Inputs(torch.device("cpu"), frames=2)
    for case in vae_kernels.cases(inputs, 24, 16):
        exact = case.exact()
        assert relative_error(case.peer(), exact) < HALF_PRODUCTS[torch.bfloat16], case.name
