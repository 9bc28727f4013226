"""Write a safetensors file tensor by tensor, so that no more than one of them is ever in memory.

    8 bytes: header length, little endian │ JSON header, padded with spaces to 8 │ data

Shapes and dtypes are known beforehand, so the header comes first and every tensor is written at its own
offset. Wider dtypes come first, which keeps each tensor aligned for memory mapping. The file grows under a
temporary name beside the target and takes the target's name only when it is whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int8: "I8",
    torch.uint8: "U8",
}
CHUNK = 16 << 20  # bytes handed to the system at once, and reported as progress
ALIGNMENT = 8


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What a tensor of the file will be."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * prod(self.shape)


class Plan:
    """Header and offsets of a file to come."""

    def __init__(self, specs: Mapping[str, Spec], metadata: Mapping[str, str]) -> None:
        self.specs = dict(specs)
        self.offsets: dict[str, int] = {}
        end = 0
        header: dict[str, object] = {"__metadata__": dict(metadata)}
        for name, spec in sorted(specs.items(), key=lambda item: -item[1].dtype.itemsize):
            self.offsets[name] = end
            end += spec.nbytes
            header[name] = {
                "dtype": DTYPE_NAMES[spec.dtype],
                "shape": list(spec.shape),
                "data_offsets": [self.offsets[name], end],
            }
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % ALIGNMENT)
        self.head = len(text).to_bytes(8, "little") + text
        self.data_bytes = end

    @property
    def file_bytes(self) -> int:
        return len(self.head) + self.data_bytes


class Writer:
    """Takes each tensor of a plan once, in any order."""

    def __init__(self, file: BinaryIO, plan: Plan, progress: Callable[[int], None]) -> None:
        self._file, self._plan, self._progress = file, plan, progress
        self._waiting = set(plan.specs)
        file.write(plan.head)

    def write(self, name: str, tensor: Tensor) -> None:
        spec = self._plan.specs[name]
        assert (tensor.dtype, tuple(tensor.shape)) == (spec.dtype, spec.shape), (name, spec, tensor.shape)
        self._waiting.remove(name)
        self._file.seek(len(self._plan.head) + self._plan.offsets[name])
        data = memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
        for start in range(0, len(data), CHUNK):
            part = data[start : start + CHUNK]
            self._file.write(part)
            self._progress(len(part))

    def finish(self) -> None:
        assert not self._waiting, f"never written: {sorted(self._waiting)}"
        self._file.flush()
        os.fsync(self._file.fileno())


@contextmanager
def writing(target: Path, plan: Plan, progress: Callable[[int], None]) -> Iterator[Writer]:
    """A writer on a temporary file that becomes ``target`` at a clean end and vanishes at any other."""
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            writer = Writer(file, plan, progress)
            yield writer
            writer.finish()
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
