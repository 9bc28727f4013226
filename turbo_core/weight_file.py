"""Open a weight file: safely (tensors only, nothing in it is ever executed) and lazily (memory-mapped).

The content decides the format, not the extension. Whatever is no weight file at all (a web page, a git-LFS
pointer, half a download) is told apart here, before any tensor is looked at.
"""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open

from .errors import CheckpointError, UnsupportedModelError
from .file_spans import Spans, archive_spans, safetensors_spans

Container = Literal["safetensors", "PyTorch"]

DOWNLOAD_AGAIN = "download it again and compare its size with the one on the download page"
HEAD_BYTES = 512
MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit
LFS_POINTER = b"version https://git-lfs"
ZIP_MAGIC = b"PK\x03\x04"
PICKLE_MAGIC = b"\x80"
# what torch.load raises for a broken file, besides the refusals of weights_only
BROKEN_PICKLE = (RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError, OSError)
# Memory refused, as torch and safetensors word it; by number on Windows, whose texts are translated
# (1455: the page file is too small, 8: not enough memory).
NO_MEMORY = re.compile(
    r"(cannot|can't) allocate memory|not enough memory"
    r"|\[winerror (8|1455)\]|error code: <?(8|1455)\b|os error (8|12|1455)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True)
class WeightFile:
    path: Path
    container: Container
    content: object
    """What the file holds: a dict of tensors, or for PyTorch files whatever was saved."""
    metadata: Mapping[str, str]
    spans: Spans
    """Where the mapped tensors lie in the file; what is not mapped has no span."""


def open_weights(path: str | os.PathLike[str]) -> WeightFile:
    """The file's content, memory-mapped; CheckpointError says why it is no weight file."""
    path = Path(path)
    size = _size_of(path)
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        raise CheckpointError(
            f"checkpoint: {path} must be readable, came {error.strerror}; check the file's permissions"
        ) from error
    # safetensors first: its first bytes are a number, and may look like any other format's
    header_bytes = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and header_bytes <= MAX_HEADER_BYTES:
        return _open_safetensors(path, header_end=8 + header_bytes, size=size)
    if head.startswith(ZIP_MAGIC):
        return _open_zip(path)
    if head.startswith(PICKLE_MAGIC):
        return _torch_load(path, mmap=False)
    _refuse_other_content(path, head, size)
    what = "zeros (an unfinished download)" if not head.strip(b"\0") else f"the bytes {head[:8]!r}"
    raise CheckpointError(
        f"checkpoint: {path.name} must be a .safetensors or PyTorch file, it starts with {what}; {DOWNLOAD_AGAIN}"
    )


def _size_of(path: Path) -> int:
    if path.is_dir():
        raise CheckpointError(
            f"checkpoint: {path} must be a model file, came a folder; choose the .pth or .safetensors file "
            "inside (sharded and distributed checkpoints have to be merged into one file first)"
        )
    if path.is_symlink() and not path.exists():
        raise CheckpointError(
            f"checkpoint: {path} must be a model file, came a link to {os.readlink(path)}, which does not "
            "exist; put the file there or mend the link"
        )
    if not path.exists():
        raise CheckpointError(
            f"checkpoint: {path} must exist, there is no such file; "
            "check the name (in ComfyUI it belongs in models/diffusion_models)"
        )
    if not path.is_file():
        raise CheckpointError(
            f"checkpoint: {path} must be a regular file, came a device or pipe; choose a .pth or .safetensors file"
        )
    size = path.stat().st_size
    if size == 0:
        raise CheckpointError(f"checkpoint: {path.name} must hold a model, came an empty file; {DOWNLOAD_AGAIN}")
    return size


def _refuse_other_content(path: Path, head: bytes, size: int) -> None:
    if head.startswith(b"GGUF") or path.suffix.lower() == ".gguf":
        raise UnsupportedModelError(
            f"checkpoint: {path.name} must be .safetensors or PyTorch, came GGUF; "
            "load it with the node “Unet Loader (GGUF)” of the ComfyUI-GGUF pack"
        )
    if head.startswith(LFS_POINTER):
        raise CheckpointError(
            f"checkpoint: {path.name} must be the model itself, came its git-LFS pointer ({size} bytes); "
            "run `git lfs pull` in that repository, or download the file from the model page"
        )
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError(
            f"checkpoint: {path.name} must be a model, came a web page ({size} bytes) saved under this name; "
            "download it with the page's download button (a gated model needs you to be logged in)"
        )
    if text.startswith((b"{", b"[")):
        raise CheckpointError(
            f"checkpoint: {path.name} must be a model, came JSON text ({size} bytes); if this is the index "
            "of a sharded model or a server's error message, download the model file itself"
        )


def _open_safetensors(path: Path, *, header_end: int, size: int) -> WeightFile:
    if header_end > size:
        raise CheckpointError(
            f"checkpoint: {path.name} must be complete, it ends at byte {size} inside its header of "
            f"{header_end} bytes; {DOWNLOAD_AGAIN}"
        )
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            content = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, AttributeError, KeyError) as error:
        raise CheckpointError(
            f"checkpoint: {path.name} must be a complete safetensors file ({size} bytes came): {error}; "
            f"{DOWNLOAD_AGAIN}"
        ) from error
    except (RuntimeError, OSError, MemoryError) as error:
        _refuse_for_memory(path, error)
        raise CheckpointError(
            f"checkpoint: {path.name} must be readable, mapping it failed ({_first_line(error)}); "
            "copy it to a local disk and load it from there"
        ) from error
    spans = safetensors_spans(path, content)
    return WeightFile(path=path, container="safetensors", content=content, metadata=metadata, spans=spans)


