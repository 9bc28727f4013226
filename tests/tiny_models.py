"""Tiny random files of everything that a video needs, as the pipeline and the commands take them.

Nothing here imports the package under test.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tiny
import tiny_umt5
from safetensors.torch import save_file

from turbowan.turbo_core import demo_bundle

TEXT_DIM = 64


@dataclass(frozen=True, kw_only=True)
class TinyModels:
    t2v: Path
    high: Path
    low: Path
    vae: Path
    text_encoder: Path


def write(folder: Path) -> TinyModels:
    """Where the demo bundle has them; about 12 MB."""
    models = TinyModels(
        t2v=folder / demo_bundle.T2V,
        high=folder / demo_bundle.I2V_HIGH,
        low=folder / demo_bundle.I2V_LOW,
        vae=folder / demo_bundle.VAE,
        text_encoder=folder / demo_bundle.TEXT_ENCODER,
    )
    for path in (models.t2v, models.vae, models.text_encoder):
        path.parent.mkdir(parents=True)
    shape = {"text_dim": TEXT_DIM, "dim": 128, "ffn_dim": 256, "quantized": True}
    tiny.save_pth(models.t2v, tiny.tiny_tensors(**shape, seed=1))
    for path, seed in ((models.high, 2), (models.low, 3)):
        save_file(tiny.tiny_tensors(**shape, in_dim=36, seed=seed), path)
    save_file(tiny.tiny_vae_tensors(), models.vae)
    save_file(tiny_umt5.tiny_umt5_tensors(dim=TEXT_DIM), models.text_encoder)
    return models
