"""Where in its file each memory-mapped tensor lies, so that it can be read without touching the mapping.

A mapping delivers a page at a time to the one thread that copies from it; reads of whole tensors run at the disk's
speed. torch tells nobody where it found a storage, but all storages of a file lie in one mapping:

    offset(storage) = address(storage) − address(mapping)

and the archive's directory says which offsets can be right.
"""

from __future__ import annotations

import json
import mmap
import struct
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

LOCAL_HEADER = struct.Struct("<26xHH")  # of a zip record: the lengths of its name and its extra field
STORAGES = "/data/"  # torch's archives hold each storage as NAME/data/N


@dataclass(frozen=True)
class FileSpan:
    """`size` bytes of `path` from `offset` on."""

    path: Path
    offset: int
    size: int


Spans = Mapping[int, FileSpan]  # by a storage's address


def span_of(tensor: Tensor, spans: Spans) -> FileSpan | None:
    """The bytes of a tensor that is the whole of its storage, or None."""
    span = spans.get(tensor.untyped_storage().data_ptr())
    whole = span is not None and tensor.is_contiguous() and tensor.nbytes == span.size
    return span if whole else None


def safetensors_spans(path: Path, tensors: Mapping[str, Tensor]) -> dict[int, FileSpan]:
    """The spans of a safetensors file's tensors, as its header names them."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    spans = {}
    for name, tensor in tensors.items():
        start, end = header[name]["data_offsets"]
        if tensor.nbytes == tensor.untyped_storage().nbytes() == end - start > 0:
            spans[tensor.untyped_storage().data_ptr()] = FileSpan(path, 8 + length + start, end - start)
    return spans


def archive_spans(path: Path, content: object) -> dict[int, FileSpan]:
    """The spans of the storages that torch mapped from a .pth; empty if they do not lie as the archive says."""
    sizes = {storage.data_ptr(): storage.nbytes() for storage in _storages(content) if storage.nbytes()}
    with zipfile.ZipFile(path) as archive:
        records = [r for r in archive.infolist() if STORAGES in r.filename and r.file_size]
    if not records or len(records) != len(sizes) or any(r.compress_type != zipfile.ZIP_STORED for r in records):
        return {}
    records.sort(key=lambda record: record.header_offset)
    addresses = sorted(sizes)
    mapping = addresses[0] - _data_offset(path, records[0])
    ends = [record.header_offset for record in records[1:]] + [path.stat().st_size]
    for address, record, end in zip(addresses, records, ends, strict=True):
        offset = address - mapping
        inside = record.header_offset + LOCAL_HEADER.size < offset and offset + sizes[address] <= end
        if mapping % mmap.PAGESIZE or sizes[address] != record.file_size or not inside:
            return {}
    return {address: FileSpan(path, address - mapping, sizes[address]) for address in addresses}


def _data_offset(path: Path, record: zipfile.ZipInfo) -> int:
    with path.open("rb") as file:
        file.seek(record.header_offset)
        name, extra = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
    return record.header_offset + LOCAL_HEADER.size + name + extra


def _storages(content: object) -> Iterator[torch.UntypedStorage]:
    if isinstance(content, Tensor):
        if content.layout == torch.strided:
            yield content.untyped_storage()
    elif isinstance(content, Mapping):
        for value in content.values():
            yield from _storages(value)
    elif isinstance(content, list | tuple):
        for value in content:
            yield from _storages(value)
