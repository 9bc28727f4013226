"""From a checkpoint to ComfyUI's MODEL.

file → checkpoint.read → (the chosen precision) → network on the meta device → tensors assigned, not copied
     → BaseModel → patcher of the running host (streaming where it has one)
"""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import folder_paths
import torch
from server import PromptServer
from torch import Tensor

from ..kernels import channel_fp8
from ..turbo_core import attention, block_int8, channelwise, checkpoint
from ..turbo_core.channelwise import WeightNoise
from ..turbo_core.checkpoint import Checkpoint
from ..turbo_core.config import WanConfig
from ..turbo_core.errors import BackendUnavailableError, CheckpointError, SettingsError
from ..turbo_core.native_names import is_block_linear_weight
from . import _file_slices, _layout
from ._file_weights import FileWeights
from ._model import TurboWanBase, TurboWanSupported
from ._operations import HostOperations, progress_bar, throw_if_interrupted
from ._patcher import make_patcher
from .choices import PRECISIONS

log = logging.getLogger("turbowan")

FOLDER = "diffusion_models"
DEQUANTIZED = torch.bfloat16
ROW_CODES = {"channelwise": torch.int8, "fp8": torch.float8_e4m3fn}  # precisions with a scale per output channel
CONVERSION_BYTES = 2**30  # on the GPU while a file's precision is changed: a few fp32 copies of one layer
PUBLISHED_ROWS = 128  # tokens that share an activation scale in TurboDiffusion's own kernels


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
    _refuse_fp8(source, settings.precision, device, manual_dtype or dtype)
    tensors, config, noise = _at_precision(source, settings.precision, device)
    supported = TurboWanSupported(config)
    supported.set_inference_dtype(dtype, manual_dtype)
    supported.custom_operations = HostOperations
    model = supported.get_model(tensors, device=torch.device("meta"))
    network = model.diffusion_model
    converted = _converted(tensors, dtype)
    _file_slices.mark(converted.values(), source.spans)
    network.load(converted)
    model.file_weights = FileWeights(model, source.spans, source.path)
    network.attention = chosen
    if settings.precision == "exact":
        network.set_activation_rows(PUBLISHED_ROWS)
    model.expert = source.expert
    model.rounds_timestep = source.turbodiffusion
    model.weight_noise = noise
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


def _refuse_fp8(source: Checkpoint, precision: str, device: torch.device, dtype: torch.dtype) -> None:
    if precision != "fp8":
        return
    if source.config.quantized:
        raise SettingsError(
            f"precision: 'fp8' must get an unquantized file, {source.path.name} holds int8 codes; choose channelwise "
            "or auto, or the file without -quant"
        )
    reason = channel_fp8.LINEAR.refusal(torch.empty(0, source.config.dim, dtype=dtype, device=device))
    if reason is not None:
        raise BackendUnavailableError(
            f"precision: 'fp8' needs torch's fp8 products with a scale per row, but {reason}; choose channelwise, int8 "
            "or auto"
        )


def _at_precision(
    source: Checkpoint, precision: str, device: torch.device
) -> tuple[dict[str, Tensor], WanConfig, WeightNoise | None]:
    """The tensors as the chosen precision wants them, and what a rounding of the weights cost where that is told."""
    if precision not in PRECISIONS:
        raise SettingsError(f"precision: must be one of {', '.join(PRECISIONS)}, got {precision!r}; choose auto")
    name, quantized = source.path.name, source.config.quantized
    config = dataclasses.replace(source.config, quantized=precision != "bf16")
    if precision in (*ROW_CODES, "bf16" if quantized else "int8"):
        comfy.model_management.free_memory(CONVERSION_BYTES, device)
    if precision in ROW_CODES:
        report = _progress(name, precision)
        tensors, noise = channelwise.to_row_codes(source.tensors, ROW_CODES[precision], device, report)
        log.info("TurboLoader: %s as %s: %s", name, precision, noise)
        return tensors, config, noise
    if precision == "int8" and not quantized:
        return block_int8.quantize_tensors(source.tensors, _progress(name, precision), device), config, None
    if precision == "bf16" and quantized:
        return block_int8.dequantize_tensors(source.tensors, DEQUANTIZED, device), config, None
    if precision == "exact" and not quantized:
        log.warning("TurboLoader: %s is not quantized, so that 'exact' changes nothing", name)
    return source.tensors, source.config, None


def _progress(name: str, precision: str) -> block_int8.Progress:
    log.info("TurboLoader: quantizing %s to %s", name, precision)
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
    found = DEQUANTIZED if precision == "bf16" and source.config.quantized else dense
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
