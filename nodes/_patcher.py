"""The host's patcher, careful with int8 weights in two places.

Inference mode: a quantized weight made inside it cannot become a Parameter outside, nor the reverse. ComfyUI runs
prompts inside and unloads models on request outside, so weights are made, moved and restored inside throughout.

Saving: ComfyUI up to 0.33 saves a weight that it has not patched yet through a floating-point Parameter made of each
stored tensor. Int8 codes cannot be one, and on 0.18 they would be written with the dense weight's shape and dtype.
"""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.model_patcher
import torch
from comfy_kitchen.tensor import QuantizedTensor
from torch import Tensor

from ._model import TurboWanBase

NETWORK = "diffusion_model"


class _Careful:
    """Mixed in before one of the host's patchers, whose arguments differ by version."""

    @torch.inference_mode()
    def load(self, *args: Any, **options: Any) -> Any:
        return super().load(*args, **options)

    @torch.inference_mode()
    def unpatch_model(self, *args: Any, **options: Any) -> Any:
        return super().unpatch_model(*args, **options)

    @torch.inference_mode()
    def partially_unload(self, *args: Any, **options: Any) -> Any:
        return super().partially_unload(*args, **options)

    @torch.inference_mode()
    def state_dict_for_saving(
        self,
        clip_state_dict: dict[str, Tensor] | None = None,
        vae_state_dict: dict[str, Tensor] | None = None,
        clip_vision_state_dict: dict[str, Tensor] | None = None,
    ) -> dict[str, Any]:
        return self.model.state_dict_for_saving(
            _patched_state_dict(self),
            clip_state_dict=clip_state_dict,
            vae_state_dict=vae_state_dict,
            clip_vision_state_dict=clip_vision_state_dict,
        )


class _ClassicPatcher(_Careful, comfy.model_patcher.ModelPatcher):
    pass


_StreamingBase = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)


class _StreamingPatcher(_Careful, _StreamingBase):
    pass


def make_patcher(
    model: TurboWanBase, device: torch.device, offload_device: torch.device, streaming: bool
) -> comfy.model_patcher.ModelPatcher:
    """A patcher that streams weights where the host can, else the classic one."""
    streams = streaming and not comfy.model_management.is_device_cpu(device)
    patcher_class = _StreamingPatcher if streams else _ClassicPatcher
    return patcher_class(model, load_device=device, offload_device=offload_device)


def _patched_state_dict(patcher: comfy.model_patcher.ModelPatcher) -> dict[str, Tensor]:
    """The network's tensors with every LoRA applied, also to weights that are patched only as they are used."""
    network = patcher.model.diffusion_model
    tensors = network.state_dict()
    pending = [key for key in patcher.patches if key.startswith(f"{NETWORK}.") and key not in patcher.backup]
    for key in pending:
        name = key.removeprefix(f"{NETWORK}.")
        weight = patcher.patch_weight_to_device(key, device_to=patcher.load_device, return_weight=True)
        parts = weight.state_dict(name) if isinstance(weight, QuantizedTensor) else {name: weight}
        tensors.update({part: tensor.to("cpu") for part, tensor in parts.items()})
    return tensors
