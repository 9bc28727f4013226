"""Where model files are kept: ComfyUI's folders and those of extra_model_paths.yaml, or a folder of the user's own."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from .catalogue import Folder
from .errors import SettingsError

PACK = Path(__file__).parents[1]
# folder → the older name that ComfyUI still searches
OLDER: dict[Folder, str] = {"diffusion_models": "unet", "text_encoders": "clip"}
EXTRA_PATHS = "extra_model_paths.yaml"


def base_folder() -> Path | None:
    """ComfyUI's base folder (with `models` and `custom_nodes` in it), or None where none is known.

    It is the one that this pack lies in, else COMFYUI_DIR, else the current folder if it is a checkout.
    """
    for place in _pack_places():
        if place.parent.name == "custom_nodes":
            return place.parent.parent
    named = os.environ.get("COMFYUI_DIR")
    if named:
        return Path(named).expanduser()
    here = Path.cwd()
    return here if (here / "custom_nodes").is_dir() and (here / "models").is_dir() else None


def own_folder() -> Path:
    """A models folder for who has no ComfyUI, in the user's own data."""
    if sys.platform == "win32":
        data = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    else:
        data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "turbowan" / "models"


def target_folder(folder: Folder, to: Path | None = None) -> Path:
    """Where a new file of that kind belongs: under `to`, else in ComfyUI's models, else in the user's own folder."""
    if to is not None:
        return to.expanduser() / folder
    base = base_folder()
    return (own_folder() if base is None else base / "models") / folder


def search_folders(folder: Folder, to: Path | None = None) -> tuple[Path, ...]:
    """The folders that may hold a file of that kind, in ComfyUI's order; those that do not exist are left out."""
    return tuple(dict.fromkeys(place for place in _candidates(folder, to) if place.is_dir()))


def find(name: str, folder: Folder, to: Path | None = None) -> Path | None:
    """The file of that name (subfolders count as part of it), or None."""
    for place in search_folders(folder, to):
        if (place / name).is_file():
            return place / name
    return None


def _candidates(folder: Folder, to: Path | None) -> Iterator[Path]:
    names = [folder, OLDER[folder]] if folder in OLDER else [folder]
    if to is not None:
        yield from (to.expanduser() / name for name in names)
        return
    base = base_folder()
    if base is None:
        yield own_folder() / folder
        return
    yield from (base / "models" / name for name in names)
    yield from _extra_folders(base / EXTRA_PATHS, names)


def _extra_folders(file: Path, names: list[str]) -> Iterator[Path]:
    """The folders that ComfyUI's extra_model_paths.yaml adds; nothing where it is absent."""
    if not file.is_file():
        return
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise SettingsError(f"{file}: PyYAML must be installed to read it; run `pip install pyyaml`") from error
    try:
        sections = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise SettingsError(f"{file}: must be YAML, {error}; correct it as its .example shows") from error
    for section in sections.values() if isinstance(sections, dict) else ():
        if not isinstance(section, dict):
            continue
        base = file.parent / os.path.expandvars(os.path.expanduser(str(section.get("base_path") or "")))
        for name in names:
            yield from (base / line.strip() for line in str(section.get(name) or "").splitlines() if line.strip())


def _pack_places() -> Iterator[Path]:
    """Where the pack lies: as it was started (a link in custom_nodes stays a link), and as it was imported."""
    started = Path(os.path.abspath(sys.argv[0])) if sys.argv and sys.argv[0] else None
    if started is not None:
        yield started.parent if started.name == "__main__.py" else started
    yield PACK
