"""Block-int8 over a whole checkpoint: quantize the blocks' Linears, or bring them back to a dense dtype.

    X.weight [N, K]  ⇄  X.int8_weight int8 [N, K] + X.scale fp32 [⌈N/128⌉, ⌈K/128⌉]

The other tensors (biases, norms, ``proj_l``, everything outside the blocks) pass through untouched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..kernels.block_int8 import BLOCK, BlockInt8, quantize_weight
from .errors import CheckpointError
from .native_names import is_block_linear_weight

Progress = Callable[[int, int], None]  # layers done, layers in all

ROWS_AT_ONCE = 16 * BLOCK  # keeps the fp32 copies of a weight small; blocks are independent of each other


def quantize_tensors(
    tensors: Mapping[str, Tensor], progress: Progress | None = None, device: torch.device | None = None
) -> dict[str, Tensor]:
    """Native tensors with every dense Linear of the blocks in block-int8; already quantized ones stay.

    `device` does the arithmetic, to the same bits, and holds a few rows of one layer at a time.
    """
    total = sum(is_block_linear_weight(name, tensor) for name, tensor in tensors.items())
    done = 0
    quantized: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not is_block_linear_weight(name, tensor):
            quantized[name] = tensor
            continue
        weight = quantize_layer(name, tensor, device)
        layer = name.removesuffix(".weight")
        quantized[f"{layer}.int8_weight"] = weight.codes
        quantized[f"{layer}.scale"] = weight.scale
        done += 1
        if progress is not None:
            progress(done, total)
    return quantized


def dequantize_tensors(
    tensors: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device | None = None
) -> dict[str, Tensor]:
    """Native tensors with every block-int8 weight as a dense one of ``dtype``; ``device`` as in `quantize_tensors`."""
    dense: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        layer, _, part = name.rpartition(".")
        if part == "int8_weight":
            weight = BlockInt8(tensor, tensors[f"{layer}.scale"])
            dense[f"{layer}.weight"] = weight.to(device or tensor.device).dequantize(dtype).to(tensor.device)
        elif part != "scale" or f"{layer}.int8_weight" not in tensors:
            dense[name] = tensor
    return dense


def quantize_layer(name: str, weight: Tensor, device: torch.device | None = None) -> BlockInt8:
    """One layer's weight, where it lies; a NaN or infinity in it surfaces in its block's scale and is refused."""
    codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    scales = []
    for part, room in zip(weight.split(ROWS_AT_ONCE), codes.split(ROWS_AT_ONCE), strict=True):
        quantized = quantize_weight(part.to(device or part.device))
        room.copy_(quantized.codes)
        scales.append(quantized.scale)
    scale = torch.cat(scales).to(weight.device)
    if not bool(torch.isfinite(scale).all()):
        raise CheckpointError(
            f"quantize: {name} must be finite, came NaN or infinity; the file is damaged: download it again"
        )
    return BlockInt8(codes, scale)
