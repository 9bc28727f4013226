"""Codes with one scale per output channel over a whole checkpoint: int8 from any file, e4m3 from an unquantized one.

    X.weight [N, K]  or  X.int8_weight + X.scale [⌈N/128⌉, ⌈K/128⌉]
      →  X.int8_weight int8 [N, K]  or  X.fp8_weight e4m3 [N, K],  with X.scale fp32 [N]

The blocks' Linears alone; the other tensors pass through untouched. The rounding happens once, and what it costs is
measured: each layer's 10·log10(Σ w² / Σ (w − ŵ)²), where w is the weight that the file stands for.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.block_int8 import BLOCK, BlockInt8
from ..kernels.row_codes import RowCodes, quantize_rows_ref
from .block_int8 import Progress
from .errors import CheckpointError
from .layers import CODES_NAMES
from .native_names import is_block_linear_weight

ROWS_AT_ONCE = 16 * BLOCK  # bounds the fp32 copies of a weight; rows are independent of each other


@dataclass(frozen=True)
class WeightNoise:
    """What rounding cost, as a signal-to-noise ratio of each layer's weights in dB."""

    db: Mapping[str, float]

    def __str__(self) -> str:
        worst = min(self.db, key=self.db.__getitem__)
        return (
            f"signal-to-noise ratio of the weights {statistics.median(self.db.values()):.1f} dB (median of "
            f"{len(self.db)} layers), {self.db[worst]:.1f} dB (lowest: {worst})"
        )


def to_row_codes(
    tensors: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device, progress: Progress | None = None
) -> tuple[dict[str, Tensor], WeightNoise]:
    """Native tensors with every Linear of the blocks in codes of `dtype`: made on `device`, kept where they were."""
    sources = {name: _source(name, tensor, tensors) for name, tensor in tensors.items()}
    total = sum(source is not None for source in sources.values())
    coded: dict[str, Tensor] = {}
    noise: dict[str, float] = {}
    for name, source in sources.items():
        layer, _, part = name.rpartition(".")
        if source is not None:
            codes, noise[layer] = _quantize(name, source, dtype, device)
            coded[f"{layer}.{CODES_NAMES[dtype]}"], coded[f"{layer}.scale"] = codes.codes, codes.scale
            if progress is not None:
                progress(len(noise), total)
        elif part != "scale" or f"{layer}.int8_weight" not in tensors:
            coded[name] = tensors[name]
    return coded, WeightNoise(noise)


def _source(name: str, tensor: Tensor, tensors: Mapping[str, Tensor]) -> Tensor | BlockInt8 | None:
    """The weight that `name` stands for, None where it is not one to round."""
    if name.endswith(".int8_weight"):
        return BlockInt8(tensor, tensors[name.removesuffix("int8_weight") + "scale"])
    return tensor if is_block_linear_weight(name, tensor) else None


def _quantize(
    name: str, source: Tensor | BlockInt8, dtype: torch.dtype, device: torch.device
) -> tuple[RowCodes, float]:
    """A layer's codes and its signal-to-noise ratio; a NaN or infinity surfaces in its row's scale and is refused."""
    parts: list[RowCodes] = []
    signal = noise = 0.0
    for w in _fp32_rows(source, device):
        part = quantize_rows_ref(w, dtype)
        signal += w.square().sum().item()
        noise += (part.dequantize(torch.float32) - w).square().sum().item()
        parts.append(part.to(source.device))
    codes = RowCodes(torch.cat([p.codes for p in parts]), torch.cat([p.scale for p in parts]))
    if not bool(torch.isfinite(codes.scale).all()):
        raise CheckpointError(
            f"quantize: {name} must be finite, came NaN or infinity; the file is damaged: download it again"
        )
    return codes, 10 * math.log10(signal / noise) if noise else math.inf


def _fp32_rows(source: Tensor | BlockInt8, device: torch.device) -> Iterator[Tensor]:
    """The weight on `device`, ROWS_AT_ONCE of its rows at a time."""
    for start in range(0, source.shape[0], ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        if isinstance(source, BlockInt8):
            blocks = slice(start // BLOCK, (start + ROWS_AT_ONCE) // BLOCK)
            yield BlockInt8(source.codes[rows].to(device), source.scale[blocks].to(device)).dequantize(torch.float32)
        else:
            yield source[rows].to(device, torch.float32)
