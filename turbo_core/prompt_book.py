"""A prompt book: encoded prompts in one read-only safetensors file, found by their text alone.

For machines without the text encoder: the demo model brings its prompts so, and `turbowan prompts` writes others.
Metadata ``book`` is JSON, text → {layout, checksum}; a prompt's tensors are named ``<its number>.<name>``.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from .errors import CheckpointError
from .prompt_entry import Conditioning, Packed, pack, unpack

FORMAT = "turbowan-prompts-1"
SUGGESTED = 3


@dataclass(frozen=True, kw_only=True)
class PromptBook:
    path: Path
    entries: Mapping[str, Mapping[str, Any]]

    @property
    def texts(self) -> list[str]:
        return list(self.entries)

    def get(self, text: str) -> Conditioning | None:
        """The encoded prompt, or None where the book lacks it; CheckpointError where the file is damaged."""
        entry = self.entries.get(text.strip())
        if entry is None:
            return None
        prefix = f"{self.texts.index(text.strip())}."
        with safe_open(self.path, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 - no mapping
            tensors = {name.removeprefix(prefix): file.get_tensor(name) for name in names}
        packed = Packed(tensors=tensors, layout=entry["layout"])
        if packed.checksum != entry["checksum"]:
            raise CheckpointError(
                f"prompts: {self.path} must hold {text!r} as it was written, its checksum differs; get the file again"
            )
        return unpack(packed)

    def close_to(self, text: str) -> list[str]:
        """The prompts most like `text`."""
        return difflib.get_close_matches(text, self.texts, SUGGESTED, cutoff=0.0)


def open_book(path: Path) -> PromptBook:
    """Read the list of prompts; CheckpointError where the file is no prompt book."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        if metadata.get("format") != FORMAT:
            raise ValueError(f"its format is {metadata.get('format')!r}")
        return PromptBook(path=path, entries=json.loads(metadata["book"]))
    except (SafetensorError, OSError, ValueError, LookupError) as error:
        raise CheckpointError(
            f"prompts: {path} must be a prompt book, {error}; write one with `turbowan prompts`, or get it again"
        ) from error


def write_book(path: Path, prompts: Mapping[str, Conditioning]) -> None:
    """Write the book, whole or not at all."""
    tensors, book = {}, {}
    for number, (text, conditioning) in enumerate(prompts.items()):
        packed = pack(conditioning)
        tensors |= {f"{number}.{name}": tensor for name, tensor in packed.tensors.items()}
        book[text.strip()] = {"layout": packed.layout, "checksum": packed.checksum}
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        unfinished.write_bytes(save(tensors, {"format": FORMAT, "book": json.dumps(book, ensure_ascii=False)}))
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
