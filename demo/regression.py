"""The loss that every stage of the transformer minimises, recorded once with its gradients where there is a GPU.

    loss = mean |v(x, t, text) - target|²

The network is small: launched one by one, its kernels would wait for the CPU. A recording is replayed on new inputs of
the same shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from turbowan.demo.differentiable import Prompts, Velocity

WARM_UP = 3  # runs before a recording: they compile, and choose cuBLAS' algorithms

Regression = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(x [B, in_dim, T, H, W], t [B], text states [B, rows, D], target [B, 16, T, H, W]) → the loss, fp32."""


def regression(velocity: Velocity, x: Tensor, t: Tensor, states: Tensor, target: Tensor) -> Tensor:
    return (velocity(x, t, Prompts(states)) - target).square().mean()


def recorded(velocity: Velocity, inputs: tuple[Tensor, Tensor, Tensor, Tensor]) -> Regression:
    """The loss for inputs of these shapes and types; a recording if they are on a GPU."""
    if inputs[0].is_cuda:
        return Recording(velocity, inputs)
    return lambda *inputs: regression(velocity, *inputs)


class Recording:
    """The loss and its gradients as one CUDA graph."""

    def __init__(self, velocity: Velocity, inputs: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
        self.parameters = [p for p in velocity.model.parameters() if p.requires_grad]
        self._inputs = [tensor.detach().clone() for tensor in inputs]

        def run() -> tuple[Tensor, list[Tensor]]:
            loss = regression(velocity, *self._inputs)
            return loss.detach(), list(torch.autograd.grad(loss, self.parameters))

        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self.loss, self.gradients = run()

    def __call__(self, *inputs: Tensor) -> Tensor:
        """A loss whose backward pass hands out the gradients that the replay computed."""
        torch._foreach_copy_(self._inputs, list(inputs))
        self._graph.replay()
        return _Replayed.apply(self, *self.parameters)


class _Replayed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, recording: Recording, *parameters: Tensor) -> Tensor:
        ctx.recording = recording
        return recording.loss.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, *torch._foreach_mul(ctx.recording.gradients, gradient)
