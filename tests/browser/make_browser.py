"""What the browser tests need: a chromium on the PATH, node, and playwright-core in the cache folder.

``python tests/browser/make_browser.py`` installs playwright-core with npm; it downloads no browser of its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

PLAYWRIGHT = "playwright-core@1.65.1"


def chromium() -> str | None:
    names = (os.environ.get("TURBOWAN_CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome")
    return next((path for name in names if name and (path := shutil.which(name))), None)


def node() -> str | None:
    return shutil.which("node")


def playwright() -> Path | None:
    path = _folder() / "node_modules" / "playwright-core"
    return path if path.is_dir() else None


def lacking() -> list[str]:
    """Names of what is not there."""
    found = {"chromium": chromium(), "node": node(), "playwright-core": playwright()}
    return [name for name, path in found.items() if path is None]


def make() -> None:
    if playwright() is None and shutil.which("npm"):
        _folder().mkdir(parents=True, exist_ok=True)
        command = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(_folder()), PLAYWRIGHT]
        subprocess.run(command, check=True, stdout=sys.stderr, timeout=900)


def _folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "turbowan" / "playwright"


if __name__ == "__main__":
    make()
    if lacking():
        names = ", ".join(lacking())
        sys.exit(f"make_browser: chromium, node and npm must be installed, {names} cannot be found; see `make browser`")
