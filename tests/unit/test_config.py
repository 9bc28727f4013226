"""The configuration's derived values."""

from __future__ import annotations

import dataclasses

import pytest

from turbowan.turbo_core.config import WanConfig


@pytest.mark.parametrize(
    ("dim", "ffn_dim", "layers", "in_dim", "name", "family"),
    [
        (1536, 8960, 30, 16, "Wan2.1 T2V 1.3B", "t2v"),
        (5120, 13824, 40, 16, "Wan2.1 T2V 14B", "t2v"),
        (5120, 13824, 40, 36, "Wan2.2 I2V A14B", "i2v"),
        (256, 384, 2, 36, "Wan I2V (dim 256, 2 blocks)", "i2v"),
    ],
)
def test_name_and_family(dim: int, ffn_dim: int, layers: int, in_dim: int, name: str, family: str) -> None:
    config = WanConfig(dim=dim, ffn_dim=ffn_dim, num_heads=dim // 128, num_layers=layers, in_dim=in_dim)
    assert config.name == name
    assert config.family == family
    assert config.head_dim == 128
    assert config.patch_volume == 4


def test_config_is_a_value() -> None:
    config = WanConfig(dim=256, ffn_dim=384, num_heads=2, num_layers=2)
    assert config == dataclasses.replace(config)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.dim = 1  # type: ignore[misc]
