"""Where the demo's transformer starts from.

    matrices     N(0, 1/columns), what a block adds to the tokens smaller; the head zero: v = 0 at first
    modulation   no shift, no scale, gates of 0.5; what time adds to it zero at first

A prompt's padding starts unread. Its text states are zero, so that its key is the key bias alone, brought to full
length by the norm: with key bias -u/20 and query bias u (signs u), its score is q·k / √128 ≈ -8 where a token's is
about ±1, and 500 rows of it weigh less than one token. With zero biases they would be nearly all that is read.
"""

from __future__ import annotations

import torch

from turbowan.turbo_core.config import WanConfig
from turbowan.turbo_core.model import TurboWan

GATE = 0.5
ADDED = 0.5  # of the usual size, for the layers that add to the tokens


def config(*, in_dim: int, text_dim: int) -> WanConfig:
    """The demo's shape: small enough that three models fit a bundle of 20 MB as int8."""
    return WanConfig(dim=256, ffn_dim=768, num_heads=2, num_layers=4, in_dim=in_dim, text_dim=text_dim, has_proj_l=True)


@torch.no_grad()
def initialize(model: TurboWan, seed: int = 0) -> None:
    """Fill every parameter, the same on any device."""
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(2, (model.config.dim,), generator=generator) * 2.0 - 1
    for name, parameter in model.named_parameters():
        layer, _, kind = name.rpartition(".")
        if kind == "modulation":
            value = torch.zeros(parameter.shape)
            value[:, 2::3] = GATE
        elif kind == "weight" and "norm" in layer.rpartition(".")[2]:
            value = torch.ones(parameter.shape)
        elif kind == "bias":
            size = {"q": 1.0, "k": -0.05}.get(layer.rpartition(".")[2], 0.0) if "cross_attn" in layer else 0.0
            value = size * signs[: parameter.shape[0]] if size else torch.zeros(parameter.shape)
        elif layer in ("head.head", "time_projection.1") or layer.endswith("proj_l"):
            value = torch.zeros(parameter.shape)
        else:
            adds = layer.endswith((".o", "ffn.2"))
            fan_in = parameter[0].numel()
            value = torch.randn(parameter.shape, generator=generator) * (ADDED if adds else 1.0) / fan_in**0.5
        parameter.copy_(value)
