"""Muon for a network's large matrices, AdamW for everything else, as one optimizer.

Muon keeps a momentum of the gradient and steps along the nearest matrix whose singular values are all one:

    M ← μ·M + G        W ← W - rate · √max(1, rows / columns) · orthogonal(G + μ·M)

`orthogonal` runs five Newton-Schulz steps X ← a·X + (b·A + c·A²)·X, A = X·Xᵀ, in bf16, on all matrices of a shape at
once: their singular values come out between about 0.7 and 1.2, which is as good as one here. A convolution's weight is
a matrix with a row for each output channel. The schedule's rate is AdamW's; Muon's is `MUON_RATE` times that.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

MUON_RATE = 10.0
MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # steepest at zero of the quintics that settle near one


def is_matrix_of_a_block(name: str, parameter: nn.Parameter) -> bool:
    """A transformer's inner linears."""
    return name.startswith("blocks.") and parameter.ndim == 2


class Muon(torch.optim.Optimizer):
    """Takes (name, parameter) pairs; those that ``takes`` says go to Muon."""

    def __init__(
        self,
        named: Iterable[tuple[str, nn.Parameter]],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.99),
        takes: Callable[[str, nn.Parameter], bool] = is_matrix_of_a_block,
    ) -> None:
        matrices, others = [], []
        for name, parameter in named:
            (matrices if takes(name, parameter) else others).append(parameter)
        super().__init__([{"params": matrices}, {"params": others}], {"lr": lr})
        fused = others[0].is_cuda
        self._adam = torch.optim.AdamW(others, lr=lr, betas=betas, weight_decay=0.0, fused=fused)
        self._shapes: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
        for parameter in matrices:
            self._shapes[parameter.shape].append(parameter)
        self._momentum: dict[torch.Size, Tensor] = {}

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> None:
        rate = self.param_groups[0]["lr"]
        self._adam.param_groups[0]["lr"] = rate
        self._adam.step()
        for shape, parameters in self._shapes.items():
            if parameters[0].grad is None:  # whole shapes may be left out of a step
                continue
            gradient = torch.stack([parameter.grad for parameter in parameters]).flatten(2)
            if shape not in self._momentum:
                self._momentum[shape] = torch.zeros_like(gradient)
            momentum = self._momentum[shape].mul_(MOMENTUM).add_(gradient)
            step = orthogonal(gradient.add_(momentum, alpha=MOMENTUM)).to(gradient.dtype)
            rows, columns = step.shape[1:]
            size = MUON_RATE * rate * max(1.0, rows / columns) ** 0.5
            torch._foreach_add_(parameters, list(step.view(-1, *shape).unbind()), alpha=-size)


def orthogonal(matrices: Tensor) -> Tensor:
    """[N, rows, columns] → the same directions with singular values near one.

    In bf16 on a GPU; a CPU with AVX2 alone multiplies batches of it 10 to 50 times slower than fp32.
    """
    a, b, c = COEFFICIENTS
    x = matrices.to(torch.bfloat16 if matrices.is_cuda else torch.float32)
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if tall else x
