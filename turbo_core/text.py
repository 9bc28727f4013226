"""The embedded prompt, as the cross-attention of every block reads it."""

from __future__ import annotations

from functools import cached_property

from torch import Tensor

from ..kernels.text_attention import trailing_repeats
from .layers import Activation


class EmbeddedText(Activation):
    """States [B, S, C]; one object for all blocks of a forward, so that what they all need is made once.

    Args:
        states: [B, S, C].
        tokens: [B, S, …] what the states were made from, token by token; equal tokens give equal states.
    """

    def __init__(self, states: Tensor, tokens: Tensor | None = None) -> None:
        super().__init__(states)
        self._tokens = states if tokens is None else tokens

    @cached_property
    def repeats(self) -> Tensor:
        """How many of the last tokens are one and the same (a prompt's padding), int32 [B], on the states' device."""
        return trailing_repeats(self._tokens)

    def forget(self) -> None:
        """Drop what was made of the states: somebody may have changed them, and the tokens say nothing of them now."""
        self._quantized.clear()
        self._rows.clear()
        self._tokens = self.like
        self.__dict__.pop("repeats", None)
