"""A file's weights at the precision that was asked for."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..kernels import channel_fp8
from . import block_int8, channelwise
from .channelwise import WeightNoise
from .checkpoint import Checkpoint
from .config import WanConfig
from .errors import BackendUnavailableError, SettingsError

log = logging.getLogger("turbowan")

PRECISIONS = ("auto", "exact", "int8", "channelwise", "fp8", "bf16")
DEQUANTIZED = torch.bfloat16
CONVERSION_BYTES = 2**30  # on the GPU while weights are computed anew: a few fp32 copies of one layer
PUBLISHED_ROWS = 128  # tokens that share an activation scale in TurboDiffusion's own kernels
_ROW_CODES = {"channelwise": torch.int8, "fp8": torch.float8_e4m3fn}  # with a scale per output channel


@dataclass(frozen=True, kw_only=True)
class Weights:
    tensors: dict[str, Tensor] = field(repr=False)
    config: WanConfig
    noise: WeightNoise | None = None
    """What rounding the weights cost, where that was measured."""


def check(source: Checkpoint, precision: str, device: torch.device, dtype: torch.dtype) -> None:
    """Refuse what this file or device cannot serve, computing in `dtype`.

    Raises:
        SettingsError: an unknown precision, or fp8 of a quantized file.
        BackendUnavailableError: fp8 where torch has no products for it.
    """
    if precision not in PRECISIONS:
        raise SettingsError(f"precision: must be one of {', '.join(PRECISIONS)}, got {precision!r}; choose auto")
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


def converts(source: Checkpoint, precision: str) -> bool:
    """Whether the file's weights have to be computed anew, which takes CONVERSION_BYTES."""
    return precision in (*_ROW_CODES, "bf16" if source.config.quantized else "int8")


def at_precision(
    source: Checkpoint, precision: str, device: torch.device, progress: block_int8.Progress | None = None
) -> Weights:
    """The tensors as a precision that passed `check` wants them; where they are the file's own, they stay mapped."""
    name, quantized = source.path.name, source.config.quantized
    config = dataclasses.replace(source.config, quantized=precision != "bf16")
    if converts(source, precision):
        log.info("converting the weights of %s: %s", name, precision)
    if precision in _ROW_CODES:
        tensors, noise = channelwise.to_row_codes(source.tensors, _ROW_CODES[precision], device, progress)
        log.info("%s as %s: %s", name, precision, noise)
        return Weights(tensors=tensors, config=config, noise=noise)
    if precision == "int8" and not quantized:
        return Weights(tensors=block_int8.quantize_tensors(source.tensors, progress, device), config=config)
    if precision == "bf16" and quantized:
        return Weights(tensors=block_int8.dequantize_tensors(source.tensors, DEQUANTIZED, device), config=config)
    if precision == "exact" and not quantized:
        log.warning("%s is not quantized, so that precision 'exact' changes nothing", name)
    return Weights(tensors=source.tensors, config=source.config)
