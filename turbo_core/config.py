"""The shape of a Wan diffusion transformer, as read from a checkpoint's tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Family = Literal["t2v", "i2v"]

LATENT_CHANNELS = 16
T2V_CHANNELS = 16  # noise
I2V_CHANNELS = 36  # noise 16 + mask 4 + image latent 16
HEAD_DIM = 128
PATCH_SIZE = (1, 2, 2)

# (family, dim, num_layers) -> the name people know the model by
MODEL_NAMES: dict[tuple[Family, int, int], str] = {
    ("t2v", 1536, 30): "Wan2.1 T2V 1.3B",
    ("t2v", 5120, 40): "Wan2.1 T2V 14B",
    ("i2v", 5120, 40): "Wan2.2 I2V A14B",
}


@dataclass(frozen=True, kw_only=True)
class WanConfig:
    """Everything that decides the network; two files with equal configs fit the same modules."""

    dim: int
    ffn_dim: int
    num_heads: int
    num_layers: int
    in_dim: int = T2V_CHANNELS
    out_dim: int = LATENT_CHANNELS
    freq_dim: int = 256
    text_dim: int = 4096
    patch_size: tuple[int, int, int] = PATCH_SIZE
    eps: float = 1e-6
    has_proj_l: bool = False
    """SLA-trained: every self-attention carries the linear branch's projection."""
    quantized: bool = False
    """The blocks' Linears come as ``int8_weight`` + ``scale``."""

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    @property
    def patch_volume(self) -> int:
        """Latent positions that one token covers."""
        frames, height, width = self.patch_size
        return frames * height * width

    @property
    def family(self) -> Family:
        return "i2v" if self.in_dim == I2V_CHANNELS else "t2v"

    @property
    def name(self) -> str:
        known = MODEL_NAMES.get((self.family, self.dim, self.num_layers))
        return known or f"Wan {self.family.upper()} (dim {self.dim}, {self.num_layers} blocks)"
