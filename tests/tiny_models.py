"""Tiny random files of everything that a video needs, as the pipeline and the commands take them.

Nothing here imports the package under test.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tiny
import tiny_umt5
from safetensors.torch import save_file

TEXT_DIM = 64


@dataclass(frozen=True, kw_only=True)
class TinyModels:
    t2v: Path
    high: Path
    low: Path
    vae: Path
    text_encoder: Path


def write(folder: Path) -> TinyModels:
    """Under the names of the demo bundle; about 12 MB."""
    models = TinyModels(
        t2v=folder / "TurboWanDemo-T2V-quant.pth",
        high=folder / "TurboWanDemo-I2V-high-quant.safetensors",
        low=folder / "TurboWanDemo-I2V-low-quant.safetensors",
        vae=folder / "turbowan_demo_vae.safetensors",
        text_encoder=folder / "turbowan_demo_umt5.safetensors",
    )
    shape = {"text_dim": TEXT_DIM, "dim": 128, "ffn_dim": 256, "quantized": True}
    tiny.save_pth(models.t2v, tiny.tiny_tensors(**shape, seed=1))
    for path, seed in ((models.high, 2), (models.low, 3)):
        save_file(tiny.tiny_tensors(**shape, in_dim=36, seed=seed), path)
    save_file(tiny.tiny_vae_tensors(), models.vae)
    save_file(tiny_umt5.tiny_umt5_tensors(dim=TEXT_DIM), models.text_encoder)
    return models
