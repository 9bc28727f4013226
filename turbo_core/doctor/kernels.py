"""Triton and the kernels: whether they run on this GPU, and why not."""

from __future__ import annotations

import importlib
import os
import pkgutil
import platform
import shutil
import sys
import sysconfig
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from .finding import Finding, Surroundings, ok, version, warn

if TYPE_CHECKING:
    import torch

    from ...kernels.dispatch import Kernel

# torch → the Triton made for it, as triton-windows lists them, and from 2.11 on as torch itself asks for it on Linux
TRITON_FOR_TORCH = {
    (2, 4): (3, 1),
    (2, 5): (3, 1),
    (2, 6): (3, 2),
    (2, 7): (3, 3),
    (2, 8): (3, 4),
    (2, 9): (3, 5),
    (2, 10): (3, 6),
    (2, 11): (3, 6),
    (2, 12): (3, 7),
    (2, 13): (3, 7),
    (2, 14): (3, 8),
}
OTHER_GPU = ("is not a Hopper GPU", "is below", "has no fp8")  # parts of reasons that nothing is wrong with
COMPILERS = ("gcc", "clang")
GENERATED = ("_triton", "_gluon")  # modules that import Triton at once


def triton(_: Surroundings) -> Iterator[Finding]:
    windows = sys.platform == "win32"
    package = "triton-windows" if windows else "triton"
    try:
        import triton as module
    except ImportError as failure:
        yield warn(
            "triton", f"Triton cannot be imported ({failure}): the torch path is used, several times slower on a GPU",
            f'"{sys.executable}" -m pip install {package}, in the version that fits torch',
        )  # fmt: skip
        return
    found = module.__version__
    import torch

    wanted = TRITON_FOR_TORCH.get(version(torch.__version__)[:2])
    if windows and wanted and version(found)[:2] != wanted:
        yield warn(
            "triton",
            f"Triton {found} beside torch {torch.__version__}, which goes with Triton {wanted[0]}.{wanted[1]}",
            f'"{sys.executable}" -m pip install "triton-windows=={wanted[0]}.{wanted[1]}.*"',
        )
    else:
        yield ok("triton", f"Triton {found}")


def compiler(_: Surroundings) -> Iterator[Finding]:
    """Linux: Triton builds a small launcher with the system's C compiler. Triton for Windows brings its own."""
    if platform.system() != "Linux":
        return
    named = os.environ.get("CC")
    found = next((path for name in ([named] if named else COMPILERS) if (path := shutil.which(name))), None)
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    lacking = []
    if found is None:
        lacking.append(f"the compiler that CC names, {named}" if named else "a C compiler (gcc or clang)")
    if not header.is_file():
        lacking.append(f"Python's headers ({header})")
    if lacking:
        yield warn(
            "compiler",
            f"lacking: {' and '.join(lacking)}; Triton needs them the first time a kernel runs",
            "apt install gcc python3-dev, or the packages that bring them for this Python; then restart",
        )
    else:
        yield ok("compiler", f"{found}, and Python's headers")


def dispatch(surroundings: Surroundings) -> Iterator[Finding]:
    """Which kernels run here; tries Triton, and on Hopper Gluon, on the GPU the first time in a process."""
    import torch

    from ...kernels.dispatch import triton_refusal

    device = _device(surroundings)
    if device.type != "cuda":
        yield ok("kernels", f"on {device} every operation takes the torch path")
        return
    refusal = triton_refusal(device)
    if refusal is not None:
        yield warn("kernels", f"none runs on {device}: {refusal}", "see the findings about Triton, compiler and GPU")
        return
    refused: dict[str, list[str]] = defaultdict(list)
    taken = []
    for kernel in _all_kernels():
        reason = kernel.device_refusal(device)
        if reason is None:
            taken.append(kernel.name)
        else:
            refused[reason].append(kernel.name)
    yield ok("kernels", f"{len(taken)} run on {device} ({torch.cuda.get_device_name(device)}): {', '.join(taken)}")
    for reason, names in refused.items():
        said = f"torch serves {', '.join(names)}: {reason}"
        expected = any(words in reason for words in OTHER_GPU)
        yield (
            ok("kernels", said) if expected else warn("kernels", said, "update torch and Triton; report it if it stays")
        )


def sageattention(surroundings: Surroundings) -> Iterator[Finding]:
    """The optional package: tried on the GPU against torch."""
    if importlib.util.find_spec("sageattention") is None:
        yield ok("sageattention", "not installed; only attention 'sageattention' would use it")
        return
    import torch

    from ...kernels.sageattention import refusal

    device = _device(surroundings)
    reason = refusal(device, torch.bfloat16) if device.type == "cuda" else f"the device is {device}"
    if reason is None:
        yield ok("sageattention", f"works on {device}")
    else:
        yield warn("sageattention", reason, "choose attention 'auto', or get a build for this torch and GPU")


def _device(surroundings: Surroundings) -> torch.device:
    import torch

    if surroundings.device is not None:
        return torch.device(surroundings.device)
    return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")


def _all_kernels() -> Iterator[Kernel]:
    """Every `Kernel` that a module of the package declares, once."""
    from ... import kernels
    from ...kernels.dispatch import Kernel

    seen = set()
    for found in pkgutil.iter_modules(kernels.__path__):
        if found.name.endswith(GENERATED):
            continue
        module = importlib.import_module(f"{kernels.__name__}.{found.name}")
        for value in vars(module).values():
            for kernel in value.values() if isinstance(value, dict) else (value,):
                if isinstance(kernel, Kernel) and kernel not in seen:
                    seen.add(kernel)
                    yield kernel