def _open_zip(path: Path) -> WeightFile:
    if not zipfile.is_zipfile(path):
        raise CheckpointError(
            f"checkpoint: {path.name} must be complete, the end of its archive is missing "
            f"({path.stat().st_size} bytes came); {DOWNLOAD_AGAIN}"
        )
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if not any(name.endswith("data.pkl") for name in names):
        raise CheckpointError(
            f"checkpoint: {path.name} must be saved by PyTorch, came a zip archive with {names[:3]}; "
            "unpack it and choose the model file inside"
        )
    return _torch_load(path, mmap=True)


def _torch_load(path: Path, *, mmap: bool) -> WeightFile:
    try:
        content = torch.load(os.fspath(path), map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        _refuse_for_memory(path, error)  # some torch versions wrap RuntimeErrors in it
        raise CheckpointError(
            f"checkpoint: {path.name} must hold tensors alone, came a pickle with "
            f"{_refused_object(error)}, which could run code and is therefore never loaded; "
            "get the original file, or a .safetensors version"
        ) from error
    except (*BROKEN_PICKLE, MemoryError) as error:
        _refuse_for_memory(path, error)
        raise CheckpointError(
            f"checkpoint: {path.name} must be a complete PyTorch file, reading it failed ({_first_line(error)}); "
            f"{DOWNLOAD_AGAIN}"
        ) from error
    spans = archive_spans(path, content) if mmap else {}
    return WeightFile(path=path, container="PyTorch", content=content, metadata={}, spans=spans)


def _refused_object(error: pickle.UnpicklingError) -> str:
    """The name in torch's ``Unsupported global: GLOBAL os.system was not …``."""
    _, found, rest = str(error).partition("GLOBAL ")
    return f"the Python object {rest.split()[0]}" if found else "something else than tensors in it"


def _refuse_for_memory(path: Path, error: Exception) -> None:
    """Raise if the system had no memory or address space left; the file itself may well be sound."""
    told = [line.strip() for line in str(error).splitlines() if NO_MEMORY.search(line)]
    if told or isinstance(error, MemoryError):
        raise CheckpointError(
            f"checkpoint: {path.name} must fit into memory and address space ({path.stat().st_size} bytes), the "
            f"system could not map the file ({told[0] if told else _first_line(error)}); free RAM (close other "
            "programs), or enlarge the page file (Windows), the swap space or the limit of this process (ulimit -v)"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
