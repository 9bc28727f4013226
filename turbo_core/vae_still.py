"""A clip whose last given frame stands still to its end: which frames a layer must compute, and which repeat.

A causal convolution with a kernel of 3 frames and a time stride r gives frame j from its input's frames r·j - 2 … r·j.
An input that stands still from frame s on therefore gives an output that stands still from

    s' = ⌈(s + 2) / r⌉

on, zeros before the clip included. So it is counted, and frames are never compared. An image before 80 grey frames
reaches 10 frames further at full resolution: 12 frames of 81 are computed there.
"""

from __future__ import annotations

from dataclasses import dataclass

from .vae_layers import CausalConv3d, Layer, Upsample


@dataclass(frozen=True, kw_only=True)
class StillClip:
    """``frames`` frames, of which the first ``distinct`` are computed; the last of these stands for all after it."""

    frames: int
    distinct: int

    def behind(self, layer: Layer) -> StillClip:
        """What leaves ``layer``."""
        frames, still_from = self.frames, self.distinct - 1
        for conv in _convolutions(layer):
            stride = conv.stride[0]
            frames = 1 + (frames - 1) // stride
            still_from = -(-(still_from + conv.history + stride - 1) // stride)
        return StillClip(frames=frames, distinct=min(frames, still_from + 1))

    def wanted(self, layer: Layer) -> int:
        """How many frames ``layer`` must take to give the distinct ones of what leaves it."""
        out = self.behind(layer).distinct
        for conv in reversed(_convolutions(layer)):
            out = 1 + conv.stride[0] * (out - 1)
        return out


def _convolutions(layer: Layer) -> list[CausalConv3d]:
    """Those with memory, in the order in which frames pass them; they alone look at more than one frame."""
    assert not isinstance(layer, Upsample), "frames that multiply are not counted here"
    return [module for module in layer.modules() if isinstance(module, CausalConv3d)]
