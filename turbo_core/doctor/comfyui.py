"""ComfyUI and this pack in it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from .finding import Finding, Surroundings, error, ok, version, warn

MIN_COMFYUI = (0, 8, 0)
NAME = re.compile(r'^name\s*=\s*"comfyui-turbowan"', re.MULTILINE)


def host(surroundings: Surroundings) -> Iterator[Finding]:
    base = surroundings.base
    if base is None:
        yield warn(
            "comfyui",
            "not found: this pack lies in no custom_nodes folder",
            "run this from ComfyUI's folder, or set COMFYUI_DIR; the command line works without ComfyUI",
        )
        return
    found = surroundings.comfyui or version_of(base)
    if found is None:
        yield ok("comfyui", f"its files lie in {base}, its program elsewhere (version not known)")
    elif version(found) < MIN_COMFYUI:
        yield error("comfyui", f"ComfyUI {found} in {base}", "TurboWan needs 0.8.0 or newer: update ComfyUI")
    else:
        yield ok("comfyui", f"ComfyUI {found}, files in {base}")


def copies(surroundings: Surroundings) -> Iterator[Finding]:
    """Two copies of the pack register the same nodes; one hides the other."""
    if surroundings.base is None:
        return
    found = [
        path.parent for path in sorted((surroundings.base / "custom_nodes").glob("*/pyproject.toml")) if _ours(path)
    ]
    if len(found) > 1:
        yield warn("comfyui", f"several copies of the pack: {', '.join(map(str, found))}", "keep one of them")
    elif found:
        yield ok("comfyui", f"this pack lies in {found[0]}")


def version_of(checkout: Path) -> str | None:
    """Without importing anything of it."""
    file = checkout / "comfyui_version.py"
    found = re.search(r'__version__\s*=\s*"([^"]+)"', file.read_text(encoding="utf-8")) if file.is_file() else None
    return found[1] if found else None


def _ours(pyproject: Path) -> bool:
    return NAME.search(pyproject.read_text(encoding="utf-8", errors="replace")) is not None
