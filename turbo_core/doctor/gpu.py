"""torch, the GPUs and their driver."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from types import ModuleType

from .finding import Finding, Surroundings, error, ok, version, warn

MIN_TORCH = (2, 4)
# CUDA version of torch → the oldest driver for it (NVIDIA's table of minor version compatibility)
OLDEST_DRIVER = {13: 580, 12: 525, 11: 450}
FOR_KERNELS = (8, 0)
BLACKWELL = (10, 0)
MIN_TORCH_BLACKWELL = (2, 7)
NVIDIA_TORCH = "install a CUDA build of torch in ComfyUI's Python, as pytorch.org's selector writes the command"


def torch_build(_: Surroundings) -> Iterator[Finding]:
    try:
        import torch
    except ImportError as failure:
        yield error("torch", f"torch cannot be imported: {failure}", "run this with ComfyUI's own Python")
        return
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "ROCm" if torch.version.hip else "CPU only"
    said = f"torch {torch.__version__} ({build})"
    if version(torch.__version__) < MIN_TORCH:
        yield error("torch", said, "TurboWan needs torch 2.4 or newer; update ComfyUI")
    elif torch.version.hip:
        yield warn("torch", said, "nothing: AMD GPUs take the torch path, which nobody has tested there")
    elif torch.version.cuda is None and shutil.which("nvidia-smi"):
        yield error("torch", f"{said}, beside an NVIDIA driver", NVIDIA_TORCH)
    else:
        yield ok("torch", said)


def gpus(surroundings: Surroundings) -> Iterator[Finding]:
    import torch

    if surroundings.device is not None:
        yield ok("gpu", f"ComfyUI uses {surroundings.device}")
    if not torch.cuda.is_available():
        yield warn(
            "gpu",
            "torch finds no GPU: everything runs on the CPU, slowly",
            "with an NVIDIA GPU, update its driver and " + NVIDIA_TORCH + "; without one, the demo model is small "
            "enough for a CPU",
        )
        return
    for index in range(torch.cuda.device_count()):
        yield _gpu(torch, index)


def driver(_: Surroundings) -> Iterator[Finding]:
    program = shutil.which("nvidia-smi")
    if program is None:
        yield ok("driver", "no nvidia-smi on this machine")
        return
    query = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, timeout=1.9, check=False)
    if done.returncode:
        reason = (done.stdout + done.stderr).strip().splitlines()
        yield error(
            "driver", f"nvidia-smi fails: {reason[0] if reason else done.returncode}", "install NVIDIA's driver"
        )
        return
    found = done.stdout.split()[0]
    import torch

    if torch.version.cuda is None:
        yield ok("driver", f"NVIDIA driver {found}")
        return
    oldest = OLDEST_DRIVER.get(version(torch.version.cuda)[0], 0)
    said = f"NVIDIA driver {found}, for torch's CUDA {torch.version.cuda}"
    if version(found)[0] < oldest:
        yield error("driver", f"{said}, which needs {oldest} or newer", "update NVIDIA's driver")
    else:
        yield ok("driver", said)


def _gpu(torch: ModuleType, index: int) -> Finding:
    properties = torch.cuda.get_device_properties(index)
    capability = (properties.major, properties.minor)
    free, total = torch.cuda.mem_get_info(index)
    said = (
        f"cuda:{index} {properties.name}, compute capability {capability[0]}.{capability[1]}, "
        f"{total / 2**30:.1f} GiB ({free / 2**30:.1f} free)"
    )
    if not _has_code_for(capability, torch.cuda.get_arch_list()):
        return error("gpu", f"{said}; this torch has no code for it", "update torch: RTX 50 cards need 2.7 or newer")
    if capability >= BLACKWELL and version(torch.__version__) < MIN_TORCH_BLACKWELL:
        return error("gpu", said, "RTX 50 cards need torch 2.7 or newer: update torch")
    if capability < FOR_KERNELS:
        return warn("gpu", said, "nothing: TurboWan's kernels are for RTX 30 and newer, the torch path is used")
    return ok("gpu", said)


def _has_code_for(capability: tuple[int, int], architectures: list[str]) -> bool:
    """Whether torch was built for the capability: code of the same generation up to it, or PTX of an older one."""
    if not architectures:  # a build that does not say
        return True
    for architecture in architectures:
        kind, _, digits = architecture.partition("_")
        digits = "".join(c for c in digits if c.isdigit())
        built = (int(digits[:-1]), int(digits[-1]))
        if built <= capability and (kind == "compute" or built[0] == capability[0]):
            return True
    return False
