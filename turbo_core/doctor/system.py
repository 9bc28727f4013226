"""The machine and Python: operating system, memory, disks, what packages are there."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from .finding import Finding, Surroundings, error, ok, version, warn

MIN_PYTHON = (3, 10)
LITTLE_MEMORY = 16e9  # bytes; a quantized 14B file has 14.5e9
LITTLE_DISK = 20e9
PACK = Path(__file__).parents[2]
OPTIONAL = {
    "huggingface_hub": "download",
    "transformers": "generate, batch, prompts",
    "sentencepiece": "generate, batch, prompts",
    "av": "generate, batch",
}


def python(_: Surroundings) -> Iterator[Finding]:
    said = f"Python {platform.python_version()} on {platform.platform()} ({sys.executable})"
    if sys.version_info < MIN_PYTHON:
        yield error("python", said, "TurboWan needs Python 3.10 or newer; update ComfyUI's Python")
    else:
        yield ok("python", said)
    if os.environ.get("TRITON_INTERPRET") == "1":
        yield warn("python", "TRITON_INTERPRET is 1: kernels are interpreted, very slowly", "unset TRITON_INTERPRET")


def windows(_: Surroundings) -> Iterator[Finding]:
    """What Triton needs there beside its package."""
    if sys.platform != "win32":
        return
    import ctypes

    try:
        ctypes.WinDLL("vcruntime140_1.dll")
        ctypes.WinDLL("msvcp140.dll")
        yield ok("windows", "the Visual C++ redistributable is installed")
    except OSError:
        yield error(
            "windows",
            "the Visual C++ redistributable is missing: torch and Triton cannot be loaded",
            "install vc_redist.x64.exe from Microsoft (Visual C++ Redistributable 2015-2022); Visual Studio is not "
            "needed",
        )
    include = Path(sysconfig.get_paths()["include"])
    libraries = include.parent / "libs"
    if (include / "Python.h").is_file() and any(libraries.glob("python3*.lib")):
        yield ok("windows", f"Python's include and libs lie in {include.parent}")
    else:
        yield warn(
            "windows",
            f"{include.parent} lacks Python's folders include and libs, as in the portable ComfyUI; Triton needs them",
            f"copy both from an installed Python {sys.version_info.major}.{sys.version_info.minor} (or from "
            "triton-windows' release page) into that folder",
        )


def memory(_: Surroundings) -> Iterator[Finding]:
    total, free = _memory()
    if total is None:
        yield ok("memory", "size not known (psutil is not installed)")
        return
    said = f"{total / 1e9:.0f} GB of system memory, {free / 1e9:.0f} GB free"
    if total < LITTLE_MEMORY:
        yield warn(
            "memory",
            said,
            "a quantized 14B file has 14.5 GB and the text encoder 6.7: use the 1.3B model, and TurboPromptCache, "
            "which spares the encoder for known prompts",
        )
    else:
        yield ok("memory", said)


def disk(surroundings: Surroundings) -> Iterator[Finding]:
    """Free space where models lie, each disk once."""
    seen = set()
    places = [folder for folders in surroundings.folders.values() for folder in folders]
    for place in [*places, *([surroundings.base] if surroundings.base else []), Path.cwd()]:
        if not place.is_dir() or (device := place.stat().st_dev) in seen:
            continue
        seen.add(device)
        free = shutil.disk_usage(place).free
        said = f"{free / 1e9:.0f} GB free at {place}"
        if free < LITTLE_DISK:
            yield warn("disk", said, "the quantized I2V pair takes 29 GB, the 1.3B model with its encoder 9 GB")
        else:
            yield ok("disk", said)


def packages(_: Surroundings) -> Iterator[Finding]:
    """What requirements.txt asks for, and what single commands want."""
    needed = PACK / "requirements.txt"
    found, lacking = [], []
    for line in needed.read_text(encoding="utf-8").split() if needed.is_file() else []:
        name, _, least = line.partition(">=")
        came = _installed(name)
        if came is None or version(came) < version(least):
            lacking.append(f"{line} ({'missing' if came is None else came})")
        else:
            found.append(f"{name} {came}")
    if lacking:
        yield error("packages", f"lacking: {', '.join(lacking)}", f"{_pip()} install -r {needed}")
    if found:
        yield ok("packages", ", ".join(found))
    optional = {name: _installed(name) for name in OPTIONAL}
    yield ok(
        "packages",
        "for single commands: "
        + ", ".join(f"{name} {came or f'missing ({OPTIONAL[name]})'}" for name, came in optional.items()),
    )


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "?" if importlib.util.find_spec(name) is not None else None


def _pip() -> str:
    return f'"{sys.executable}" -m pip'


def _memory() -> tuple[float | None, float]:
    """(all, free) bytes."""
    if importlib.util.find_spec("psutil") is not None:
        import psutil

        memory = psutil.virtual_memory()
        return memory.total, memory.available
    table = Path("/proc/meminfo")
    if not table.is_file():
        return None, 0
    lines = (line.split(":") for line in table.read_text().splitlines())
    kilobytes = {name: float(value.split()[0]) * 1024 for name, value in lines}
    return kilobytes["MemTotal"], kilobytes["MemAvailable"]
