"""A stage of training: so many steps, as many of them a call as its minutes allow, resumed from one file.

    rate of step s       peak · min(1, (s + 1) / warm-up, (steps - s) / last),  last = the share of steps that cool down
                         by the clock: what is left of this call's minutes counts as well, as its share of them
    average after it     a ← a + (w - a) · max(1 - average, 9 / (s + 10))

Step s draws all it needs from a generator seeded by (seed, s), so that a stage in pieces sees the batches of an
uninterrupted one. The file (safetensors) holds ``weight.NAME`` and ``average.NAME`` in fp32, ``first.NAME`` and
``second.NAME``, Adam's moments, in bf16: 12 bytes a parameter; or, with ``slim``, ``average.NAME`` alone in bf16: 2
bytes, from which a stage goes on with moments of zero. It is written aside and renamed, so that a kill leaves the last.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

LOOK = 25  # steps between two looks at the clock: each waits for the GPU
TELL_SECONDS = 10
SAVE_SECONDS = 30  # what a kill loses at most

Losses = Mapping[str, Tensor]
"""``loss`` is what is minimised; whatever else stands beside it is only told."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    state: Path
    steps: int
    minutes: float
    rate: float
    warmup: int = 100
    last: float = 0.3
    """Share of the steps at the end in which the rate falls to zero."""
    average: float = 0.999
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.99)
    clip: float = 1.0
    """Largest norm of all gradients together."""
    seed: int = 0
    device: str = "cuda"
    slim: bool = False
    by_clock: bool = False
    """Cool down towards this call's end too, for a stage that is to take all its minutes on a GPU of unknown speed."""


def add_arguments(parser: argparse.ArgumentParser, *, state: str, steps: int, rate: float) -> None:
    """The arguments that every stage takes."""
    parser.add_argument("--state", type=Path, default=Path(state), help="file to go on from and to write")
    parser.add_argument("--steps", type=int, default=steps, help="of the whole stage, over all calls")
    parser.add_argument("--minutes", type=float, default=9.0, help="most minutes of this call")
    parser.add_argument("--rate", type=float, default=rate, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")


class Stage:
    """Trains the parameters of ``model`` that require gradients; ``averaged`` are what a stage is made for."""

    def __init__(self, model: nn.Module, settings: Settings, optimizer: torch.optim.Optimizer | None = None):
        """``optimizer``: in AdamW's place, over the same parameters; its state is not kept."""
        self.model = model
        self.settings = settings
        self.step = 0
        self._weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._average = {name: p.detach().clone() for name, p in self._weights.items()}
        self._began = time.monotonic()
        self._optimizer = optimizer or torch.optim.AdamW(
            self._weights.values(),
            lr=settings.rate,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            fused=settings.device.startswith("cuda"),
        )
        if settings.state.exists():
            self._load()

    def averaged(self) -> dict[str, Tensor]:
        return dict(self._average)

    @torch.no_grad()
    def use_average(self) -> None:
        """Put the averages in the weights' place; for what comes after the training."""
        for name, weight in self._weights.items():
            weight.copy_(self._average[name])

    def run(self, losses_of: Callable[[torch.Generator], Losses]) -> bool:
        """Train until the stage's end or this call's; whether it was the stage's end. ``losses_of`` draws its batch."""
        settings, told, saved = self.settings, 0.0, 0.0
        self._began = began = time.monotonic()
        first = self.step
        sums: dict[str, Tensor] = {}
        seen = 0
        while self.step < settings.steps:
            generator = torch.Generator().manual_seed((settings.seed << 32) + self.step)
            losses = losses_of(generator)
            self._update(losses["loss"])
            for name, value in losses.items():
                sums[name] = sums.get(name, 0) + value.detach()
            seen += 1
            if self.step % LOOK and self.step < settings.steps:
                continue
            figures = {name: float(value) / seen for name, value in sums.items()}  # waits for the GPU
            elapsed = time.monotonic() - began
            over = elapsed > 60 * settings.minutes
            if elapsed - told > TELL_SECONDS or over or self.step == settings.steps:
                self._tell(figures, 1000 * elapsed / (self.step - first))
                sums, seen, told = {}, 0, elapsed
            if over:
                break
            if elapsed - saved > SAVE_SECONDS:
                self.save()
                saved = elapsed
        self.save()
        return self.step >= settings.steps

    def _update(self, loss: Tensor) -> None:
        settings, s = self.settings, self.step
        left = (settings.steps - s) / max(1.0, settings.last * settings.steps)
        if settings.by_clock:
            seconds = 60 * settings.minutes
            left = min(left, max(0.0, self._began + seconds - time.monotonic()) / (settings.last * seconds))
        for group in self._optimizer.param_groups:
            group["lr"] = settings.rate * min(1.0, (s + 1) / settings.warmup, left)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(list(self._weights.values()), settings.clip)
        self._optimizer.step()
        weights = [p.detach() for p in self._weights.values()]
        torch._foreach_lerp_(list(self._average.values()), weights, max(1 - settings.average, 9 / (s + 10)))
        self.step += 1

    def _tell(self, figures: Mapping[str, float], milliseconds: float) -> None:
        told = "  ".join(f"{name} {value:.5g}" for name, value in figures.items())
        print(f"step {self.step}/{self.settings.steps}  {milliseconds:.1f} ms  {told}", file=sys.stderr, flush=True)

    def save(self) -> None:
        path, slim = self.settings.state, self.settings.slim
        tensors = {f"average.{name}": a.bfloat16() if slim else a for name, a in self._average.items()}
        if not slim:
            for name, weight in self._weights.items():
                tensors[f"weight.{name}"] = weight.detach()
                moments = self._optimizer.state.get(weight)  # AdamW's; others keep theirs elsewhere
                if moments:
                    tensors[f"first.{name}"] = moments["exp_avg"].bfloat16()
                    tensors[f"second.{name}"] = moments["exp_avg_sq"].bfloat16()
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f"{path.name}.{os.getpid()}.part")
        tensors = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
        save_file(tensors, aside, metadata={"step": str(self.step)})
        aside.replace(path)

    @torch.no_grad()
    def _load(self) -> None:
        path = self.settings.state
        with safe_open(path, "pt", device=self.settings.device) as file:
            names = set(file.keys())
            missing = [name for name in self._weights if f"average.{name}" not in names]
            if missing:
                raise ValueError(
                    f"stage: {path} must hold an average of every trained parameter, got none of {missing[:3]} "
                    f"({len(missing)} in all); give --state another file to start anew"
                )
            self.step = int(file.metadata()["step"])
            for name, weight in self._weights.items():
                self._average[name].copy_(file.get_tensor(f"average.{name}"))
                kept = f"weight.{name}"
                weight.copy_(file.get_tensor(kept) if kept in names else self._average[name])
                if f"first.{name}" in names:
                    self._optimizer.state[weight] = {
                        "step": torch.tensor(float(self.step), device=weight.device if self._fused else "cpu"),
                        "exp_avg": file.get_tensor(f"first.{name}").to(weight),
                        "exp_avg_sq": file.get_tensor(f"second.{name}").to(weight),
                    }
        print(f"going on from step {self.step} of {path}", file=sys.stderr, flush=True)

    @property
    def _fused(self) -> bool:
        return self._optimizer.defaults["fused"]
