import math

import pytest
import torch

from turbowan.turbo_core import rcm
from turbowan.turbo_core.errors import NonFiniteError, SettingsError


def published_times(steps, sigma_max):
    """The schedule written out with Python floats."""
    angles = ([math.atan(sigma_max), 1.5, 1.4, 1.0])[:steps] + [0.0]
    return [math.sin(a) / (math.cos(a) + math.sin(a)) for a in angles]


@pytest.mark.parametrize("sigma_max", [80.0, 200.0, 1600.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_schedule_has_the_published_values(steps, sigma_max):
    times = rcm.schedule(steps, sigma_max)
    assert times.dtype == torch.float64
    assert times.tolist() == pytest.approx(published_times(steps, sigma_max), abs=1e-15)


@pytest.mark.parametrize(("sigma_max", "first"), [(80, 0.987654), (200, 0.995025), (1600, 0.999375)])
def test_schedule_starts_where_the_models_were_trained(sigma_max, first):
    assert rcm.schedule(4, sigma_max).tolist() == pytest.approx([first, 0.933781, 0.852895, 0.608979, 0], abs=1e-6)


def test_network_timesteps_are_rounded_to_bf16():
    stamps = rcm.round_timestep(rcm.schedule(4, 80.0)[:-1] * 1000)
    assert stamps.dtype == torch.float64
    assert stamps.tolist() == [988.0, 932.0, 852.0, 608.0]


def test_network_timestep_is_the_same_from_fp32_sigmas():
    times = rcm.schedule(4, 200.0)[:-1]
    assert rcm.round_timestep(times.float() * 1000).tolist() == rcm.round_timestep(times * 1000).tolist()


@pytest.mark.parametrize("steps", [0, 5, -1])
def test_steps_out_of_range(steps):
    with pytest.raises(SettingsError, match="steps: must be 1 to 4"):
        rcm.schedule(steps, 80.0)


@pytest.mark.parametrize("sigma_max", [0.0, -1.0, 14.0, math.inf, math.nan])
def test_sigma_max_that_would_not_fall(sigma_max):
    with pytest.raises(SettingsError, match="sigma_max: must be finite and above 14.1"):
        rcm.schedule(4, sigma_max)


@pytest.mark.parametrize(("steps", "high"), [(1, 1), (2, 2), (3, 2), (4, 2)])
def test_experts_switch_by_time_not_by_step_count(steps, high):
    assert rcm.split_at_boundary(rcm.schedule(steps, 200.0), 0.9) == high


@pytest.mark.parametrize("boundary", [0.0, 1.0, -0.5, 2.0])
def test_boundary_out_of_range(boundary):
    with pytest.raises(SettingsError, match="boundary"):
        rcm.split_at_boundary(rcm.schedule(4, 200.0), boundary)


def velocity(x, t):
    """A stand-in network with a state- and time-dependent answer."""
    return torch.sin(3 * x) + t * x.roll(1, -1) - 0.5


def walk(x, times, draws):
    """Both trajectories in Python floats over fp64, straight from the formulas; `draws` empty means ODE."""
    for i in range(len(times) - 1):
        t, t_next = times[i], times[i + 1]
        v = velocity(x, t)
        x = (1 - t_next) * (x - t * v) + t_next * draws[i] if draws else x - (t - t_next) * v
    return x


@pytest.mark.parametrize("stochastic", [True, False], ids=["sde", "ode"])
@pytest.mark.parametrize("sigma_max", [80.0, 200.0])
def test_trajectory_equals_an_independent_fp64_walk(stochastic, sigma_max, generator):
    times = rcm.schedule(4, sigma_max)
    start = torch.randn(2, 16, 3, 4, 4, generator=generator, dtype=torch.float64) * times[0]
    draws = [torch.randn(start.shape, generator=generator, dtype=torch.float64) for _ in range(4)]
    supply = iter(draws)
    out = rcm.sample(
        lambda x, t: x.double() - t * velocity(x.double(), t),
        start,
        times,
        stochastic=stochastic,
        noise=lambda: next(supply),
    )
    expected = walk(start, published_times(4, sigma_max), draws if stochastic else [])
    # The network sees the fp32 state, so that the walk differs by fp32 rounding and no more.
    assert out.dtype == torch.float64
    assert float((out - expected).norm() / expected.norm()) < 1e-6


def test_two_stages_continue_one_trajectory(generator):
    times = rcm.schedule(4, 200.0)
    start = torch.randn(1, 16, 1, 2, 2, generator=generator)

    def stage(x, part, first):
        seen = []
        out = rcm.sample(
            lambda state, t: state - t * velocity(state, t),
            x,
            part,
            stochastic=False,
            noise=lambda: torch.zeros(()),
            on_step=lambda i, *_: seen.append(i),
            first_step=first,
        )
        return out, seen

    whole, seen = stage(start, times, 0)
    middle, high = stage(start, times[:3], 0)
    out, low = stage(middle, times[2:], 2)
    assert torch.equal(out, whole)
    assert seen == high + low == [0, 1, 2, 3]


def test_last_step_returns_the_prediction():
    x0 = torch.full((1, 16, 1, 2, 2), 0.25)
    for stochastic in (True, False):
        out = rcm.sample(
            lambda *_: x0, torch.ones_like(x0), rcm.schedule(1, 80.0), stochastic=stochastic, noise=lambda: x0
        )
        torch.testing.assert_close(out, x0.double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_step_that_is_not_finite_is_named(bad):
    answers = iter([0.0, bad])
    with pytest.raises(NonFiniteError, match=r"step 2 \(t = 0.9338\).*precision 'bf16'"):
        rcm.sample(
            lambda x, t: torch.full_like(x, next(answers)),
            torch.ones(1, 2),
            rcm.schedule(4, 80.0),
            stochastic=False,
            noise=lambda: torch.zeros(()),
        )


def test_same_seed_same_noise_other_seed_other_noise():
    shape, cpu = torch.Size((1, 16, 2, 3, 3)), torch.device("cpu")
    draws = [rcm.StepNoise(shape, cpu, seed) for seed in (7, 7, 8)]
    first = [noise() for noise in draws]
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])
    assert not torch.equal(draws[0](), first[0])


@pytest.mark.parametrize("offset", range(-3, 4))
def test_step_noise_repeats_no_initial_latent_of_the_seed_or_its_neighbours(offset):
    shape = torch.Size((1, 16, 2, 3, 3))
    initial = torch.randn(shape, generator=torch.Generator().manual_seed(7 + offset))
    assert not torch.equal(rcm.StepNoise(shape, torch.device("cpu"), 7)(), initial)


def test_largest_seed_is_accepted():
    rcm.StepNoise(torch.Size((2,)), torch.device("cpu"), 2**64 - 1)()


def test_upstream_order_is_one_stream_from_the_initial_latent_on():
    shape, cpu = torch.Size((1, 16, 2, 3, 3)), torch.device("cpu")
    stream = torch.Generator().manual_seed(5)
    expected = [torch.randn(shape, generator=stream) for _ in range(3)]
    noise = rcm.StepNoise(shape, cpu, 5, "upstream")
    assert torch.equal(noise.initial, expected[0])
    assert torch.equal(noise(), expected[1])
    assert torch.equal(noise(), expected[2])


@pytest.mark.gpu
def test_noise_drawn_ahead_is_the_same_noise():
    shape, gpu = torch.Size((1, 16, 5, 32, 32)), torch.device("cuda")
    plain, ahead = (rcm.StepNoise(shape, gpu, 3) for _ in range(2))
    ahead.draw_ahead()
    for _ in range(4):
        torch.cuda._sleep(10_000_000)
        assert torch.equal(ahead(), plain())


def test_drawing_ahead_on_the_cpu_is_drawing():
    shape, cpu = torch.Size((1, 16, 2, 4, 4)), torch.device("cpu")
    plain, ahead = (rcm.StepNoise(shape, cpu, 3) for _ in range(2))
    ahead.draw_ahead()
    assert torch.equal(ahead(), plain())
    assert torch.equal(ahead(), plain())


def test_a_draw_that_fails_in_its_thread_is_the_callers_error(monkeypatch):
    noise = rcm.StepNoise(torch.Size((4,)), torch.device("meta"), 3)
    noise.draw_ahead()
    assert noise().device.type == "meta"
    assert noise().shape == (4,)

    def full(*_, **__):
        raise MemoryError("no room")

    monkeypatch.setattr(torch, "randn", full)
    with pytest.raises(MemoryError, match="no room"):
        [noise() for _ in range(2)]  # one may have been drawn before


def test_unknown_noise_order():
    with pytest.raises(SettingsError, match="comfy, upstream"):
        rcm.StepNoise(torch.Size((1,)), torch.device("cpu"), 0, "gpu")
