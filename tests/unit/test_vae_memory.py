"""The Wan VAE in bounded memory: the planned bytes against the tensors alive, and the tiles against their blend."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import pytest
import tiny
import torch
from tolerances import SAME_MATHS_FP32, relative_error
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from vae_reference import latents, video

from turbowan.kernels import vae_conv, vae_head, vae_upsample
from turbowan.turbo_core import vae, vae_weights
from turbowan.turbo_core.errors import SettingsError
from turbowan.turbo_core.vae_plan import LEAST_TILE, OVERLAP, Plan, blend_weights, spans

MiB = 2**20
GiB = 2**30


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model() -> vae.WanVAE:
    return vae_weights.from_tensors(tiny.tiny_vae_tensors())


# --- bounded memory ---


class LiveBytes(TorchDispatchMode):
    """Bytes of tensors that operations made and that are still alive, and their peak."""

    def __init__(self, *known: Tensor):
        super().__init__()
        self.live = self.peak = 0
        self._seen = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self._seen:
                self._add(tensor.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self._seen.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self.live -= size
        self._seen.discard(key)


@pytest.mark.parametrize("chunk", [None, 1, 2])
@pytest.mark.parametrize("direction", ["decode", "encode"])
def test_planned_bytes_bound_the_peak(model, direction: str, chunk: int | None) -> None:
    size = (4, 6, 4)
    run = getattr(model, direction)
    given = (latents if direction == "decode" else video)(size[0], size[1:])
    plan = getattr(model, f"plan_{direction}")(size, chunk=chunk, budget=None)
    with LiveBytes(given, *model.state_dict().values()) as memory:
        result = run(given, chunk=chunk)
    peak = memory.peak - result.nbytes
    assert peak <= plan.working_bytes <= 1.5 * peak
    assert memory.live == result.nbytes, "nothing outlives the call"


@pytest.mark.parametrize("chunk", [None, 1, 2])
def test_planned_bytes_bound_the_peak_of_a_still_clip(model, chunk: int | None) -> None:
    x, length = video(2, (6, 4))[:, :, :2].contiguous(), 81
    plan = model.plan_encode((21, 6, 4), chunk=chunk, budget=None, still=True)
    moving = model.plan_encode((21, 6, 4), chunk=chunk, budget=None)
    frame = 4 * model.config.width * x[0, 0, 0].numel()
    assert plan.working_bytes - moving.working_bytes == frame, "the largest frame that is held"
    with LiveBytes(x, *model.state_dict().values()) as memory:
        result = model.encode(x, length=length, chunk=chunk)
    peak = memory.peak - result.nbytes
    assert peak <= plan.working_bytes <= 1.5 * peak
    assert memory.live == result.nbytes, "nothing outlives the call"


def test_peak_does_not_grow_with_the_clip_or_the_batch(model) -> None:
    def peak(frames: int, batch: int) -> int:
        z = latents(frames, (4, 4), batch)
        with LiveBytes(z, *model.state_dict().values()) as memory:
            result = model.decode(z, chunk=1)
        return memory.peak - result.nbytes

    assert peak(8, 2) <= 1.02 * peak(3, 1)


def test_a_larger_budget_never_plans_smaller_passes(model) -> None:
    size = (21, 60, 104)
    plans = [model.plan_decode(size, chunk=None, budget=mib * MiB) for mib in (100, 200, 400, 800, 1600)]
    assert all(plan.working_bytes <= mib * MiB for plan, mib in zip(plans, (100, 200, 400, 800, 1600), strict=True))
    assert all(less.tiles >= more.tiles for less, more in pairwise(plans))
    assert plans[0].tiles > 1
    assert plans[-1].tiles == 1


@pytest.fixture
def released() -> vae.WanVAE:
    """Of the released width and precision, without data."""
    with torch.device("meta"):
        return vae.WanVAE(vae.VAEConfig()).to(torch.bfloat16)


def test_released_width_at_480p_and_720p(released) -> None:
    assert released.plan_decode((21, 60, 104), chunk=None, budget=None).working_bytes < 3.0 * GiB
    assert released.plan_encode((21, 60, 104), chunk=None, budget=None).working_bytes < 2.3 * GiB
    for gib in (1, 2, 6):
        plan = released.plan_decode((21, 90, 160), chunk=None, budget=gib * GiB)
        assert plan.working_bytes <= gib * GiB


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels' places are taken by what they allocate, on a device without data."""

    def conv(pieces, past, packed, bias, residual, side):
        frames = sum(piece.shape[2] for piece in pieces)
        return past.new_empty(1, len(bias), frames, *past.shape[3:])

    def upsample(x, packed, bias, copies):
        _, _, frames, height, width = x.shape
        return x.new_empty(1, len(bias), copies * frames, 2 * height, 2 * width)

    def products(x, gamma, weight):
        _, _, frames, height, width = x.shape
        return x.new_empty(1, 1, frames, vae_head.TAPS * len(weight) * height, width, dtype=vae_head.PRODUCT_TYPE)

    def sums(products, begun, bias, height):
        frames, _, width = products.shape[2:]
        out = bias.new_empty(1, len(bias), frames, height, width)
        return out, bias.new_empty(1, len(bias), vae_head.REACH, height, width, dtype=torch.float32)

    for module, name, stand_in in (
        (vae_conv, "kernel_takes", lambda x: x.shape[2] > 1 and x.shape[1] % 32 == 0),
        (vae_conv, "causal_conv", conv),
        (vae_upsample, "kernel_takes", lambda x: True),
        (vae_upsample, "upsample_conv", upsample),
        (vae_head, "kernel_takes", lambda x, weight: vae_head.fits(weight)),
        (vae_head, "tap_products", products),
        (vae_head, "sum_taps", sums),
        (functional, "scaled_dot_product_attention", lambda q, k, v: torch.empty_like(q)),
    ):
        monkeypatch.setattr(module, name, stand_in)


