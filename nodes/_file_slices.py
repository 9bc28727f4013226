"""Tells ComfyUI's weight streaming where in a file the weights lie.

Streaming (dynamic VRAM) reads a weight from the file straight into pinned memory if the weight's storage bears a
`TensorFileSlice`, as the host's own safetensors reader leaves it there. Without one it copies from the memory
mapping, a page at a time on one core.
"""

from __future__ import annotations

import importlib.util
import logging
import threading
from collections.abc import Iterable
from typing import Any, BinaryIO

from torch import Tensor

from ..turbo_core.file_spans import Spans, span_of

log = logging.getLogger("turbowan")

MARK = "_comfy_tensor_file_slice"


def mark(tensors: Iterable[Tensor], spans: Spans) -> int:
    """Leave the host's mark on each tensor that lies in a file whole; the number of marked ones.

    The file stays open as long as one of the marked storages lives. ComfyUI 0.18 wants the thread that will read,
    which is the one that loads; later versions want a lock.
    """
    slice_type = _slice_type()
    if slice_type is None:
        return 0
    files: dict[str, BinaryIO] = {}
    shared = {"lock": threading.Lock(), "thread_id": threading.get_ident()}
    unknown = set(slice_type._fields) - {"file_ref", "offset", "size", *shared}
    if unknown:
        log.info("this ComfyUI notes %s of file slices too; weights are read through the mapping", sorted(unknown))
        return 0
    marked = 0
    for tensor in tensors:
        span = span_of(tensor, spans)
        if span is None:
            continue
        path = str(span.path)
        if path not in files:
            files[path] = open(path, "rb", buffering=0)  # noqa: SIM115 (closed with the last storage that holds it)
        known = shared | {"file_ref": files[path], "offset": span.offset, "size": span.size}
        slice_ = slice_type(**{name: known[name] for name in slice_type._fields})
        setattr(tensor.untyped_storage(), MARK, slice_)
        marked += 1
    return marked


def _slice_type() -> type[Any] | None:
    """The host's named tuple; ComfyUI 0.8 has neither the module nor the type."""
    if importlib.util.find_spec("comfy.memory_management") is None:
        return None
    import comfy.memory_management

    return getattr(comfy.memory_management, "TensorFileSlice", None)
