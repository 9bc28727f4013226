"""The Wan VAE: held against whole-clip formulas, cut in every way, in bounded memory, with bad input."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import pairwise

import pytest
import tiny
import torch
from tolerances import SAME_MATHS_FP32, SAME_MATHS_FP64, relative_error, sqnr_db
from torch import Tensor
from vae_reference import SIDES, decode_ref, encode_ref, latents, video

from turbowan.turbo_core import vae, vae_weights
from turbowan.turbo_core.errors import CheckpointError, LatentError, SettingsError, UnsupportedModelError

# --- fixtures ---


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return tiny.tiny_vae_tensors()


@pytest.fixture(scope="module")
def model(weights: dict[str, Tensor]) -> vae.WanVAE:
    return vae_weights.from_tensors(weights)


# --- the same as the formulas ---


@pytest.mark.parametrize("frames", [1, 2, 3, 5])
def test_decode_as_formula(weights, model, poisoned_memory, frames: int) -> None:
    z = latents(frames, batch=2)
    before = z.clone()
    out = model.decode(z)
    assert out.shape == (2, 3, 4 * frames - 3, 24, 8)
    assert relative_error(out, decode_ref(weights, z)) < SAME_MATHS_FP32
    assert torch.equal(z, before)


@pytest.mark.parametrize("frames", [1, 2, 3, 5])
def test_encode_as_formula(weights, model, poisoned_memory, frames: int) -> None:
    x = video(frames, batch=2)
    out = model.encode(x)
    assert out.shape == (2, 16, frames, *SIDES)
    assert relative_error(out, encode_ref(weights, x)) < SAME_MATHS_FP32


@pytest.mark.parametrize("chunk", [1, 2, 3, 9])
def test_passes_change_nothing_but_rounding(weights, chunk: int) -> None:
    model = vae_weights.from_tensors(weights, dtype=torch.float64)
    z, x = latents(4, (1, 2)).double(), video(4, (1, 2)).double()
    assert relative_error(model.decode(z, chunk=chunk), model.decode(z)) < SAME_MATHS_FP64
    assert relative_error(model.encode(x, chunk=chunk), model.encode(x)) < SAME_MATHS_FP64


def test_passes_of_every_budget_give_the_same(model) -> None:
    size = (6, *SIDES)
    for run, plan, given in (
        (model.decode, model.plan_decode, latents(6)),
        (model.encode, model.plan_encode, video(6)),
    ):
        whole = run(given, chunk=5)
        usual = plan(size, chunk=None, budget=None).working_bytes
        plans = {plan(size, chunk=None, budget=usual * percent // 100) for percent in (90, 100, 130, 200)}
        assert len({chosen.frames for chosen in plans}) >= 2
        for chosen in plans:
            assert chosen.tiles == 1
            assert relative_error(run(given, memory_budget_bytes=chosen.working_bytes), whole) < SAME_MATHS_FP32


def test_silent_latents_and_black_frames_are_finite(model) -> None:
    assert model.decode(torch.zeros(1, 16, 2, 2, 2)).isfinite().all()
    assert model.encode(torch.zeros(1, 3, 5, 16, 16)).isfinite().all()


def test_alpha_channels(weights) -> None:
    wide = dict(weights)
    for name, dim in (("encoder.conv1.weight", 1), ("decoder.head.2.weight", 0), ("decoder.head.2.bias", 0)):
        wide[name] = torch.cat([weights[name], weights[name].narrow(dim, 0, 1)], dim)
    model = vae_weights.from_tensors(wide)
    out = model.decode(latents(2))
    assert relative_error(out[:, :3], vae_weights.from_tensors(weights).decode(latents(2))) < SAME_MATHS_FP32
    assert torch.allclose(out[:, 3], out[:, 0], atol=1e-5)
    assert model.encode(out).shape == (1, 16, 2, *SIDES)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_is_as_near_to_fp32_as_plain_torch(weights, model, dtype: torch.dtype) -> None:
    rounded = {name: tensor.to(dtype) for name, tensor in weights.items()}
    exact = {name: tensor.float() for name, tensor in rounded.items()}
    small = vae_weights.from_tensors(rounded)
    z, x = latents(3, (4, 3)).to(dtype), video(3, (4, 3)).to(dtype)
    for ours, plain, want in (
        (small.decode(z), decode_ref(rounded, z), decode_ref(exact, z.float())),
        (small.encode(x), encode_ref(rounded, x), encode_ref(exact, x.float())),
    ):
        assert ours.dtype == dtype
        assert sqnr_db(ours, want) > sqnr_db(plain, want) - 0.5


def test_normalization() -> None:
    z = latents(2, batch=2).double()
    assert torch.allclose(vae.denormalize(vae.normalize(z)), z)
    assert torch.allclose(vae.normalize(z)[:, 5], (z[:, 5] - 0.9653) / 1.7708)
    assert vae.denormalize(z.bfloat16()).dtype == torch.bfloat16


# --- progress, interruption, several calls at once ---


def test_progress_reaches_its_total(model) -> None:
    seen: list[tuple[int, int]] = []
    model.decode(latents(3, batch=2), progress=lambda *at: seen.append(at))
    assert all(first[0] < second[0] for first, second in pairwise(seen))
    assert seen[-1] == (18, 18)


@pytest.mark.parametrize("direction", ["decode", "encode"])
def test_interruption_leaves_nothing_behind(model, direction: str) -> None:
    class Stop(Exception):
        pass

    calls = 0

    def interrupted() -> None:
        nonlocal calls
        calls += 1
        if calls == 20:
            raise Stop

    run = getattr(model, direction)
    given = latents(3) if direction == "decode" else video(3)
    want = run(given)
    with pytest.raises(Stop):
        run(given, interrupted=interrupted)
    assert torch.equal(run(given), want)


def test_threads_share_one_model(model) -> None:
    inputs = [latents(frames) for frames in (3, 4)]
    want = [model.decode(z) for z in inputs]
    got: dict[int, Tensor] = {}
    threads = [
        threading.Thread(target=lambda i=i: got.update({i: model.decode(inputs[i], chunk=1 + i)})) for i in (0, 1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in (0, 1):
        assert relative_error(got[i], want[i]) < SAME_MATHS_FP32


# --- weights ---


def test_weights_are_lent_not_copied(weights) -> None:
    model = vae_weights.from_tensors(weights)
    held = model.state_dict()
    assert held.keys() == weights.keys()
    assert all(held[name].data_ptr() == tensor.data_ptr() for name, tensor in weights.items())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    copied = vae_weights.from_tensors(weights, assign=False).state_dict()
    assert all(copied[name].data_ptr() != tensor.data_ptr() for name, tensor in weights.items())
    assert vae_weights.from_tensors(weights, dtype=torch.float16).dtype == torch.float16


def test_weights_of_a_host_module_stay_its_own(weights) -> None:
    host = vae_weights.from_tensors(weights)
    with torch.inference_mode():
        lent = vae_weights.from_tensors(host.state_dict())
        out = lent.decode(latents(2))
    assert torch.equal(out, host.decode(latents(2)))


@pytest.mark.parametrize("direction", ["decode", "encode"])
def test_one_direction_needs_half_of_the_weights(weights, direction: str) -> None:
    """The other half is not copied to the device."""
    whole, half = vae_weights.from_tensors(weights), vae_weights.shaped_like(weights)
    vae_weights.fill(half, weights, direction=direction)
    used, other = (half.decoder, half.encoder) if direction == "decode" else (half.encoder, half.decoder)
    assert {parameter.device.type for parameter in other.parameters()} == {"meta"}
    assert {parameter.device.type for parameter in used.parameters()} == {"cpu"}
    given = latents(2) if direction == "decode" else video(2, (3, 2))
    assert torch.equal(getattr(half, direction)(given), getattr(whole, direction)(given))


def broken(weights: dict[str, Tensor], **changes: Tensor | None) -> dict[str, Tensor]:
    changed = dict(weights)
    for name, tensor in changes.items():
        changed.pop(name, None)
        if tensor is not None:
            changed[name] = tensor
    return changed


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("encoder.conv1.bias", lambda t: None, r"missing: encoder\.conv1\.bias"),
        ("decoder.extra", lambda t: torch.ones(1), r"unexpected: decoder\.extra"),
        ("conv2.weight", lambda t: t[:4], r"misshapen: conv2\.weight \[4, 16, 1, 1, 1\] instead of \[16, 16, 1"),
        ("conv2.bias", lambda t: t * torch.nan, "must be finite"),
        ("conv2.weight", lambda t: t.to(torch.float8_e4m3fn), "must be bf16, fp16 or fp32, got .*float8"),
        ("decoder.head.0.gamma", lambda t: None, "in its own names"),
    ],
)
def test_bad_tensors(weights, name: str, change: Callable[[Tensor | None], Tensor | None], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        vae_weights.from_tensors(broken(weights, **{name: change(weights.get(name))}))


def test_many_missing_names_are_counted(weights) -> None:
    few = {name: tensor for name, tensor in weights.items() if not name.startswith("encoder.downsamples")}
    with pytest.raises(CheckpointError, match=r"missing: encoder\.downsamples.* and \d+ more"):
        vae_weights.from_tensors(few)


def test_wan_2_2_vae_is_named(weights) -> None:
    other = broken(weights, **{"decoder.upsamples.0.upsamples.0.residual.2.weight": torch.ones(1)})
    with pytest.raises(UnsupportedModelError, match=r"Wan 2\.2 .* VAEDecode"):
        vae_weights.from_tensors(other)


# --- sizes ---


@pytest.mark.parametrize("shape", [(1, 48, 2, 4, 4), (16, 2, 4, 4), (1, 16, 0, 4, 4)])
def test_bad_latents(model, shape: tuple[int, ...]) -> None:
    with pytest.raises(LatentError, match=r"latents must be floating point \[B, 16, T, H, W\], got .*; use a Wan"):
        model.decode(torch.zeros(shape))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 6, 16, 16), r"frames must be 4n\+1, got 6; cut the video to 5"),
        ((1, 3, 5, 16, 20), "sides must be multiples of 8, got 20x16"),
        ((1, 4, 5, 16, 16), r"video must be floating point \[B, 3, T, H, W\]"),
        ((5, 16, 16, 3), "video must be floating point"),
    ],
)
def test_bad_video(model, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(LatentError, match=message):
        model.encode(torch.zeros(shape))


def test_integers_and_bad_chunks_are_refused(model) -> None:
    with pytest.raises(LatentError, match=r"got torch\.uint8"):
        model.encode(torch.zeros(1, 3, 5, 16, 16, dtype=torch.uint8))
    with pytest.raises(SettingsError, match="chunk must be at least 1"):
        model.decode(latents(2), chunk=0)


def test_weights_that_a_host_moved_outside_inference_mode_are_taken() -> None:
    """Their data are normal tensors behind inference Parameters, of which torch allows no view."""
    tensors = tiny.tiny_vae_tensors()
    with torch.inference_mode():
        moved = {name: torch.nn.Parameter(tensor.clone(), requires_grad=False) for name, tensor in tensors.items()}
    for parameter in moved.values():
        parameter.data = parameter.data.clone()
    with torch.inference_mode():
        assert vae_weights.shaped_like(moved).config.width == vae_weights.from_tensors(tensors).config.width
        vae_weights._check_values(moved)


def test_the_shape_of_a_vae_is_enough_to_plan_with() -> None:
    tensors = tiny.tiny_vae_tensors()
    shape, whole = (
        vae_weights.shaped_like(tensors, torch.bfloat16),
        vae_weights.from_tensors(tensors, dtype=torch.bfloat16),
    )
    size = {"size": (5, 12, 20), "chunk": None, "budget": None}
    assert shape.plan_decode(**size) == whole.plan_decode(**size)
    assert shape.device.type == "meta"
