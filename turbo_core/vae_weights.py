"""A WanVAE from a file's tensors, or over the weights that a host holds: widths read off, names and values checked."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from .errors import CheckpointError, UnsupportedModelError
from .vae import VAEConfig, WanVAE

Direction = Literal["encode", "decode"]
OTHER_PART: dict[Direction | None, str | None] = {"decode": "encoder.", "encode": "decoder.", None: None}
FLOAT_TYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def from_tensors(
    tensors: Mapping[str, Tensor],
    *,
    assign: bool = True,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    direction: Direction | None = None,
) -> WanVAE:
    """A VAE over ``tensors`` as they are (no copy), or over copies where ``assign`` is off.

    ``device`` and ``dtype`` convert what lies elsewhere or in another type; only those tensors are copied.
    With a ``direction`` the other one's weights stay on the meta device.
    """
    return fill(shaped_like(tensors), tensors, assign=assign, device=device, dtype=dtype, direction=direction)


def fill(
    vae: WanVAE,
    tensors: Mapping[str, Tensor],
    *,
    assign: bool = True,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    direction: Direction | None = None,
) -> WanVAE:
    """``vae`` over ``tensors``, of which ``shaped_like`` made it; options as in ``from_tensors``."""
    _check_names(vae.state_dict(), tensors)
    other = OTHER_PART[direction]
    converted = {
        name: tensor.detach().to(device=device, dtype=dtype, copy=not assign)
        for name, tensor in tensors.items()
        if other is None or not name.startswith(other)
    }
    _check_values(converted)
    vae.load_state_dict(converted, assign=True, strict=other is None)
    return vae


def shaped_like(tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> WanVAE:
    """A VAE without data, on the meta device, with the widths that the tensors have: enough to plan with."""
    if "decoder.upsamples.0.upsamples.0.residual.2.weight" in tensors:
        raise UnsupportedModelError(
            "VAE: must be the Wan 2.1 VAE (16 channels), got the Wan 2.2 one; use wan_2.1_vae.safetensors, "
            "or VAEDecode with this file"
        )
    try:
        config = VAEConfig(
            width=tensors["decoder.head.0.gamma"].shape[0],
            in_channels=tensors["encoder.conv1.weight"].shape[1],
            out_channels=tensors["decoder.head.2.weight"].shape[0],
        )
    except (KeyError, IndexError) as error:
        raise CheckpointError(
            f"VAE: must be a Wan 2.1 VAE in its own names, got {len(tensors)} tensors without a usable "
            f"{error}; use wan_2.1_vae.safetensors"
        ) from error
    with torch.device("meta"):
        vae = WanVAE(config).eval()
    return vae if dtype is None else vae.to(dtype)


def _check_names(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    faults = {
        "missing": sorted(expected.keys() - given.keys()),
        "unexpected": sorted(given.keys() - expected.keys()),
        "misshapen": [
            f"{name} {list(given[name].shape)} instead of {list(expected[name].shape)}"
            for name in sorted(expected.keys() & given.keys())
            if given[name].shape != expected[name].shape
        ],
    }
    found = [f"{kind}: {_some(names)}" for kind, names in faults.items() if names]
    if found:
        raise CheckpointError(
            f"VAE: tensors must be those of a Wan 2.1 VAE, got {'; '.join(found)}; "
            f"use wan_2.1_vae.safetensors, or download the file again"
        )


def _some(names: list[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _check_values(tensors: Mapping[str, Tensor]) -> None:
    types = {tensor.dtype for tensor in tensors.values()}
    if not types <= set(FLOAT_TYPES):
        raise CheckpointError(
            f"VAE: weights must be bf16, fp16 or fp32, got {', '.join(sorted(map(str, types)))}; "
            f"use an unquantized wan_2.1_vae.safetensors"
        )
    # One wait for the GPU per kind of vector; a host may spread them over devices.
    vectors: defaultdict[tuple[torch.device, int], list[Tensor]] = defaultdict(list)
    for name, tensor in tensors.items():
        if name.endswith((".bias", ".gamma")):
            vectors[tensor.device, tensor.ndim].append(tensor)
    if not all(bool(torch.cat(group).isfinite().all()) for group in vectors.values()):
        raise CheckpointError("VAE: norms and biases must be finite, got NaN or infinity; download the file again")
