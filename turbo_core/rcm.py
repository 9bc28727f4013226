"""rCM sampling in 1 to 4 steps (arXiv 2510.08431, as TurboDiffusion uses it).

Trigonometric times [atan(σ_max), 1.5, 1.4, 1.0][:steps] + [0] become rectified-flow times t = sin/(cos + sin), for
which a latent is x_t = (1 − t)·x0 + t·noise and the network predicts v = noise − x0. From t to t':

    stochastic (SDE)       x ← (1 − t')·x0 + t'·n,  fresh n ~ N(0, 1)
    deterministic (ODE)    x ← x − (t − t')·v,      v = (x − x0) / t

The state is fp64; the network sees its own dtype.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, get_args

import torch
from torch import Tensor

from .errors import NonFiniteError, SettingsError
from .precision import widest_float

INNER_TIMES = (1.5, 1.4, 1.0)
MAX_STEPS = len(INNER_TIMES) + 1
SIGMA_MAX_T2V = 80.0
SIGMA_MAX_I2V = 200.0
BOUNDARY_I2V = 0.9

# The host draws the initial latent of a seed from that seed: the steps must repeat neither that stream nor, as a
# small offset would, the stream of a neighbouring seed.
STEP_STREAM = 0x9E3779B97F4A7C15

NoiseOrder = Literal["comfy", "upstream"]
NOISE_ORDERS: tuple[NoiseOrder, ...] = get_args(NoiseOrder)


def schedule(steps: int, sigma_max: float) -> Tensor:
    """Rectified-flow times, fp64 [steps + 1], falling to 0.

    Raises:
        SettingsError: if steps is not 1…4 or sigma_max is so low that the first step would not be the noisiest.
    """
    if not 1 <= steps <= MAX_STEPS:
        raise SettingsError(
            f"steps: must be 1 to {MAX_STEPS}, got {steps}; the distilled models have no other schedule"
        )
    lowest = math.tan(INNER_TIMES[0])
    if not (math.isfinite(sigma_max) and sigma_max > lowest):
        raise SettingsError(
            f"sigma_max: must be finite and above {lowest:.1f}, got {sigma_max}; "
            f"use {SIGMA_MAX_T2V:g} for text-to-video, {SIGMA_MAX_I2V:g} for image-to-video"
        )
    angles = torch.tensor([math.atan(sigma_max), *INNER_TIMES[: steps - 1], 0.0], dtype=torch.float64)
    return angles.sin() / (angles.cos() + angles.sin())


def round_timestep(timestep: Tensor) -> Tensor:
    """The timestep a TurboDiffusion network was trained to see: 1000·t rounded to bf16, in the dtype that came."""
    return timestep.to(torch.bfloat16).to(timestep.dtype)


def split_at_boundary(times: Tensor, boundary: float) -> int:
    """How many steps the high-noise expert takes: those that start at t ≥ boundary."""
    if not 0.0 < boundary < 1.0:
        raise SettingsError(f"boundary: must be between 0 and 1, got {boundary}; {BOUNDARY_I2V} is the trained value")
    return int((times[:-1] >= boundary).sum())


class StepNoise:
    """Draws the noise of successive steps from one seeded generator.

    "comfy" draws on the CPU, so that a seed gives the same video on any GPU. "upstream" repeats TurboDiffusion's own
    order on the sampling device: the initial latent first, then one draw per step from the same generator.
    """

    def __init__(self, shape: torch.Size, device: torch.device, seed: int, order: NoiseOrder = "comfy") -> None:
        if order not in NOISE_ORDERS:
            raise SettingsError(f"noise: must be one of {', '.join(NOISE_ORDERS)}, got {order!r}")
        self.shape, self.device = shape, device
        on_cpu = order == "comfy"
        self._generator = torch.Generator(device="cpu" if on_cpu else device)
        self._generator.manual_seed(seed ^ STEP_STREAM if on_cpu else seed)
        self._drawer: ThreadPoolExecutor | None = None
        self.initial = None if on_cpu else self()

    def draw_ahead(self) -> None:
        """From now on draw in another thread, one step ahead, so that a GPU does not wait for the CPU's draw."""
        if self._drawer is None and self._generator.device.type != self.device.type:
            self._drawer = ThreadPoolExecutor(1, "turbowan-noise")
            self._stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
            self._next = self._drawer.submit(self._draw)

    def __call__(self) -> Tensor:
        """One standard normal draw of `shape`, fp32 on `device`."""
        if self._drawer is None:
            return self._draw()
        drawn = self._next.result()
        if self._stream is not None:
            drawn.record_stream(torch.cuda.current_stream(self.device))
        self._next = self._drawer.submit(self._draw)
        return drawn

    def _draw(self) -> Tensor:
        drawn = torch.randn(self.shape, generator=self._generator, dtype=torch.float32, device=self._generator.device)
        if self._drawer is None or self._stream is None:
            return drawn.to(self.device)
        with torch.cuda.stream(self._stream):  # the copy must not queue behind the step that it should overlap
            return drawn.to(self.device)


def sample(
    predict_x0: Callable[[Tensor, float], Tensor],
    x: Tensor,
    times: Tensor,
    *,
    stochastic: bool,
    noise: Callable[[], Tensor],
    on_step: Callable[[int, Tensor, Tensor], None] | None = None,
    first_step: int = 0,
) -> Tensor:
    """Walk `times` from the latent `x` at times[0]; returns the latent at times[-1].

    Args:
        predict_x0: (x fp32, t) → predicted clean latent, same shape.
        x: latent at times[0], any float dtype; kept in fp64.
        times: falling rectified-flow times [n + 1].
        stochastic: SDE if true, else ODE.
        noise: a fresh draw; called once per step, the last one included, as upstream does.
        on_step: called as (step index, x0, x before the step).
        first_step: index of the first step where `times` is the later part of a schedule.

    Raises:
        NonFiniteError: if a step's prediction is not finite.
    """
    exact = widest_float(x.device)
    x = x.to(exact)
    levels = [float(t) for t in times]
    for offset, (t, t_next) in enumerate(itertools.pairwise(levels)):
        index = first_step + offset
        x0 = predict_x0(x.to(torch.float32), t)
        if not torch.isfinite(x0).all():
            raise NonFiniteError(
                f"sampling: step {index + 1} (t = {t:.4f}) must give finite values, got NaN or infinity; "
                "try attention 'sla' or precision 'bf16', and check LoRA strengths and the model file"
            )
        if on_step is not None:
            on_step(index, x0, x)
        x0 = x0.to(exact)
        if stochastic:
            x = (1 - t_next) * x0 + t_next * noise().to(exact)
        else:
            x = x - (t - t_next) * (x - x0) / t
    return x
