"""Tells ComfyUI's weight streaming where in a file the weights lie.

Streaming (dynamic VRAM) reads a weight from the file straight into pinned memory if the weight's storage bears a
`TensorFileSlice`, as the host's own safetensors reader leaves it there. Without one it copies from the memory
mapping, a page at a time on one core.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from typing import BinaryIO

import comfy.memory_management
from torch import Tensor

from ..turbo_core.file_spans import Spans, span_of

log = logging.getLogger("turbowan")

MARK = "_comfy_tensor_file_slice"
FIELDS = ("file_ref", "lock", "offset", "size")


def mark(tensors: Iterable[Tensor], spans: Spans) -> int:
    """Leave the host's mark on each tensor that lies in a file whole; the number of marked ones.

    The file stays open as long as one of the marked storages lives.
    """
    slice_type = getattr(comfy.memory_management, "TensorFileSlice", None)
    if slice_type is None:
        return 0
    if slice_type._fields != FIELDS:
        log.info("this ComfyUI notes file slices as %s; weights are read through the mapping", slice_type._fields)
        return 0
    files: dict[str, BinaryIO] = {}
    lock = threading.Lock()
    marked = 0
    for tensor in tensors:
        span = span_of(tensor, spans)
        if span is None:
            continue
        path = str(span.path)
        if path not in files:
            files[path] = open(path, "rb", buffering=0)  # noqa: SIM115 (closed with the last storage that holds it)
        setattr(tensor.untyped_storage(), MARK, slice_type(files[path], lock, span.offset, span.size))
        marked += 1
    return marked
