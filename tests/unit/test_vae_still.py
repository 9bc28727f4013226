"""A clip that stands still, against the same clip frame by frame: what is counted, what comes out, what it takes."""

from __future__ import annotations

import pytest
import tiny
import torch
from tolerances import SAME_MATHS_FP32, SAME_MATHS_FP64, relative_error
from torch import Tensor
from vae_reference import encode_ref

from turbowan.turbo_core import vae, vae_weights
from turbowan.turbo_core.errors import LatentError
from turbowan.turbo_core.vae_layers import CausalConv3d, Layer, Past
from turbowan.turbo_core.vae_passes import hold
from turbowan.turbo_core.vae_plan import blend_weights
from turbowan.turbo_core.vae_still import StillClip

PIXELS = (24, 8)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return tiny.tiny_vae_tensors()


@pytest.fixture(scope="module")
def model(weights: dict[str, Tensor]) -> vae.WanVAE:
    return vae_weights.from_tensors(weights, dtype=torch.float64)


def beginning(frames: int, *, batch: int = 1, pixels: tuple[int, int] = PIXELS) -> Tensor:
    generator = torch.Generator().manual_seed(frames)
    return torch.rand(batch, 3, frames, *pixels, generator=generator, dtype=torch.float64) * 2 - 1


def whole(x: Tensor, length: int) -> Tensor:
    return torch.cat([x, x[:, :, -1:].expand(-1, -1, length - x.shape[2], -1, -1)], 2)


def encoder_layers(model: vae.WanVAE) -> list[Layer]:
    return [layer for level in model.encoder.levels() for layer in level.layers]


# --- counting ---


@pytest.mark.parametrize("given", [1, 2, 3, 6])
def test_frames_repeat_from_where_it_is_counted_and_not_before(model, given: int) -> None:
    """Every layer over the whole clip in one pass after the first frame: where do its frames begin to repeat?"""
    length = 129  # long enough for the last layer to come to rest
    x, clip = whole(beginning(given), length), StillClip(frames=length, distinct=given)
    past, first, rest = Past(), x[:, :, :1], x[:, :, 1:]
    for layer in encoder_layers(model):
        first, rest = layer(first, past), layer(rest, past)
        frames = torch.cat([first, rest], 2)
        clip = clip.behind(layer)
        assert clip.frames == frames.shape[2]
        rests = (frames - frames[:, :, -1:]).abs().amax((0, 1, 3, 4)) < SAME_MATHS_FP64
        assert clip.distinct < clip.frames
        assert rests[clip.distinct - 1 :].all()
        assert not rests[clip.distinct - 2], "one frame too many is computed"


def test_an_image_before_80_grey_frames_at_full_resolution(model) -> None:
    clip = StillClip(frames=81, distinct=2)
    wanted = []
    for layer in model.encoder.levels()[0].layers:
        wanted.append(clip.wanted(layer))
        clip = clip.behind(layer)
    assert wanted == [4, 8, 12, 12]


def test_only_the_counted_frames_are_computed(model, monkeypatch) -> None:
    taken: dict[CausalConv3d, int] = {}
    run = CausalConv3d.forward

    def counted(self: CausalConv3d, x: Tensor, past: Past) -> Tensor:
        taken[self] = taken.get(self, 0) + x.shape[2]
        return run(self, x, past)

    monkeypatch.setattr(CausalConv3d, "forward", counted)
    model.encode(beginning(2), length=81)
    assert taken.pop(model.encoder.conv1) == 4
    assert sorted(taken.values()) == [22, 22], "the frames after the first that are halved twice"


def test_held_frames() -> None:
    pieces = [torch.arange(2.0).view(1, 1, 2, 1, 1), torch.full((1, 1, 1, 1, 1), 2.0)]
    frames = [frame for piece in hold(iter(pieces), 3, 6) for frame in piece.flatten().tolist()]
    assert frames == [0, 1, 2, 2, 2, 2]
    assert list(hold(iter(pieces), 3, 3)) == pieces


# --- the same result ---


@pytest.mark.parametrize("chunk", [None, 1, 2, 5])
@pytest.mark.parametrize(
    ("given", "length"), [(1, 1), (1, 5), (2, 5), (2, 9), (1, 81), (2, 81), (5, 81), (14, 41), (2, 145), (41, 41)]
)
def test_as_the_whole_clip(model, poisoned_memory, given: int, length: int, chunk: int | None) -> None:
    x = beginning(given, batch=2)
    before = x.clone()
    out = model.encode(x, length=length, chunk=chunk)
    assert out.shape == (2, 16, 1 + (length - 1) // 4, 3, 1)
    assert relative_error(out, model.encode(whole(x, length), chunk=chunk)) < SAME_MATHS_FP64
    assert torch.equal(x, before)


@pytest.mark.parametrize("length", [5, 33, 49])
def test_as_formula(weights, poisoned_memory, length: int) -> None:
    x = beginning(2).float()
    out = vae_weights.from_tensors(weights).encode(x, length=length)
    assert relative_error(out, encode_ref(weights, whole(x, length))) < SAME_MATHS_FP32


def test_frames_at_rest_are_one_frame_bit_for_bit(model) -> None:
    clip = StillClip(frames=161, distinct=2)
    for layer in encoder_layers(model):
        clip = clip.behind(layer)
    assert (clip.frames, clip.distinct) == (41, 30)
    out = model.encode(beginning(2), length=161)
    assert torch.equal(out[:, :, 29:], out[:, :, -1:].expand(-1, -1, 12, -1, -1))
    assert not torch.equal(out[:, :, 28], out[:, :, 29])


def test_tiles_are_the_blend_of_their_own_results(model) -> None:
    x, size = beginning(2, pixels=(328, 16)), (3, 41, 2)
    largest = model.plan_encode(size, chunk=None, budget=None, still=True).working_bytes
    plans = (
        model.plan_encode(size, chunk=None, budget=budget, still=True) for budget in range(largest, 0, -largest // 32)
    )
    plan = next(plan for plan in plans if plan.tiles > 1)
    out = model.encode(x, length=9, memory_budget_bytes=plan.working_bytes)
    want = torch.zeros_like(out)
    for (start, stop), weight in zip(plan.rows, blend_weights(plan.rows, scale=1), strict=True):
        want[..., start:stop, :] += model.encode(x[..., 8 * start : 8 * stop, :], length=9) * weight[:, None]
    assert relative_error(out, want) < SAME_MATHS_FP64


# --- progress, interruption, bad input ---


def test_progress_counts_what_repeats(model) -> None:
    seen: list[tuple[int, int]] = []
    model.encode(beginning(2, batch=2), length=161, progress=lambda *at: seen.append(at))
    assert seen[-1] == (82, 82)


def test_interruption(model) -> None:
    class Stop(Exception):
        pass

    calls = 0

    def interrupted() -> None:
        nonlocal calls
        calls += 1
        if calls == 20:
            raise Stop

    with pytest.raises(Stop):
        model.encode(beginning(2), length=81, interrupted=interrupted)


@pytest.mark.parametrize(
    ("given", "length", "message"),
    [
        (2, None, r"frames must be 4n\+1, got 2"),
        (2, 80, r"frames must be 4n\+1, got 80; cut the video to 77"),
        (2, 1, "length must be at least the 2 frames given, got 1"),
        (2, 0, "length must be at least the 2 frames given, got 0"),
    ],
)
def test_bad_lengths(model, given: int, length: int | None, message: str) -> None:
    with pytest.raises(LatentError, match=message):
        model.encode(beginning(given), length=length)
