"""What follows a convolution of torch's: its bias and the residual, added in one pass.

    out += bias[channel] + residual

torch adds a 3-D convolution's bias in a pass of its own that does not vectorize. Here the sum is fp32, rounded once,
in place: 4 bytes an element, 6 with a residual. Tensors are [B, C, T, H, W], channels-last for the kernel.
"""

from __future__ import annotations

from torch import Tensor

from .dispatch import Kernel

BIAS = Kernel(name="VAE bias and residual", last_dim_multiple=8, contiguous=True)


def add_bias_ref(out: Tensor, bias: Tensor, residual: Tensor | None) -> None:
    """Two roundings where there is a residual, as torch's own operations have them."""
    out.add_(bias.to(out.dtype).view(1, -1, 1, 1, 1))
    if residual is not None:
        out.add_(residual)


def takes(out: Tensor) -> bool:
    """Whether the kernel runs on ``out``."""
    return BIAS.accepts(out.movedim(1, -1))


def add_bias(out: Tensor, bias: Tensor, residual: Tensor | None) -> None:
    """`add_bias_ref`, by the kernel where it `takes` the tensors."""
    if takes(out) and (residual is None or takes(residual)):
        from .vae_bias_triton import add_bias_triton

        rows = None if residual is None else residual.movedim(1, -1)
        add_bias_triton(out.movedim(1, -1), bias, rows)
    else:
        add_bias_ref(out, bias, residual)
