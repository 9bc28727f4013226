"""The tiny model files that the host tests load, in a ``models`` folder of ComfyUI's layout."""

from __future__ import annotations

from pathlib import Path

import tiny
from safetensors.torch import save_file
from torch import Tensor

T2V, T2V_QUANT = "TurboWan2.1-T2V-tiny.pth", "TurboWan2.1-T2V-tiny-quant.pth"
I2V_HIGH, I2V_LOW = "TurboWan2.2-I2V-tiny-high.pth", "TurboWan2.2-I2V-tiny-low.pth"
I2V_HIGH_QUANT, I2V_LOW_QUANT = "TurboWan2.2-I2V-tiny-high-quant.pth", "TurboWan2.2-I2V-tiny-low-quant.pth"
T2V_TRAINING = "training-t2v.pth"
T2V_NATIVE, I2V_NATIVE = "native-t2v.safetensors", "native-i2v.safetensors"
T2V_DENSE_QUANT = "no-proj-quant.pth"  # quantized, not SLA-trained
T2V_DEQUANTIZED = "no-proj-dequantized.pth"  # the same weights, dequantized
T2V_LORA_MERGED = "no-proj-lora-merged.pth"  # those plus the LoRA
T2V_DEEP = "deep-quant.pth"  # many blocks: a step takes long
VAE = "tiny_wan_2.1_vae.safetensors"
LORA = "tiny-lora.safetensors"


def write_models(models: Path) -> None:
    """All files of the table above; about 80 MB."""
    dits = models / "diffusion_models"
    for folder in (dits, models / "vae", models / "loras"):
        folder.mkdir(parents=True, exist_ok=True)
    for quantized, t2v, high, low in (
        (False, T2V, I2V_HIGH, I2V_LOW),
        (True, T2V_QUANT, I2V_HIGH_QUANT, I2V_LOW_QUANT),
    ):
        tiny.save_pth(dits / t2v, tiny.tiny_tensors(quantized=quantized, seed=1))
        tiny.save_pth(dits / high, tiny.tiny_tensors(in_dim=36, quantized=quantized, seed=2))
        tiny.save_pth(dits / low, tiny.tiny_tensors(in_dim=36, quantized=quantized, seed=3))
    tiny.save_pth(dits / T2V_TRAINING, tiny.training(tiny.tiny_tensors(seed=1), wrapped=True))
    save_file(tiny.native(tiny.tiny_tensors(seed=1)), dits / T2V_NATIVE)
    save_file(tiny.native(tiny.tiny_tensors(in_dim=36, seed=2)), dits / I2V_NATIVE)
    quant = tiny.tiny_tensors(quantized=True, proj_l=False, seed=1)
    lora = tiny.tiny_lora(quant)
    tiny.save_pth(dits / T2V_DENSE_QUANT, quant)
    tiny.save_pth(dits / T2V_DEQUANTIZED, _released(tiny.native(quant)))
    tiny.save_pth(dits / T2V_LORA_MERGED, _released(tiny.merge_lora(tiny.native(quant), lora)))
    tiny.save_pth(dits / T2V_DEEP, tiny.tiny_tensors(quantized=True, num_layers=24, seed=1))
    save_file(lora, models / "loras" / LORA)
    save_file(tiny.tiny_vae_tensors(), models / "vae" / VAE)


def _released(native: dict[str, Tensor]) -> dict[str, Tensor]:
    """Native weights in the released layout: the patch embedding as a matrix."""
    return native | {"patch_embedding.weight": native["patch_embedding.weight"].flatten(1)}
