"""Ways from noise to a clip, for many clips at once: the teacher's ODE in many steps, and few steps of rCM.

    ODE of the teacher        x ← x - (t - t')·v,   v = v_nothing + guidance·(v_text - v_nothing)

from any of the schedule's times through all later ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from turbowan.demo.differentiable import Prompts, Velocity
from turbowan.turbo_core import rcm

Field = Callable[[Tensor, float], Tensor]
"""(x [B, 16, T, H, W] fp32, t) → velocity."""

STEPS_BETWEEN = (3, 3, 4, 6)  # of the ODE, from each of the schedule's times to the next, the last one to 0


def field(
    velocity: Velocity,
    states: Tensor,
    *,
    condition: Tensor | None = None,
    nothing: Tensor | None = None,
    guidance: float = 1.0,
) -> Field:
    """A model's velocity for prompts; without gradients.

    Args:
        condition: what an I2V model reads beside the noise, [B, 20, T, H, W].
        nothing: states [rows, D] of the empty prompt, for a guidance other than 1.
    """
    if guidance != 1.0:
        if nothing is None:
            raise ValueError("field: guidance needs the states of the empty prompt, got none; give nothing=")
        states = torch.cat((states, nothing.expand_as(states)))
        condition = None if condition is None else torch.cat((condition, condition))

    @torch.no_grad()
    def evaluate(x: Tensor, t: float) -> Tensor:
        if guidance != 1.0:
            x = torch.cat((x, x))
        level = torch.full((len(x),), t, device=x.device)
        read = x.to(velocity.dtype)
        read = read if condition is None else torch.cat((read, condition.to(velocity.dtype)), dim=1)
        v = velocity(read, level, Prompts(states))
        if guidance == 1.0:
            return v
        of_text, of_nothing = v.chunk(2)
        return torch.lerp(of_nothing, of_text, guidance)

    return evaluate


def by_expert(fields: Sequence[Field]) -> Field:
    """Of a pair's fields, the high-noise expert's first, each on its own side of the boundary; or of one model's."""
    return lambda x, t: fields[0 if t >= rcm.BOUNDARY_I2V else -1](x, t)


def ode_times(sigma_max: float, first: int = 0) -> list[float]:
    """The ODE's times from the schedule's time number `first` to 0, the schedule's own among them."""
    nodes = rcm.schedule(rcm.MAX_STEPS, sigma_max).tolist()[first:]
    times = [nodes[0]]
    for (start, end), steps in zip(itertools.pairwise(nodes), STEPS_BETWEEN[first:], strict=True):
        times += [start + (end - start) * (i + 1) / steps for i in range(steps)]
    return times


def ode(field: Field, x: Tensor, times: Sequence[float]) -> list[Tensor]:
    """The states at all times, the first one included."""
    states = [x]
    for t, t_next in itertools.pairwise(times):
        states.append(states[-1] - (t - t_next) * field(states[-1], t))
    return states


def few_steps(
    field: Field, noise: Tensor, steps: int, sigma_max: float, *, stochastic: bool, generator: torch.Generator
) -> Tensor:
    """What `rcm.sample` makes of noise; `generator` is on the noise's device."""
    times = rcm.schedule(steps, sigma_max)

    def draw() -> Tensor:
        return torch.randn(noise.shape, generator=generator, device=noise.device)

    def predict_x0(x: Tensor, t: float) -> Tensor:
        return x - t * field(x, t)

    x = noise * float(times[0])
    return rcm.sample(predict_x0, x, times, stochastic=stochastic, noise=draw).float()
