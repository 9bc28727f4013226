"""Encoded prompts kept in a folder, one safetensors file each, the least recently used ones leaving first.

Processes may share the folder: a file appears whole under its name (written beside it, then renamed), is read whole,
and is held against the checksum in it. One that fails is removed, and its prompt encoded again.
"""

from __future__ import annotations

import json
import logging
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError

from .prompt_entry import Conditioning, Packed, pack, unpack

log = logging.getLogger("turbowan")

FORMAT = "turbowan-prompt-1"
ENDING = ".safetensors"
UNFINISHED = ".partial"
ABANDONED_AFTER = 3600  # seconds; an unfinished file that old belongs to a process that died


@dataclass(frozen=True, kw_only=True)
class PromptCache:
    folder: Path
    limit: int
    """Bytes that all entries together may take; the newest entry stays whatever its size."""

    def path(self, key: str) -> Path:
        return self.folder / f"{key}{ENDING}"

    def get(self, key: str) -> Conditioning | None:
        """The entry, which counts as used now; None if there is none, or only a damaged one, which is removed."""
        path = self.path(key)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:  # Windows: another process writes it at this moment; somebody else's file; a lost disk
            log.info("prompt cache: %s cannot be read now: %s", path, error)
            return None
        found = _decoded(content, key)
        if found is None:
            log.warning("prompt cache: %s is damaged; it is removed, and its prompt encoded again", path)
            _remove(path)
            return None
        with suppress(OSError):  # removed by another process, not ours to touch, or on a read-only disk
            os.utime(path)
        return found

    def put(self, key: str, text: str, conditioning: Conditioning) -> None:
        """Keep an encoded prompt; NotPlainError if it holds what cannot be written down."""
        packed = pack(conditioning)
        metadata = {
            "format": FORMAT,
            "key": key,
            "text": text,
            "layout": packed.layout,
            "checksum": packed.checksum,
        }
        content = safetensors.torch.save(packed.tensors, metadata)
        self.folder.mkdir(parents=True, exist_ok=True)
        _write_whole(self.path(key), content)
        self._make_room(self.path(key))

    def size(self) -> int:
        """Bytes of all entries."""
        return sum(status.st_size for _, status in self._entries())

    def _entries(self) -> Iterator[tuple[Path, os.stat_result]]:
        for path in self.folder.glob(f"*{ENDING}"):
            try:
                yield path, path.stat()
            except FileNotFoundError:
                continue  # another process was faster

    def _make_room(self, newest: Path) -> None:
        entries = sorted(self._entries(), key=lambda entry: entry[1].st_mtime_ns)
        total = sum(status.st_size for _, status in entries)
        for path, status in entries:
            if total <= self.limit:
                break
            if path != newest:
                _remove(path)
                total -= status.st_size
        for path in self.folder.glob(f"*{UNFINISHED}"):
            try:
                abandoned = time.time() - path.stat().st_mtime > ABANDONED_AFTER
            except FileNotFoundError:
                continue
            if abandoned:
                _remove(path)


def _decoded(content: bytes, key: str) -> Conditioning | None:
    """What an entry holds, or None where anything about it is wrong."""
    try:
        metadata = _metadata(content)
        packed = Packed(tensors=safetensors.torch.load(content), layout=metadata["layout"])
        sound = metadata["format"] == FORMAT and metadata["key"] == key and metadata["checksum"] == packed.checksum
    except (SafetensorError, ValueError, LookupError, TypeError):
        return None
    return unpack(packed) if sound else None


def _metadata(content: bytes) -> dict[str, str]:
    """The header's strings; safetensors gives them only for files by path."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length])["__metadata__"]


def _write_whole(path: Path, content: bytes) -> None:
    unfinished = path.with_name(f"{path.stem}.{os.getpid()}.{uuid.uuid4().hex[:8]}{UNFINISHED}")
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.replace(unfinished, path)
        except PermissionError:  # Windows: another process reads or writes this very entry
            if not path.exists():
                raise
    finally:
        unfinished.unlink(missing_ok=True)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:  # Windows: another process reads it; or a read-only disk
        log.info("prompt cache: %s stays for now: %s", path, error)
