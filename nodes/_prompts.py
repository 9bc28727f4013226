"""What TurboPromptCache asks of the host: the graph that feeds `clip`, its files, folders, and the encoding itself."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import comfy.model_management
import comfyui_version
import folder_paths
from comfy.cli_args import args

from ..turbo_core.errors import ConditioningError
from ..turbo_core.prompt_book import PromptBook, open_book
from ..turbo_core.prompt_cache import PromptCache
from ..turbo_core.prompt_entry import Conditioning, NotPlainError, require_finite
from ..turbo_core.prompt_key import host_settings, is_link, prompt_key
from .folders import PROMPT_BOOKS

if TYPE_CHECKING:
    from comfy.sd import CLIP
    from comfy_api.latest import io

log = logging.getLogger("turbowan")

MEGABYTE = 10**6
EMBEDDING = re.compile(r"embedding:([^\s,():]+)")
EMBEDDING_ENDINGS = ("", ".safetensors", ".pt", ".bin")
# What the last lazy check found, until the same node runs a moment later: another process may remove the file between.
_found: dict[str, Conditioning] = {}


def clip_link(hidden: io.HiddenHolder) -> list[Any] | None:
    """The link that feeds `clip`, or None where nothing is connected."""
    link = hidden.dynprompt.get_node(hidden.unique_id)["inputs"].get("clip")
    return link if is_link(link) else None


def find_entry(text: str, link: list[Any], hidden: io.HiddenHolder, disk_mb: int) -> bool:
    """Whether the prompt is on disk; if so it is kept in memory until `from_cache` takes it."""
    key = _key(text, link, hidden)
    entry = _cache(disk_mb).get(key)
    _found.clear()
    if entry is not None:
        _found[key] = entry
    return entry is not None


def from_cache(
    text: str, link: list[Any], hidden: io.HiddenHolder, disk_mb: int, clip: CLIP | None
) -> tuple[Conditioning, str]:
    """The encoded prompt and a line that says where it came from."""
    cache, key = _cache(disk_mb), _key(text, link, hidden)
    entry = _found.pop(key, None) or cache.get(key)
    if entry is not None:
        return entry, "prompt from disk"
    if clip is None:
        raise ConditioningError(
            "TurboPromptCache: clip must be a text encoder, got none; connect Load CLIP (type 'wan') and choose "
            "umt5_xxl_fp8_e4m3fn_scaled.safetensors"
        )
    conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(text))
    require_finite(conditioning, "TurboPromptCache")
    try:
        cache.put(key, text, conditioning)
    except OSError as error:  # a full or read-only disk costs the next run time, this one nothing
        log.warning("TurboPromptCache: the prompt could not be kept in %s: %s", cache.folder, error)
        return conditioning, f"prompt encoded, not kept: {error.strerror or error}"
    except NotPlainError as error:  # another pack's encoder, perhaps; its conditioning is the graph's own affair
        log.warning("TurboPromptCache: the prompt is passed on, not kept: %s", error)
        return conditioning, f"prompt encoded, not kept: it holds {error.found}"
    return conditioning, f"prompt encoded and kept ({cache.size() / MEGABYTE:.0f} of {disk_mb} MB)"


def from_book(text: str) -> tuple[Conditioning, str]:
    """The prompt from the first prompt book that has it."""
    books = _books()
    for book in books:
        conditioning = book.get(text)
        if conditioning is not None:
            return conditioning, f"prompt from {book.path.name}"
    near = [prompt for book in books for prompt in book.close_to(text)]
    known = f"the nearest that it finds are {', '.join(map(repr, near[:3]))}" if near else "there is no book"
    raise ConditioningError(
        f"TurboPromptCache: without clip the prompt must be in a prompt book, got {text!r}; {known}. Connect Load CLIP "
        f"(type 'wan'), or write a book with `turbowan prompts` and put it into models/{PROMPT_BOOKS}"
    )


def book_stamps() -> list[Any]:
    """Path, size and time of every prompt book: other ones may have other prompts."""
    return [[str(path), *_stamp(path)] for path in _book_paths()]


def _books() -> list[PromptBook]:
    return [open_book(path) for path in _book_paths()]


def _book_paths() -> list[Path]:
    """The user's, by name, then the demo model's."""
    folders = map(Path, folder_paths.get_folder_paths(PROMPT_BOOKS))
    return [path for folder in folders for path in sorted(folder.glob("*.safetensors"))]


def _cache(disk_mb: int) -> PromptCache:
    return PromptCache(folder=Path(folder_paths.get_user_directory()) / "turbowan_prompts", limit=disk_mb * MEGABYTE)


def _key(text: str, link: list[Any], hidden: io.HiddenHolder) -> str:
    device = comfy.model_management.text_encoder_device().type
    others = [*host_settings(comfyui_version.__version__, device, vars(args)), *_embeddings(text)]
    return prompt_key(text, link, hidden.dynprompt.get_node, _stamps, others)


def _stamps(value: str) -> list[Any]:
    """Size and time of every file that `value` may name: in any of the host's model folders, or as a path."""
    if not value or "\0" in value:
        return []
    found = []
    for folder in sorted(folder_paths.folder_names_and_paths):
        path = folder_paths.get_full_path(folder, value)
        if path is not None:
            found.append([folder, *_stamp(path)])
    if os.path.isabs(value) and os.path.isfile(value):
        found.append(["", *_stamp(value)])
    return found


def _embeddings(text: str) -> list[Any]:
    """Stamps of the textual inversions that a prompt names, as ``embedding:name``."""
    names = (name + ending for name in EMBEDDING.findall(text) for ending in EMBEDDING_ENDINGS)
    paths = (folder_paths.get_full_path("embeddings", name) for name in names)
    return [["embedding", *_stamp(path)] for path in paths if path is not None]


def _stamp(path: str | Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns
