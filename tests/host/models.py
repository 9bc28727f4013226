"""The tiny model files that the host tests load, in a ``models`` folder of ComfyUI's layout."""

from __future__ import annotations

from pathlib import Path

import tiny
import torch
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
T2V_LORAS_MERGED = "no-proj-loras-merged.pth"  # those plus both LoRAs
T2V_OTHER, T2V_OTHER_QUANT = "other-t2v.pth", "other-t2v-quant.pth"  # other weights of the same shapes, to merge
T2V_HUGE = "huge-t2v.safetensors"  # finite weights whose output is not
T2V_DEEP = "deep-quant.pth"  # many blocks: a step takes long
VAE = "tiny_wan_2.1_vae.safetensors"
VAE_ALPHA = "tiny_wan_alpha_vae.safetensors"  # four channels in and out
LORA, LORA_OTHER = "tiny-lora.safetensors", "tiny-lora-other.safetensors"


def write_models(models: Path) -> None:
    """All files of the table above; about 100 MB."""
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
    lora, other = tiny.tiny_lora(quant), tiny.tiny_lora(quant, seed=1)
    tiny.save_pth(dits / T2V_DENSE_QUANT, quant)
    tiny.save_pth(dits / T2V_DEQUANTIZED, _released(tiny.native(quant)))
    merged = tiny.merge_lora(tiny.native(quant), lora)
    tiny.save_pth(dits / T2V_LORA_MERGED, _released(merged))
    tiny.save_pth(dits / T2V_LORAS_MERGED, _released(tiny.merge_lora(merged, other)))
    tiny.save_pth(dits / T2V_OTHER, tiny.tiny_tensors(seed=4))
    tiny.save_pth(dits / T2V_OTHER_QUANT, tiny.tiny_tensors(quantized=True, seed=4))
    save_file(_huge(tiny.native(tiny.tiny_tensors(seed=1))), dits / T2V_HUGE)
    tiny.save_pth(dits / T2V_DEEP, tiny.tiny_tensors(quantized=True, num_layers=24, seed=1))
    save_file(lora, models / "loras" / LORA)
    save_file(other, models / "loras" / LORA_OTHER)
    vae = tiny.tiny_vae_tensors()
    save_file(vae, models / "vae" / VAE)
    save_file(_with_alpha(vae), models / "vae" / VAE_ALPHA)


def _released(native: dict[str, Tensor]) -> dict[str, Tensor]:
    """Native weights in the released layout: the patch embedding as a matrix."""
    return native | {"patch_embedding.weight": native["patch_embedding.weight"].flatten(1)}


def _with_alpha(vae: dict[str, Tensor]) -> dict[str, Tensor]:
    """One more channel in and out, with the weights of the first."""
    edges = {"encoder.conv1.weight": 1, "decoder.head.2.weight": 0, "decoder.head.2.bias": 0}
    return vae | {name: torch.cat([vae[name], vae[name].narrow(dim, 0, 1)], dim) for name, dim in edges.items()}


def _huge(native: dict[str, Tensor]) -> dict[str, Tensor]:
    weight = native["head.head.weight"]
    return native | {"head.head.weight": weight.sign() * torch.finfo(weight.dtype).max}
