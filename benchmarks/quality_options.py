"""The ways to make a video whose quality is measured: one axis moves at a time from what a user gets by default."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from turbowan.turbo_core.attention import SPARSE_MODES
from turbowan.turbo_core.expert import NetworkSettings


@dataclass(frozen=True, kw_only=True)
class Option:
    """Settings as `turbowan generate` takes them, none of them left to "auto"; without changes its defaults."""

    attention: str = "sla"
    topk: float = 0.1
    precision: str = "int8"
    steps: int = 4
    sampler: str = "sde"
    image: bool = False
    """Begins with a drawn first frame, and is the image-to-video pair's."""

    @property
    def sparse(self) -> bool:
        return self.attention in SPARSE_MODES

    @property
    def network(self) -> NetworkSettings:
        return NetworkSettings(attention=self.attention, topk=self.topk, precision=self.precision)

    @property
    def name(self) -> str:
        attention = f"{self.attention} {self.topk:g}" if self.sparse else self.attention
        plural = "" if self.steps == 1 else "s"
        beginning = "from an image: " if self.image else ""
        return f"{beginning}{attention}, {self.precision}, {self.steps} step{plural}, {self.sampler}"


DEFAULT = Option()
IMAGE_DEFAULT = Option(image=True, sampler="ode")
DEFAULTS = (DEFAULT, IMAGE_DEFAULT)


def _axis(field: str, *values: str | float, start: Option = DEFAULT) -> tuple[Option, ...]:
    return tuple(dataclasses.replace(start, **{field: value}) for value in values)


AXES: dict[str, tuple[Option, ...]] = {
    "attention": _axis("attention", "dense", "sla", "sagesla"),
    "precision": _axis("precision", "bf16", "exact", "int8", "channelwise", "fp8"),
    "steps": _axis("steps", 1, 2, 3, 4),
    "topk": _axis("topk", 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0),
    "sampler": _axis("sampler", "sde", "ode"),
    "image": _axis("steps", 1, 2, 4, start=IMAGE_DEFAULT),
}


def options(axes: tuple[str, ...] = tuple(AXES)) -> tuple[Option, ...]:
    """Each once, defaults first."""
    chosen = [option for axis in axes for option in AXES[axis]]
    return tuple(dict.fromkeys([*(default for default in DEFAULTS if default in chosen), *chosen]))
