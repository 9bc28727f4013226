"""Encoded prompts as safetensors: tensors bit for bit, plain values as JSON, a checksum over both.

A conditioning is ComfyUI's list of ``[states, extras]``. What the host or another pack may put there besides tensors
and plain values (hooks, models) cannot be written down: `NotPlainError`.

Tensors lose the rows of zeros at their end (a prompt's padding: most of umT5's 512 tokens), and get them back.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .errors import ConditioningError

Conditioning = list[list[Any]]

DTYPES = (
    torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.bool,
)  # fmt: skip
PLAIN = (type(None), bool, int, float, str)


class NotPlainError(ConditioningError):
    """A conditioning that cannot be kept, because of what was `found` in it; it may be used all the same."""

    def __init__(self, found: str) -> None:
        super().__init__(
            f"prompts: an encoded prompt must consist of tensors and plain values to be kept, got {found}; leave out "
            "the node that puts it there, or encode this prompt anew each time"
        )
        self.found = found


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A conditioning taken apart: named tensors, and how the rest holds them (JSON)."""

    tensors: dict[str, Tensor]
    layout: str

    @property
    def checksum(self) -> str:
        """SHA-256 of everything; what a reader compares."""
        digest = hashlib.sha256(self.layout.encode())
        for name, tensor in sorted(self.tensors.items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(_bits(tensor).numpy().tobytes())
        return digest.hexdigest()


def pack(conditioning: Conditioning) -> Packed:
    """Take a conditioning apart; NotPlainError names what cannot be kept."""
    tensors: dict[str, Tensor] = {}
    layout = _pack(conditioning, "conditioning", tensors)
    return Packed(tensors=tensors, layout=json.dumps(layout))


def unpack(packed: Packed) -> Conditioning:
    """The conditioning as it was given to `pack`, on the CPU."""
    return _unpack(json.loads(packed.layout), packed.tensors)


def require_finite(conditioning: Conditioning, where: str) -> None:
    """An overflown encoding must not be kept for later."""
    for states in (entry[0] for entry in conditioning):
        plain = isinstance(states, Tensor) and states.layout == torch.strided and states.is_floating_point()
        if plain and not bool(torch.isfinite(states.float()).all()):
            raise ConditioningError(
                f"{where}: the encoded prompt must be finite, got NaN or infinity; use another text encoder file, or "
                "start ComfyUI with --fp32-text-enc"
            )


def _pack(value: Any, where: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        if value.dtype not in DTYPES or value.layout != torch.strided:
            raise NotPlainError(f"a tensor of {value.dtype}, {value.layout} in {where}")
        name = str(len(tensors))
        tensors[name] = _without_zero_rows(value.detach())
        return {"tensor": name, "rows": value.shape[-2] if value.ndim > 1 else None}
    if type(value) in PLAIN:
        return value
    if type(value) in (list, tuple):
        return {type(value).__name__: [_pack(item, f"{where}[{i}]", tensors) for i, item in enumerate(value)]}
    if type(value) is dict and all(type(key) is str for key in value):
        return {"dict": {key: _pack(item, f"{where}.{key}", tensors) for key, item in value.items()}}
    raise NotPlainError(f"{type(value).__name__} in {where}")


def _unpack(layout: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(layout, dict):
        return layout
    if "tensor" in layout:
        return _with_zero_rows(tensors[layout["tensor"]], layout["rows"])
    if "dict" in layout:
        return {key: _unpack(item, tensors) for key, item in layout["dict"].items()}
    ((kind, items),) = layout.items()
    return {"list": list, "tuple": tuple}[kind](_unpack(item, tensors) for item in items)


def _bits(tensor: Tensor) -> Tensor:
    """The bytes of a contiguous tensor."""
    return tensor.reshape(-1).view(torch.uint8)


def _without_zero_rows(tensor: Tensor) -> Tensor:
    """[…, R, C] → […, r, C] on the CPU, without the last rows that are zero (not −0) in every sample; own memory."""
    tensor = tensor.to("cpu").contiguous()
    if tensor.ndim < 2 or tensor.numel() == 0:
        return tensor.clone()
    rows = _bits(tensor).view(-1, tensor.shape[-2], tensor.shape[-1] * tensor.element_size())
    used = rows.any(dim=2).any(dim=0).nonzero()
    kept = int(used[-1]) + 1 if len(used) else 1
    return tensor[..., :kept, :].clone(memory_format=torch.contiguous_format)


def _with_zero_rows(tensor: Tensor, rows: int | None) -> Tensor:
    if rows is None or tensor.shape[-2] == rows:
        return tensor
    full = torch.zeros(*tensor.shape[:-2], rows, tensor.shape[-1], dtype=tensor.dtype)
    full[..., : tensor.shape[-2], :] = tensor
    return full
