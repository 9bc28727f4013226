"""Convert a checkpoint to safetensors with native names, in the memory of about one tensor.

Quantized layers keep their codes and scales; ``int8=True`` quantizes an unquantized file on the way. The metadata
says which model and which expert it is, and whether it is TurboDiffusion's: new names would hide that.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from .block_int8 import quantize_layer
from .checkpoint import TURBODIFFUSION, Checkpoint, read
from .errors import SettingsError
from .native_names import expected_tensors, is_block_linear_weight
from .safetensors_stream import Plan, Spec, writing

Progress = Callable[[int, int], None]  # bytes just written, bytes in all


def convert(
    source: Path,
    target: Path,
    *,
    int8: bool = False,
    expert: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Checkpoint:
    """Write ``source`` as ``target``, whole or not at all; returns the source as it was read."""
    _check_target(source, target, force)
    checkpoint = read(source)
    if int8 and checkpoint.config.quantized:
        raise SettingsError(
            f"convert: --int8 must get an unquantized file, {source.name} is quantized; leave --int8 out"
        )
    plan = Plan(_specs(checkpoint, int8), _metadata(checkpoint, expert))
    free = shutil.disk_usage(target.parent).free
    if free < plan.file_bytes:
        raise SettingsError(
            f"convert: {target.parent} must have {_gigabytes(plan.file_bytes)} free, it has "
            f"{_gigabytes(free)}; free some space or choose another folder"
        )

    def report(written: int) -> None:
        if progress is not None:
            progress(written, plan.data_bytes)

    with writing(target, plan, report) as writer:
        for name, tensor in _tensors(checkpoint, int8):
            writer.write(name, tensor)
    return checkpoint


def _check_target(source: Path, target: Path, force: bool) -> None:
    if target.suffix.lower() not in (".safetensors", ".sft"):
        raise SettingsError(f"convert: the output must end in .safetensors, came {target.name}; rename it")
    if not target.parent.is_dir():
        raise SettingsError(f"convert: the folder {target.parent} must exist, it does not; make it first")
    if target.is_dir():
        raise SettingsError(f"convert: the output must be a file, {target} is a folder; add a file name")
    if target.exists() and source.exists() and target.samefile(source):
        raise SettingsError(f"convert: the output must be another file than the input {source}; choose another name")
    if target.exists() and not force:
        raise SettingsError(
            f"convert: {target} must not exist, it does; choose another name, or overwrite it with --force"
        )


def _specs(checkpoint: Checkpoint, int8: bool) -> dict[str, Spec]:
    config = replace(checkpoint.config, quantized=checkpoint.config.quantized or int8)
    quantized = {"codes": torch.int8, "scale": torch.float32}
    return {
        name: Spec(dtype=quantized.get(entry.kind) or checkpoint.tensors[name].dtype, shape=entry.shape)
        for name, entry in expected_tensors(config).items()
    }


def _tensors(checkpoint: Checkpoint, int8: bool) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in checkpoint.tensors.items():
        if int8 and is_block_linear_weight(name, tensor):
            quantized = quantize_layer(name, tensor)
            layer = name.removesuffix(".weight")
            yield f"{layer}.int8_weight", quantized.codes
            yield f"{layer}.scale", quantized.scale
        else:
            yield name, tensor


def _metadata(checkpoint: Checkpoint, expert: str | None) -> dict[str, str]:
    if expert is not None and checkpoint.config.family != "i2v":
        raise SettingsError(
            f"convert: --expert is for an image-to-video model, came {checkpoint.config.name}; leave it out"
        )
    expert = expert or checkpoint.expert
    metadata = {
        "format": "pt",
        "model": checkpoint.config.name,
        TURBODIFFUSION: "true" if checkpoint.turbodiffusion else "false",
    }
    return metadata | ({"expert": expert} if expert else {})


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
