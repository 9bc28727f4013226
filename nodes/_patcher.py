"""The host's patcher, careful in five places.

Inference mode: a quantized weight made inside it cannot become a Parameter outside, nor the reverse. ComfyUI runs
prompts inside and unloads models on request outside, so weights are made, moved and restored inside throughout.

Saving: ComfyUI up to 0.33 saves a weight that it has not patched yet through a floating-point Parameter made of each
stored tensor. Int8 codes cannot be one, and on 0.18 they would be written with the dense weight's shape and dtype.
A file holds what was sampled with: the host notes patches for every name of a state dict, as merges make them, but
applies them to `weight` and `bias` of leaf modules alone: not to a block's modulation, nor to an int8 scale.

Cloning: a streaming patcher cloned without streaming becomes the host's own class, which is none of ours.

Preparing: before every prompt the host's streaming lists a model's modules, readies each and copies the small weights
to the GPU anew, though all of it is as the last prompt left it. It does so once here, and again after a change.

Reading: both patchers copy weights one by one, slower than the disk or the page cache gives them. Here the large ones
are read from their file ahead of them, see `_file_weights`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import comfy.model_management
import comfy.model_patcher
import torch
from comfy_kitchen.tensor import QuantizedTensor
from torch import Tensor, nn

from ._model import TurboWanBase
from ._operations import is_interrupted
from ._prepared import Prepared

log = logging.getLogger("turbowan")

NETWORK = "diffusion_model"


class _Careful:
    """Mixed in before one of the host's patchers, whose arguments differ by version."""

    def clone(self, *args: Any, **options: Any) -> comfy.model_patcher.ModelPatcher:
        copy = super().clone(*args, **options)
        if type(copy) is comfy.model_patcher.ModelPatcher:
            copy.__class__ = _ClassicPatcher
        return copy

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
    """Weights that all fit go from their file to the GPU before the host would copy them, and back by themselves."""

    @torch.inference_mode()
    def load(self, device_to: torch.device | None = None, *args: Any, full_load: bool = False, **options: Any) -> Any:
        if full_load and comfy.model_management.is_device_cuda(device_to):
            self.model.file_weights.place(device_to, leave=self.patches.keys() | self.pinned)
        return super().load(device_to, *args, full_load=full_load, **options)

    @torch.inference_mode()
    def unpatch_model(self, device_to: torch.device | None = None, unpatch_weights: bool = True) -> Any:
        if unpatch_weights and device_to is not None and comfy.model_management.is_device_cpu(device_to):
            self.model.file_weights.withdraw()
        return super().unpatch_model(device_to, unpatch_weights)


_StreamingBase = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
HOST_STREAMS = _StreamingBase is not comfy.model_patcher.ModelPatcher  # set by the host as it starts, before any prompt


class _StreamingPatcher(_Careful, _StreamingBase):
    """The host's `load` runs for every prompt; where nothing has changed, it finds nothing to restore and to ready.

    What the GPU has room for is read right after it, and again where it had to leave. If the user cancels meanwhile,
    the first layer that asks for its weights raises: the host forgets a model whose load does.
    ComfyUI before 0.23 has no `restore_loaded_backups`, moves some weights unasked, and readies the model every time;
    it reads weights by itself.
    """

    _in_place = False
    _readies_once = hasattr(_StreamingBase, "restore_loaded_backups")

    @torch.inference_mode()
    def load(self, device_to: torch.device | None = None, *args: Any, dirty: bool = False, **options: Any) -> Any:
        model = self.model
        prepared, model.prepared = model.prepared, None  # a load that fails leaves nothing to rely on
        unchanged = prepared is not None and prepared.holds(self.patches_uuid, device_to, self.backup)
        self._in_place = in_place = unchanged and not dirty and self._plain()
        if in_place:
            log.info("%s is ready as it was; ComfyUI's next line counts only what it changed", type(model).__name__)
        before = model.model_loaded_weight_memory
        try:
            super().load(device_to, *args, dirty=dirty, **options)
        finally:
            self._in_place = False
            if in_place:
                model.model_loaded_weight_memory = before
        if not self._readies_once:
            return
        held = self._fill(device_to, prepared.held if in_place else None)
        if is_interrupted():  # so that the next load reads what is missing
            return
        if in_place:
            model.prepared = replace(prepared, held=held)
        elif self._plain():
            model.prepared = Prepared(
                patches=self.patches_uuid, device=device_to, originals=self.backup, count=len(self.backup), held=held
            )

    def _fill(self, device: torch.device, held: int | None) -> int:
        """Read the weights that the GPU has room for, unless it holds as many bytes as before; the bytes it holds."""
        pages = self._vbar_get()
        if held is None or pages.loaded_size() < held:
            room = self.get_free_memory(device) - comfy.model_management.minimum_inference_memory()
            self.model.file_weights.fill(device, leave=self.patches.keys(), room=int(room))
        return pages.loaded_size()

    @torch.inference_mode()
    def unpatch_model(self, device_to: torch.device | None = None, unpatch_weights: bool = True) -> Any:
        result = super().unpatch_model(device_to, unpatch_weights)
        if unpatch_weights:
            self.model.file_weights.forget()
        return result

    def restore_loaded_backups(self) -> int:
        return 0 if self._in_place else super().restore_loaded_backups()

    def _load_list(self, *args: Any, **options: Any) -> list[Any]:
        return [] if self._in_place else super()._load_list(*args, **options)

    def _plain(self) -> bool:
        """Whether the network's modules are our own: neither replaced by another node's patch nor injected into."""
        return not self.injections and not any(name.startswith(NETWORK) for name in self.object_patches)


def make_patcher(
    model: TurboWanBase, device: torch.device, offload_device: torch.device, streaming: bool
) -> comfy.model_patcher.ModelPatcher:
    """A patcher that streams weights where the host can, else the classic one."""
    streams = HOST_STREAMS and streaming and not comfy.model_management.is_device_cpu(device)
    patcher_class = _StreamingPatcher if streams else _ClassicPatcher
    return patcher_class(model, load_device=device, offload_device=offload_device)


def _patched_state_dict(patcher: comfy.model_patcher.ModelPatcher) -> dict[str, Tensor]:
    """The network's tensors with every LoRA applied, also to weights that are patched only as they are used."""
    network = patcher.model.diffusion_model
    tensors = network.state_dict()
    for name in _patched_as_used(network):
        key = f"{NETWORK}.{name}"
        if key not in patcher.patches or key in patcher.backup:
            continue
        weight = patcher.patch_weight_to_device(key, device_to=patcher.load_device, return_weight=True)
        parts = weight.state_dict(name) if isinstance(weight, QuantizedTensor) else {name: weight}
        tensors.update({part: tensor.to("cpu") for part, tensor in parts.items()})
    return tensors


def _patched_as_used(network: nn.Module) -> Iterator[str]:
    """The tensors that the host's streaming patches: `weight` and `bias` of modules whose children hold none."""
    for path, module in network.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if len(own) == sum(1 for _ in module.parameters()):
            yield from (f"{path}.{name}" for name in ("weight", "bias") if name in own)
