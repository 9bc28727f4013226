"""Read a TurboDiffusion or native Wan checkpoint: file → recognised model, tensors under native names.

The model is recognised from the tensors alone. Every key and shape is held against it; values are looked at
only where that is cheap (scales, norms, biases, modulation), so that a memory-mapped file stays unread.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from . import foreign, native_names
from .config import HEAD_DIM, MODEL_NAMES, PATCH_SIZE, WanConfig
from .errors import CheckpointError, UnsupportedModelError
from .file_spans import Spans
from .native_names import Expected
from .weight_file import DOWNLOAD_AGAIN, open_weights

log = logging.getLogger("turbowan")

EXPERTS = ("high", "low")
TURBODIFFUSION = "turbodiffusion"  # a metadata key ("true" or "false"), or a tensor where ComfyUI saved the model
LISTED = 8  # keys named in a message; the rest is counted
SMALL = 1 << 15  # elements (a 14B modulation has 30,720); larger tensors stay unread
FLOATS = (torch.bfloat16, torch.float16, torch.float32)
KIND_DTYPES = {"float": FLOATS, "codes": (torch.int8,), "scale": (torch.float32,)}
OWN_INT8 = (
    "int8 of other tools does not fit: take TurboDiffusion's file, "
    "or quantize an unquantized one with `turbowan convert --int8`"
)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    path: Path
    config: WanConfig
    tensors: dict[str, Tensor] = field(repr=False)
    """Native Wan names; quantized Linears as ``X.int8_weight`` + ``X.scale`` (+ ``X.bias``)."""
    expert: str | None
    """"high" or "low" of an I2V pair: from the metadata, else from the file name, else None."""
    ignored: tuple[str, ...]
    """Harmless keys that were left out."""
    turbodiffusion: bool = True
    """TurboDiffusion's own weights (their network time is rounded), not some native Wan model's."""
    layout: str = ""
    """How the file was written, for people."""
    spans: Spans = field(default_factory=dict, repr=False)
    """Where the mapped tensors lie in the file."""


def read(path: str | os.PathLike[str]) -> Checkpoint:
    """Open, recognise and validate a checkpoint; raises CheckpointError or UnsupportedModelError."""
    file = open_weights(path)
    where = file.path.name
    tensors, ignored = native_names.unwrap(file.content, where)
    plain = native_names.plain_names(tensors, where)
    foreign.refuse_adapters(plain, where)
    prefix = native_names.find_prefix(plain)
    if prefix is None:
        foreign.refuse_unknown_prefix(plain, where, native_names.PREFIXES)
        foreign.refuse_not_wan(plain, where)
    native, harmless = native_names.to_native(plain, prefix or "", where)
    ignored += harmless
    mark = native.pop(TURBODIFFUSION, None)
    foreign.refuse_variants(native, where)
    config = recognise(native, where)
    linear_patch = native["patch_embedding.weight"].ndim == 2
    if linear_patch:
        native["patch_embedding.weight"] = native["patch_embedding.weight"].reshape(
            config.dim, config.in_dim, *config.patch_size
        )
    native = validate(native, config, where)
    if ignored:
        log.info("%s: left out %d keys the model does not need: %s", where, len(ignored), listed(ignored))
    turbodiffusion = _is_turbodiffusion(mark, file.metadata, config, linear_patch)
    names = "TurboDiffusion" if turbodiffusion else "native Wan"
    return Checkpoint(
        path=file.path,
        config=config,
        tensors=native,
        expert=_expert(file.metadata, file.path, config),
        ignored=tuple(ignored),
        turbodiffusion=turbodiffusion,
        layout=f"{file.container}, {names}, " + (f"prefix {prefix}" if prefix else "no prefix"),
        spans=file.spans,
    )


def recognise(tensors: Mapping[str, Tensor], where: str) -> WanConfig:
    """The configuration that the shapes of a few tensors imply (native names, patch embedding 2-D or 5-D)."""
    quantized = any(name.endswith(".int8_weight") for name in tensors)
    ffn = "blocks.0.ffn.0.int8_weight" if quantized else "blocks.0.ffn.0.weight"
    ranks = {"head.modulation": (3,), "patch_embedding.weight": (2, 5), "head.head.weight": (2,), ffn: (2,)}
    ranks |= {"text_embedding.0.weight": (2,), "time_embedding.0.weight": (2,)}
    missing = [name for name in ranks if name not in tensors]
    if missing:
        _raise_incomplete(where, "a Wan model", missing, tensors)
    for name, allowed in ranks.items():
        if tensors[name].ndim not in allowed:
            raise CheckpointError(
                f"checkpoint: {name} of {where} must have {' or '.join(map(str, allowed))} dimensions, "
                f"came {list(tensors[name].shape)}; {DOWNLOAD_AGAIN}"
            )
    patch = tensors["patch_embedding.weight"]
    volume = math.prod(PATCH_SIZE)
    dim, columns = patch.shape[0], math.prod(patch.shape[1:])
    if columns % volume or (patch.ndim == 5 and tuple(patch.shape[2:]) != PATCH_SIZE):
        raise UnsupportedModelError(
            f"checkpoint: patch_embedding.weight of {where} must be [dim, in·4] or [dim, in, 1, 2, 2], "
            f"came {list(patch.shape)}; {foreign.STOCK_LOADER}"
        )
    out_dim = tensors["head.head.weight"].shape[0] // volume
    foreign.refuse_channels(columns // volume, out_dim, where)
    if dim == 0 or dim % HEAD_DIM:
        raise UnsupportedModelError(
            f"checkpoint: the width of {where} must be a multiple of {HEAD_DIM}, came {dim}; {foreign.STOCK_LOADER}"
        )
    return WanConfig(
        dim=dim,
        ffn_dim=tensors[ffn].shape[0],
        num_heads=dim // HEAD_DIM,
        num_layers=_depth(tensors),
        in_dim=columns // volume,
        out_dim=out_dim,
        freq_dim=tensors["time_embedding.0.weight"].shape[1],
        text_dim=tensors["text_embedding.0.weight"].shape[1],
        has_proj_l=any(".self_attn.proj_l." in name for name in tensors),
        quantized=quantized,
    )


def validate(tensors: Mapping[str, Tensor], config: WanConfig, where: str) -> dict[str, Tensor]:
    """Hold names, shapes, dtypes and the cheap values of native tensors against the configuration.

    Returns:
        The same tensors in the model's own order, whatever the file's was.
    """
    expected = native_names.expected_tensors(config)
    missing = [name for name in expected if name not in tensors]
    unexpected = [name for name in tensors if name not in expected]
    if missing:
        _raise_incomplete(where, config.name, missing, tensors, unexpected)
    if unexpected:
        raise CheckpointError(
            f"checkpoint: {where} must hold {config.name} and nothing else, "
            f"{len(unexpected)} unknown keys came: {listed(unexpected)}; "
            f"if it is another Wan variant, {foreign.STOCK_LOADER}"
        )
    _check_shapes(tensors, expected, where)
    _check_values(tensors, expected, where)
    usual = {dim: depth for (_, dim, depth) in MODEL_NAMES}.get(config.dim, config.num_layers)
    if usual != config.num_layers:
        log.warning(
            "%s: a Wan model of width %d has %d blocks, this file has %d; unless it was pruned on purpose, "
            "the video will be wrong",
            *(where, config.dim, usual, config.num_layers),
        )
    return {name: tensors[name] for name in expected}


def _check_shapes(tensors: Mapping[str, Tensor], expected: Mapping[str, Expected], where: str) -> None:
    wrong = []
    for name, entry in expected.items():
        tensor = tensors[name]
        allowed = KIND_DTYPES[entry.kind]
        if tuple(tensor.shape) != entry.shape:
            wrong.append(f"{name} must be {list(entry.shape)}, came {list(tensor.shape)}")
        elif tensor.dtype not in allowed:
            names = " or ".join(map(dtype_name, allowed))
            wrong.append(f"{name} must be {names}, came {dtype_name(tensor.dtype)}")
        elif tensor.layout != torch.strided or tensor.device.type != "cpu":
            wrong.append(f"{name} must be a plain tensor with data, came {tensor.layout} on {tensor.device}")
    if wrong:
        int8 = any(".int8_weight" in line or ".scale " in line for line in wrong)
        raise CheckpointError(f"checkpoint: {where}: {listed(wrong, '; ')}; {OWN_INT8 if int8 else DOWNLOAD_AGAIN}")


def _check_values(tensors: Mapping[str, Tensor], expected: Mapping[str, Expected], where: str) -> None:
    for name, entry in expected.items():
        tensor = tensors[name]
        if entry.kind == "codes" or (tensor.numel() > SMALL and entry.kind != "scale"):
            continue
        finite = torch.isfinite(tensor)
        if not bool(finite.all()):
            raise CheckpointError(
                f"checkpoint: {name} of {where} must be finite, "
                f"{int((~finite).sum())} of its {tensor.numel()} values are NaN or infinite; "
                f"the file is damaged: {DOWNLOAD_AGAIN}"
            )
        if entry.kind == "scale" and not bool((tensor > 0).all()):
            raise CheckpointError(
                f"checkpoint: {name} of {where} must be positive, its smallest value is "
                f"{tensor.min().item():g}; the file is damaged: {DOWNLOAD_AGAIN}"
            )


def _raise_incomplete(
    where: str, model: str, missing: list[str], tensors: Mapping[str, Tensor], unexpected: Iterable[str] = ()
) -> None:
    unexpected = list(unexpected)
    message = f"checkpoint: {where} must hold every tensor of {model}, "
    message += f"{len(missing)} are missing: {listed(missing)}"
    holes = sorted(set(range(_depth(tensors))) - _block_indices(tensors))
    if holes:
        message += f" (blocks {listed(map(str, holes))} are missing entirely)"
    if unexpected:
        message += f"; {len(unexpected)} unknown keys came: {listed(unexpected)}"
    if re.search(r"-\d+-of-\d+", where):
        remedy = "this is one part of a sharded model: take a single-file version, or merge the parts"
    elif any(name.endswith(".int8_weight") and name.replace(".int8_weight", ".weight") in tensors for name in missing):
        remedy = f"the file is only partly quantized; {OWN_INT8}"
    else:
        remedy = f"the file is incomplete: {DOWNLOAD_AGAIN}"
    raise CheckpointError(f"{message}; {remedy}")


def _block_indices(tensors: Iterable[str]) -> set[int]:
    parts = (name.split(".", 2) for name in tensors if name.startswith("blocks."))
    return {int(part[1]) for part in parts if len(part) == 3 and part[1].isdecimal()}


def _depth(tensors: Mapping[str, Tensor]) -> int:
    """One more than the last block's index; a nonsensical index cannot make it exceed the number of tensors."""
    return min(1 + max(_block_indices(tensors), default=-1), len(tensors))


def _is_turbodiffusion(mark: Tensor | None, metadata: Mapping[str, str], config: WanConfig, linear_patch: bool) -> bool:
    """What ComfyUI saved (a tensor) or `convert` noted (metadata), because native names hide it; else the signs that
    only TurboDiffusion's own files bear."""
    if mark is not None:
        return bool(mark.any())
    noted = metadata.get(TURBODIFFUSION)
    if noted in ("true", "false"):
        return noted == "true"
    return linear_patch or config.has_proj_l or config.quantized


def _expert(metadata: Mapping[str, str], path: Path, config: WanConfig) -> str | None:
    if metadata.get("expert") in EXPERTS:
        return metadata["expert"]
    if config.family != "i2v":
        return None
    words = re.split(r"[^a-z]+", path.stem.lower())
    named = [expert for expert in EXPERTS if expert in words or f"{expert}noise" in words]
    return named[0] if len(named) == 1 else None


def listed(items: Iterable[str], separator: str = ", ") -> str:
    """The first few items and the count of the others."""
    items = list(items)
    more = f" and {len(items) - LISTED} more" if len(items) > LISTED else ""
    return separator.join(items[:LISTED]) + more


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
