"""How ComfyUI's streaming last readied a model, for whoever asks whether it must do so again; see `_patcher`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """For which patches and device, and the originals of the weights that were copied there.

    Whoever unloads the model takes them out of `originals`: as many as there were mean that everything is in place.
    `held` are the bytes of streamed weights that the device held then; they leave without a word.
    """

    patches: object
    device: torch.device | None
    originals: dict[str, Any]
    count: int
    held: int

    def holds(self, patches: object, device: torch.device | None, originals: dict[str, Any]) -> bool:
        """Whether nothing has changed for a patcher with these. Without a copied weight no unloading would show."""
        return (
            self.patches == patches
            and self.device == device
            and self.originals is originals
            and 0 < self.count == len(originals)
        )
