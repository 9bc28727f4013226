"""Read a umT5 encoder as ComfyUI uses it: one file with the weights and, as bytes, the sentencepiece model.

    W = stored                           bf16, fp16, fp32, or plain fp8
    W = stored · scale                   scaled fp8: X.scale_weight (also X.weight_scale), one number per weight

The shape of the network is read from the tensors, so that an encoder of any size comes through the same code. Nothing
is converted here: the tensors stay mapped, and are read when a layer needs them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from .errors import CheckpointError, UnsupportedModelError
from .weight_file import DOWNLOAD_AGAIN, open_weights

FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
STORED = (torch.bfloat16, torch.float16, torch.float32, *FP8)
TOKENIZER = "spiece_model"
SCALES = (".scale_weight", ".weight_scale")
# What says how the fp8 weights came about, scales of activations that are not quantized here, a second name for
# `shared`, and a number that ComfyUI's encoders carry.
NOT_NEEDED = re.compile(
    r"scaled_fp8|logit_scale|encoder\.embed_tokens\.weight|.*\.(scale_input|input_scale|comfy_quant)"
)
LISTED = 8
REMEDY = "use umt5_xxl_fp8_e4m3fn_scaled.safetensors, or another umT5 file made for ComfyUI"


@dataclass(frozen=True, kw_only=True)
class UMT5Shape:
    """What decides the network."""

    vocabulary: int
    dim: int
    ffn_dim: int
    num_heads: int
    head_dim: int
    num_layers: int
    buckets: int
    """Of relative positions."""

    @property
    def name(self) -> str:
        return f"umT5 encoder (dim {self.dim}, {self.num_layers} blocks)"


@dataclass(frozen=True)
class Stored:
    """A weight as the file holds it."""

    tensor: Tensor = field(repr=False)
    scale: Tensor | None = None

    def on(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """The weight it stands for; the file's bytes are what moves."""
        return self._scaled(self.tensor.to(device), dtype)

    def rows(self, indices: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows of it, without reading the others."""
        if self.tensor.dtype in FP8:  # no device indexes fp8
            picked = self.tensor.view(torch.uint8)[indices].view(self.tensor.dtype)
        else:
            picked = self.tensor[indices]
        return self._scaled(picked, dtype)

    def _scaled(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        values = values.to(dtype)
        return values if self.scale is None else values * self.scale.to(values.device, dtype)


@dataclass(frozen=True, kw_only=True)
class UMT5File:
    path: Path
    shape: UMT5Shape
    weights: dict[str, Stored] = field(repr=False)
    tokenizer: bytes = field(repr=False)
    """A sentencepiece model."""


def read(path: str | os.PathLike[str]) -> UMT5File:
    """Open, recognise and check; CheckpointError or UnsupportedModelError otherwise."""
    file = open_weights(path)
    where = file.path.name
    content = file.content
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UnsupportedModelError(
            f"text encoder: {where} must hold named tensors alone, came something else; {REMEDY}"
        )
    tensors = {name: value for name, value in content.items() if not NOT_NEEDED.fullmatch(name)}
    tokenizer = tensors.pop(TOKENIZER, None)
    scales = {name: tensors.pop(name) for name in list(tensors) if name.endswith(SCALES)}
    shape = recognise(tensors, where)
    expected = dict(expected_tensors(shape))
    _check(tensors, expected, shape, where)
    if tokenizer is None or tokenizer.dtype != torch.uint8:
        raise CheckpointError(
            f"text encoder: {where} must carry its sentencepiece model ({TOKENIZER}), it has none; {REMEDY}"
        )
    return UMT5File(
        path=file.path,
        shape=shape,
        weights={name: Stored(tensors[name], _scale(name, scales, where)) for name in expected},
        tokenizer=tokenizer.numpy().tobytes(),
    )


def recognise(tensors: Mapping[str, Tensor], where: str) -> UMT5Shape:
    """The shape that a few tensors imply; UnsupportedModelError if they are no umT5's."""
    attention = "encoder.block.0.layer.0.SelfAttention"
    needed = {
        "shared.weight": "",
        f"{attention}.q.weight": "",
        f"{attention}.relative_attention_bias.weight": "",
        "encoder.block.0.layer.1.DenseReluDense.wi_0.weight": "",
    }
    missing = [name for name in needed if name not in tensors or tensors[name].ndim != 2]
    if missing:
        raise UnsupportedModelError(
            f"text encoder: {where} must be umT5 in its own names, it lacks {', '.join(missing)}; {REMEDY}"
        )
    shared, q, bias, wi = (tensors[name] for name in needed)
    layers = {int(found[1]) for name in tensors if (found := re.match(r"encoder\.block\.(\d+)\.", name))}
    if 1 in layers and "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight" not in tensors:
        raise UnsupportedModelError(
            f"text encoder: {where} must be umT5, came T5 (one position bias for all blocks); {REMEDY}"
        )
    heads = bias.shape[1]
    if heads == 0 or q.shape[0] % heads:
        raise CheckpointError(
            f"text encoder: {attention}.q.weight of {where} must have a multiple of {heads} rows, came {q.shape[0]}; "
            f"{DOWNLOAD_AGAIN}"
        )
    return UMT5Shape(
        vocabulary=shared.shape[0],
        dim=shared.shape[1],
        ffn_dim=wi.shape[0],
        num_heads=heads,
        head_dim=q.shape[0] // heads,
        num_layers=min(1 + max(layers), len(tensors)),
        buckets=bias.shape[0],
    )


def expected_tensors(shape: UMT5Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes."""
    dim, inner = shape.dim, shape.num_heads * shape.head_dim
    yield "shared.weight", (shape.vocabulary, dim)
    for index in range(shape.num_layers):
        attention, ffn = (f"encoder.block.{index}.layer.{part}" for part in (0, 1))
        for name in "qkv":
            yield f"{attention}.SelfAttention.{name}.weight", (inner, dim)
        yield f"{attention}.SelfAttention.o.weight", (dim, inner)
        yield f"{attention}.SelfAttention.relative_attention_bias.weight", (shape.buckets, shape.num_heads)
        yield f"{attention}.layer_norm.weight", (dim,)
        for name in ("wi_0", "wi_1"):
            yield f"{ffn}.DenseReluDense.{name}.weight", (shape.ffn_dim, dim)
        yield f"{ffn}.DenseReluDense.wo.weight", (dim, shape.ffn_dim)
        yield f"{ffn}.layer_norm.weight", (dim,)
    yield "encoder.final_layer_norm.weight", (dim,)


def _check(
    tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], shape: UMT5Shape, where: str
) -> None:
    missing = [name for name in expected if name not in tensors]
    if missing:
        raise CheckpointError(
            f"text encoder: {where} must hold every tensor of a {shape.name}, {len(missing)} are missing: "
            f"{_listed(missing)}; {DOWNLOAD_AGAIN}"
        )
    unknown = [name for name in tensors if name not in expected]
    if unknown:
        raise UnsupportedModelError(
            f"text encoder: {where} must hold a {shape.name} and nothing else, {len(unknown)} unknown keys came: "
            f"{_listed(unknown)}; {REMEDY}"
        )
    wrong = [
        f"{name} must be {list(size)} in {_names(STORED)}, came {list(came.shape)} in {_names([came.dtype])}"
        for name, size in expected.items()
        if tuple((came := tensors[name]).shape) != size or came.dtype not in STORED
    ]
    if wrong:
        raise CheckpointError(f"text encoder: {where}: {_listed(wrong, '; ')}; {REMEDY}")


def _scale(name: str, scales: Mapping[str, Tensor], where: str) -> Tensor | None:
    found = [scales[key] for ending in SCALES if (key := name.removesuffix(".weight") + ending) in scales]
    if not found:
        return None
    scale = found[0].to(torch.float32)
    if scale.numel() != 1 or not bool(torch.isfinite(scale).all()):
        raise CheckpointError(
            f"text encoder: the scale of {name} in {where} must be one finite number, "
            f"came {list(scale.shape)}; {REMEDY}"
        )
    return scale.reshape(())


def _names(dtypes: tuple[torch.dtype, ...] | list[torch.dtype]) -> str:
    return " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def _listed(names: list[str], separator: str = ", ") -> str:
    rest = f"{separator}and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return separator.join(names[:LISTED]) + rest
