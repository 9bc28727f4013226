"""Whether a command may write its output, asked before the work and not behind it."""

from __future__ import annotations

import os
from pathlib import Path


def check_output(path: Path, ending: str, force: bool, command: str) -> None:
    """SettingsError unless a file of that ending may be written there."""
    from ..errors import SettingsError

    if path.suffix.lower() != ending:
        raise SettingsError(f"{command}: the output must end in {ending}, came {path.name}; rename it")
    if not path.parent.is_dir():
        raise SettingsError(f"{command}: the folder {path.parent} must exist, it does not; make it first")
    if not os.access(path.parent, os.W_OK):
        raise SettingsError(f"{command}: the folder {path.parent} must be writable, it is not; choose another")
    if path.is_dir():
        raise SettingsError(f"{command}: {path} must be a file or not exist, it is a folder; choose another name")
    if path.exists() and not force:
        raise SettingsError(
            f"{command}: {path} must not exist, it does; choose another name, or overwrite it with --force"
        )
