"""Random checkpoints of released size, made directly on a device: tensors in native names, as `checkpoint.read` gives.

Weights are scaled by 1/√fan-in and norms sit near 1, so that activations stay of order 1 through every block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from turbowan.kernels.block_int8 import quantize_weight
from turbowan.turbo_core.config import WanConfig
from turbowan.turbo_core.model import TurboWan

MODELS = {
    "1.3b": WanConfig(dim=1536, ffn_dim=8960, num_heads=12, num_layers=30, has_proj_l=True),
    "14b": WanConfig(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40, has_proj_l=True),
    "a14b": WanConfig(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40, in_dim=36, has_proj_l=True),
}


def tensors(
    config: WanConfig, device: torch.device, *, quantized: bool, dtype: torch.dtype = torch.bfloat16, seed: int = 0
) -> dict[str, Tensor]:
    """Every tensor of a model in native names; block Linears as int8_weight + scale where `quantized`."""
    generator = torch.Generator(device=device).manual_seed(seed)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in TurboWan(config).state_dict().items()}
    out: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        tensor = torch.randn(shape, generator=generator, device=device, dtype=torch.float32)
        if name.endswith("norm3.weight") or ".norm_" in name:
            tensor = 1 + 0.1 * tensor
        elif name.endswith("bias") or "modulation" in name:
            tensor = 0.1 * tensor
        else:
            tensor = tensor / tensor[0].numel() ** 0.5
        is_block_linear = name.startswith("blocks.") and name.endswith(".weight") and tensor.ndim == 2
        if quantized and is_block_linear and "proj_l" not in name:
            weight = quantize_weight(tensor)
            out[name.removesuffix("weight") + "int8_weight"], out[name.removesuffix("weight") + "scale"] = (
                weight.codes,
                weight.scale,
            )
        else:
            out[name] = tensor.to(dtype)
    return out


def model(config: WanConfig, device: torch.device, *, quantized: bool, seed: int = 0) -> TurboWan:
    """A `TurboWan` with random weights resident on `device`."""
    net = TurboWan(config, device="meta")
    net.load(tensors(config, device, quantized=quantized, seed=seed))
    return net
