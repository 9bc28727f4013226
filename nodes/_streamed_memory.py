"""A layer's share of the GPU memory that ComfyUI streams weights through, written before the layer is first used.

The host gives each layer a range of addresses (`_v`). Pages lie behind it while it is asked for, leave when other
memory is needed, highest addresses first, and have a signature that lasts as long as they do. A layer whose range has
the signature of the last copy is served from there; for any other the host copies the weights to a buffer of its own in
system memory, page-locked as far as it can, and from there to the pages. What is written here is signed as the host
signs its own copies.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from comfy_kitchen.tensor import QuantizedTensor
from torch import Tensor, nn


def is_streamed(layer: nn.Module) -> bool:
    """Whether the host has set memory aside for it; it keeps small layers on the GPU and streams none on a CPU."""
    return hasattr(layer, "_v")


def address(layer: nn.Module) -> int:
    return layer._v[1]


def size(layer: nn.Module) -> int:
    """Bytes of weight and bias as they lie there."""
    return layer._v[2]


def has_host_copy(layer: nn.Module) -> bool:
    """Whether the host keeps a copy in its buffer, from where the bus brings it."""
    noted = layer.__dict__
    copies = (copy.get("pin") for copy in noted.get("_pins", {}).values())  # before ComfyUI 0.30 there was one, `_pin`
    return noted.get("_pin") is not None or any(copy is not None for copy in copies)


def was_written(layer: nn.Module) -> bool:
    """Whether weights were written for it and had a place to stay, since patches changed or it was forgotten."""
    return layer._v_signature is not None


def holds(layer: nn.Module) -> bool:
    """Whether the weights that were written are still there; asking brings pages where there are none."""
    import comfy_aimdo.model_vbar

    with _pages(layer) as signature:
        return comfy_aimdo.model_vbar.vbar_signature_compare(signature, layer._v_signature)


def forget(layer: nn.Module) -> None:
    """As if its weights had never been written."""
    layer._v_signature = None


def write(layer: nn.Module, data: Tensor, device: torch.device) -> bool:
    """Copy the layer's weight, whose `data` is on the GPU, and its bias to its pages; False where there are none left.

    Args:
        data: what the file holds of the weight: its codes, or the dense weight [N, K].
    """
    import comfy.memory_management
    import comfy_aimdo.torch

    with _pages(layer) as signature:
        if signature is None:
            return False
        geometries = comfy.memory_management.tensors_to_geometries([layer.weight, layer.bias])
        memory = comfy_aimdo.torch.aimdo_to_tensor(layer._v, device)
        weight, bias = comfy.memory_management.interpret_gathered_like(geometries, memory)
        if isinstance(weight, QuantizedTensor):
            weight._qdata.copy_(data)
            weight._params.scale.copy_(layer.weight._params.scale, non_blocking=True)
        else:
            weight.copy_(data)
        if bias is not None:
            bias.copy_(layer.bias, non_blocking=True)
        layer._v_weight, layer._v_bias, layer._v_signature = weight, bias, signature
    return True


@contextmanager
def _pages(layer: nn.Module) -> Iterator[Any]:
    """The signature of the layer's pages, which stay meanwhile; None where the GPU has no room for them."""
    import comfy_aimdo.model_vbar

    signature = comfy_aimdo.model_vbar.vbar_fault(layer._v)
    try:
        yield signature
    finally:
        if signature is not None:
            comfy_aimdo.model_vbar.vbar_unpin(layer._v)
