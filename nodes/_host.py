"""From a checkpoint to ComfyUI's MODEL.

file → checkpoint.read → (the chosen precision) → network on the meta device → tensors assigned, not copied
     → BaseModel → patcher of the running host (streaming where it has one)
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import folder_paths
import torch
from server import PromptServer
from torch import Tensor

from ..turbo_core import at_precision, attention, block_int8, checkpoint
from ..turbo_core.checkpoint import Checkpoint
from ..turbo_core.errors import CheckpointError
from ..turbo_core.file_reading import MappedFile
from ..turbo_core.native_names import is_block_linear_weight
from . import _file_slices, _layout
from ._file_weights import FileWeights
from ._model import TurboWanBase, TurboWanSupported
from ._operations import HostOperations, progress_bar, throw_if_interrupted
from ._patcher import make_patcher

log = logging.getLogger("turbowan")

FOLDER = "diffusion_models"


@dataclass(frozen=True, kw_only=True)
class LoadSettings:
    """The loader node's choices."""

    attention: str = "auto"
    topk: float = 0.1
    precision: str = "auto"


def model_path(name: str) -> Path:
    """The full path of a file in models/diffusion_models; CheckpointError if it is not there."""
    path = folder_paths.get_full_path(FOLDER, name)
    if path is None:
        folders = ", ".join(folder_paths.get_folder_paths(FOLDER))
        raise CheckpointError(
            f"TurboLoader: file must be in {folders}, got {name!r} which is not there; put it there and refresh (R)"
        )
    return Path(path)


@torch.inference_mode()  # see _patcher
def load_model(path: Path, settings: LoadSettings, disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    """Read a checkpoint and wrap it as MODEL; `disable_dynamic` is the host's, for its own reloads."""
    _layout.register()
    source = checkpoint.read(path)
    device = comfy.model_management.get_torch_device()
    dtype, manual_dtype = _dtypes(source, settings.precision, device)
    chosen = attention.resolve(settings.attention, settings.topk, source.config, device, manual_dtype or dtype)
    attention.warn_of_cost(chosen, source.config)
    at_precision.check(source, settings.precision, device, manual_dtype or dtype)
    if at_precision.converts(source, settings.precision):
        comfy.model_management.free_memory(at_precision.CONVERSION_BYTES, device)
    weights = at_precision.at_precision(source, settings.precision, device, _progress())
    supported = TurboWanSupported(weights.config)
    supported.set_inference_dtype(dtype, manual_dtype)
    supported.custom_operations = HostOperations
    model = supported.get_model(weights.tensors, device=torch.device("meta"))
    network = model.diffusion_model
    converted = _converted(weights.tensors, dtype)
    _file_slices.mark(converted.values(), source.spans)
    network.load(converted)
    model.file_weights = FileWeights(model, MappedFile(source.path, source.spans))
    network.attention = chosen
    if settings.precision == "exact":
        network.set_activation_rows(at_precision.PUBLISHED_ROWS)
    model.expert = source.expert
    model.rounds_timestep = source.turbodiffusion
    model.weight_noise = weights.noise
    return _patcher(model, device, path, settings, disable_dynamic)


def _patcher(
    model: TurboWanBase, device: torch.device, path: Path, settings: LoadSettings, disable_dynamic: bool
) -> comfy.model_patcher.ModelPatcher:
    offload_device = comfy.model_management.unet_offload_device()
    model.device = offload_device
    archive = getattr(comfy.model_management, "archive_model_dtypes", None)
    if archive is not None:
        archive(model.diffusion_model)  # what was noted on the meta device is not what the file holds
    patcher = make_patcher(model, device, offload_device, streaming=not disable_dynamic)
    patcher.cached_patcher_init = (load_model, (path, settings))
    return patcher


def show_on_node(text: str, node_id: str) -> None:
    """Write a line on a node in the browser."""
    PromptServer.instance.send_progress_text(text, node_id)


def _progress() -> block_int8.Progress:
    show = progress_bar()

    def report(done: int, total: int) -> None:
        throw_if_interrupted()
        show(done, total)

    return report


def _dtypes(source: Checkpoint, precision: str, device: torch.device) -> tuple[torch.dtype, torch.dtype | None]:
    """The dtype of the dense weights, and the one to compute in where that differs, as the host chooses them."""
    allowed = TurboWanSupported.supported_inference_dtypes
    elements = sum(tensor.numel() for tensor in source.tensors.values())
    dense = source.tensors.get("blocks.0.self_attn.q.weight", source.tensors["blocks.0.self_attn.q.bias"]).dtype
    found = at_precision.DEQUANTIZED if precision == "bf16" and source.config.quantized else dense
    dtype = comfy.model_management.unet_dtype(model_params=elements, supported_dtypes=list(allowed), weight_dtype=found)
    if dtype not in allowed:
        log.warning("TurboLoader: %s weights (a ComfyUI start option) do not fit TurboWan; using %s", dtype, allowed[0])
        dtype = allowed[0]
    return dtype, comfy.model_management.unet_manual_cast(dtype, device, list(allowed))


def _converted(tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Dense block matrices in `dtype`; everything else is small and keeps the file's precision."""
    return {
        name: tensor.to(dtype) if is_block_linear_weight(name, tensor) else tensor for name, tensor in tensors.items()
    }
