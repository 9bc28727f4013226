"""What a host may do inside a forward pass. Every default is the plain behaviour."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..kernels.norm import Rotation
from .attention import dense_attention
from .text import EmbeddedText


@dataclass(frozen=True)
class BlockInputs:
    """What a transformer block reads.

    Attributes:
        x: [B, L, C] tokens.
        text: the embedded prompt, S tokens.
        modulation: fp32 [B, 6, C] from the timestep, before the block's own modulation is added.
        rotation: RoPE tables of the L tokens.
    """

    x: Tensor
    text: EmbeddedText
    modulation: Tensor
    rotation: Rotation


class Hooks:
    """Called at fixed points of `TurboWan.forward`; subclass and override what is needed."""

    def start(self, grid: tuple[int, int, int], block_count: int) -> None:
        """Before the first block; `grid` is (frames, rows, columns) in tokens."""

    def interrupted(self) -> None:
        """Between kernels of a block; raise to cancel."""

    def block(self, index: int, run: Callable[[BlockInputs], Tensor], inputs: BlockInputs) -> Tensor:
        """Run, replace or skip block `index`; returns tokens [B, L, C]."""
        return run(inputs)

    def after_block(self, index: int, x: Tensor, latent: Tensor, time: Tensor) -> Tensor:
        """Change the tokens after block `index`; `latent` is the forward's input, `time` fp32 [B, C]."""
        return x

    def dense_attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Softmax attention: q [B, L, H, D], k and v [B, S, H, D] → [B, L, H, D]."""
        return dense_attention(q, k, v)

    def replaces_dense_attention(self) -> bool:
        """Whether `dense_attention` must be called; where not, a kernel may compute the same together with more."""
        return type(self).dense_attention is not Hooks.dense_attention

    def self_attention_patch(self) -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
        """What changes self-attention's output before its output projection, or None, so that it may stay int8 codes.

        The patch takes the output [B, L, C] and q, k [B, L, H, D], and returns an output.
        """
        return None

    def cross_attention(self, x: Tensor) -> Tensor:
        """Change the tokens [B, L, C] after the cross-attention residual."""
        return x


PLAIN_HOOKS = Hooks()
