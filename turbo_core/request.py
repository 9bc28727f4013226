"""What a video is asked to be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from . import rcm
from .config import Family
from .errors import SettingsError
from .rcm import NOISE_ORDERS, NoiseOrder
from .video_size import Size, check_length, check_sides

SAMPLERS = ("sde", "ode")
SEEDS = 2**64


@dataclass(frozen=True, kw_only=True)
class Request:
    """One video; None stands for what the model was trained with."""

    prompt: str
    size: Size
    frames: int = 81
    seed: int = 0
    steps: int = rcm.MAX_STEPS
    image: Path | None = None
    sigma_max: float | None = None
    boundary: float = rcm.BOUNDARY_I2V
    sampler: str | None = None
    noise: NoiseOrder = "comfy"

    @property
    def family(self) -> Family:
        """An image-to-video model makes the videos that begin with an image, and those alone."""
        return "t2v" if self.image is None else "i2v"

    @property
    def first_sigma(self) -> float:
        """The noise level of the first step."""
        usual = rcm.SIGMA_MAX_T2V if self.family == "t2v" else rcm.SIGMA_MAX_I2V
        return usual if self.sigma_max is None else self.sigma_max

    @property
    def chosen_sampler(self) -> str:
        return self.sampler or ("sde" if self.family == "t2v" else "ode")

    def check(self, where: str) -> None:
        """Raise for what no model can do."""
        check_sides(self.size, where)
        check_length(self.frames, where)
        rcm.split_at_boundary(rcm.schedule(self.steps, self.first_sigma), self.boundary)
        if self.chosen_sampler not in SAMPLERS:
            raise SettingsError(f"sampler: must be one of {', '.join(SAMPLERS)}, got {self.sampler!r}; leave it out")
        if self.noise not in NOISE_ORDERS:
            raise SettingsError(f"noise: must be one of {', '.join(NOISE_ORDERS)}, got {self.noise!r}; leave it out")
        if not 0 <= self.seed < SEEDS:
            raise SettingsError(f"seed: must be 0 to 2⁶⁴ − 1, got {self.seed}; choose another")