@pytest.mark.parametrize(
    ("direction", "given", "native_gib"),
    [("decode", (16, 21, 60, 104), 3.13), ("encode", (3, 2, 480, 832), 2.08)],
)
def test_no_more_memory_than_comfyui(kernels, released, direction: str, given: tuple, native_gib: float) -> None:
    """The kernels' way at 832x480 and 81 frames, result included, beside what ComfyUI's VAE took on a GPU."""
    x = torch.empty(1, *given, dtype=torch.bfloat16, device="meta")
    still = direction == "encode"
    with LiveBytes(x, *released.state_dict().values()) as memory:
        result = released.encode(x, length=81) if still else released.decode(x)
    planned = partial(released.plan_encode, still=True) if still else released.plan_decode
    assert memory.peak - result.nbytes <= planned((21, 60, 104), chunk=None, budget=None).working_bytes
    assert memory.peak < native_gib * GiB


# --- tiles ---

TILED = (2, 41, 2)


def tile_budget(plan: Callable[..., Plan]) -> int:
    """A little less than the smallest passes over whole frames need."""
    largest = plan(TILED, chunk=None, budget=None).working_bytes
    budgets = range(largest, 0, -largest // 32)
    return next(budget for budget in budgets if plan(TILED, chunk=None, budget=budget).tiles > 1)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_blend_weights_sum_to_one(count: int) -> None:
    side = LEAST_TILE + (count - 1) * (LEAST_TILE - OVERLAP) + 3
    stretches = spans(side, count)
    assert (stretches[0][0], stretches[-1][1]) == (0, side)
    assert all(left[1] - right[0] >= OVERLAP for left, right in pairwise(stretches))
    total = torch.zeros(side * 8)
    for (start, stop), weight in zip(stretches, blend_weights(stretches, scale=8), strict=True):
        total[start * 8 : stop * 8] += weight
    assert torch.allclose(total, torch.ones_like(total), atol=1e-6)


@pytest.mark.parametrize("direction", ["decode", "encode"])
def test_tiles_are_the_blend_of_their_own_results(model, caplog, direction: str) -> None:
    run, plan = getattr(model, direction), getattr(model, f"plan_{direction}")
    given = (latents if direction == "decode" else video)(TILED[0], TILED[1:])
    budget = tile_budget(plan)
    rows = plan(TILED, chunk=None, budget=budget).rows
    assert len(rows) == 2
    with caplog.at_level(logging.INFO):
        out = run(given, memory_budget_bytes=budget)
    assert "2 x 1 blended tiles" in caplog.text
    side_in, side_out = (1, 8) if direction == "decode" else (8, 1)
    want = torch.zeros_like(out)
    for (start, stop), weight in zip(rows, blend_weights(rows, scale=side_out), strict=True):
        tile = run(given[..., start * side_in : stop * side_in, :])
        want[..., start * side_out : stop * side_out, :] += tile * weight[:, None]
    assert relative_error(out, want) < SAME_MATHS_FP32


def test_tiles_blend_where_the_result_goes(model) -> None:
    """A whole result in fp32 beside the passes is what tiles are to avoid on a GPU."""
    blended: list[Tensor] = []
    budget, given = tile_budget(model.plan_decode), latents(TILED[0], TILED[1:])
    model.decode_to(
        lambda sample, frame, piece: blended.append(piece), given, memory_budget_bytes=budget, output_device="meta"
    )
    assert blended
    assert all(piece.is_meta for piece in blended)


def test_a_budget_below_the_least_tile_is_named(model) -> None:
    with pytest.raises(SettingsError, match=r"at least \d+ MiB.*got 0 MiB; choose a smaller video") as caught:
        model.decode(latents(2, (60, 60)), memory_budget_bytes=1000)
    least = int(caught.value.args[0].split("at least ")[1].split()[0])
    assert model.plan_decode((2, 60, 60), chunk=None, budget=least * MiB).tiles > 1


def test_progress_counts_every_tile(model) -> None:
    seen: list[tuple[int, int]] = []
    budget = tile_budget(model.plan_decode)
    model.decode(latents(TILED[0], TILED[1:]), memory_budget_bytes=budget, progress=lambda *at: seen.append(at))
    assert [done for done, _ in seen] == [1, 5, 6, 10]
    assert {total for _, total in seen} == {10}


@pytest.mark.parametrize("tiled", [False, True])
def test_frames_handed_on_are_those_of_a_decode(model, tiled: bool) -> None:
    budget = tile_budget(model.plan_decode) if tiled else None
    given = latents(TILED[0], TILED[1:], batch=2)
    want = model.decode(given, chunk=1, memory_budget_bytes=budget)
    got = torch.full_like(want, float("nan"))

    def receive(sample: int, frame: int, piece: Tensor) -> None:
        room = got[sample : sample + 1, :, frame : frame + piece.shape[2]]
        assert room.isnan().all()
        assert piece.shape[2] <= 4
        room.copy_(piece)

    model.decode_to(receive, given, chunk=1, memory_budget_bytes=budget)
    assert torch.equal(got, want)
