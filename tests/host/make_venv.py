"""The environment that the host tests run ComfyUI in: made once, found again by a hash of its contents.

``python tests/host/make_venv.py`` prints the path of its interpreter. One environment, made from the
requirements of the checkout at ``COMFYUI_DIR``, serves every tested version; what the checkouts named in
``TURBOWAN_HOSTS`` need on top is added. torch, torchvision and torchaudio are the plain builds of PyPI, which
have no CPU variants there but run on a CPU; the media of the host's own workflow templates are left out.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
TORCH = ("torch==2.14.1", "torchvision==0.29.1", "torchaudio")
EXTRA = ("transformers<5",)  # ComfyUI before 0.20 fails with transformers 5
WITHOUT_DEPENDENCIES = ("comfyui-workflow-templates",)
BUNDLES = ("comfyui-frontend-package", "comfyui-workflow-templates", "comfyui-embedded-docs")
_UNMET = """
import sys
from importlib.metadata import PackageNotFoundError, version
from pip._vendor.packaging.requirements import Requirement
for line in sys.argv[1:]:
    requirement = Requirement(line)
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        found = None
    if found is None or not requirement.specifier.contains(found, prereleases=True):
        print(line)
"""


def comfyui_dir() -> Path | None:
    """The checkout the tests run against, or None where there is none."""
    path = Path(os.environ.get("COMFYUI_DIR") or "~/comfy/ComfyUI").expanduser()
    return path if (path / "main.py").is_file() else None


def requirement_lines(path: Path) -> list[str]:
    lines = (line.split("#")[0].strip() for line in path.read_text().splitlines())
    return [line for line in lines if line]


def _name(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0].lower()


def environment_requirements(checkout: Path) -> list[str]:
    """What goes in besides torch: the host's requirements and the pack's own."""
    torch_names = {_name(line) for line in TORCH}
    lines = requirement_lines(checkout / "requirements.txt")
    host = [line for line in lines if _name(line) not in torch_names]
    return [*host, *EXTRA, *requirement_lines(REPO / "requirements.txt")]


def venv_path(checkout: Path) -> Path:
    key = "\n".join([*TORCH, *environment_requirements(checkout), sys.version.split()[0]])
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return cache / "turbowan" / f"host-venv-{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def venv_python(checkout: Path) -> Path | None:
    """The interpreter of the finished environment, or None where it has not been made."""
    path = venv_path(checkout)
    return path / "bin" / "python" if (path / ".complete").is_file() else None


def make(checkout: Path) -> Path:
    """Create the environment unless it is there; return its interpreter."""
    path = venv_path(checkout)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{path}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (path / ".complete").is_file():
            return path / "bin" / "python"
        print(f"making the ComfyUI test environment (about 6 GB, some minutes): {path}", file=sys.stderr)
        _run(sys.executable, "-m", "venv", "--clear", str(path))
        python = path / "bin" / "python"
        _pip(python, *TORCH)
        lines = environment_requirements(checkout)
        _pip(python, "--no-deps", *(line for line in lines if _name(line) in WITHOUT_DEPENDENCIES))
        _pip(python, *TORCH[:2], *(line for line in lines if _name(line) not in WITHOUT_DEPENDENCIES))
        (path / ".complete").touch()
    return python


def unmet(python: Path, checkout: Path) -> list[str]:
    """Requirements of ``checkout`` that the environment lacks; any version of the web bundles will do."""
    lines = [line for line in requirement_lines(checkout / "requirements.txt") if _name(line) not in BUNDLES]
    command = [str(python), "-c", _UNMET, *lines]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout.splitlines()


def complete(python: Path, checkout: Path) -> None:
    """Add what another version needs, without moving what is there."""
    lines = unmet(python, checkout)
    if lines:
        _pip(python, *TORCH[:2], *EXTRA, *lines)
    left = unmet(python, checkout)
    if left:
        raise RuntimeError(f"{checkout} needs what the shared environment cannot have: {', '.join(left)}")


def _pip(python: Path, *requirements: str) -> None:
    _run(str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=sys.stderr, timeout=3600)


def main() -> None:
    checkout = comfyui_dir()
    if checkout is None:
        sys.exit("make_venv: a ComfyUI checkout must exist at COMFYUI_DIR or ~/comfy/ComfyUI; clone one there")
    others = [Path(other).expanduser() for other in os.environ.get("TURBOWAN_HOSTS", "").split(",") if other]
    for other in others:
        if not (other / "requirements.txt").is_file():
            sys.exit(f"make_venv: TURBOWAN_HOSTS must name ComfyUI checkouts, {other} has no requirements.txt")
    python = make(checkout)
    for other in others:
        complete(python, other)
    print(python)


if __name__ == "__main__":
    main()
