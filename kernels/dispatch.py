"""Who computes an operation: a Triton kernel where its declared constraints hold, torch everywhere else.

The choice is made before the call from what the tensors are, logged once with its reason, and never by catching
a failure of the kernel itself. `Kernel.refusal` is the one place that knows why a kernel cannot run.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import BackendUnavailableError

log = logging.getLogger(__name__)

MIN_TRITON = (3, 0)
MIN_GLUON_TRITON = (3, 6)


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """What a Triton kernel accepts.

    Attributes:
        name: for logs and errors.
        dtypes: dtypes of its first tensor argument.
        min_capability: lowest CUDA compute capability, (major, minor).
        gluon_probe: for a Gluon kernel, the function of `probe_gluon` that must succeed first.
        last_dim_multiple: the first argument's last dimension must be a multiple of this.
        contiguous: whether the first argument must be contiguous as it is, because a copy would cost the gain.
        backend: what computes where nothing is refused, for logs and errors.
    """

    name: str
    dtypes: tuple[torch.dtype, ...] = (torch.bfloat16, torch.float16)
    min_capability: tuple[int, int] = (8, 0)
    gluon_probe: str | None = None
    last_dim_multiple: int = 1
    contiguous: bool = False
    backend: str = "Triton kernel"

    def refusal(self, x: Tensor) -> str | None:
        """The reason why this kernel cannot take `x`, or None if it can."""
        reason = self.device_refusal(x.device)
        if reason is None and x.dtype not in self.dtypes:
            reason = f"{x.dtype} is none of {', '.join(str(d) for d in self.dtypes)}"
        if reason is None and x.shape[-1] % self.last_dim_multiple:
            reason = f"last dimension {x.shape[-1]} is not a multiple of {self.last_dim_multiple}"
        if reason is None and self.contiguous and not x.is_contiguous():
            reason = "the tensor is not contiguous"
        return reason

    def device_refusal(self, device: torch.device) -> str | None:
        """The reason why this kernel cannot run on `device`, or None if it can."""
        reason = triton_refusal(device, self.min_capability)
        if reason is None and self.gluon_probe is not None:
            reason = gluon_refusal(device, self.gluon_probe)
        return reason

    def accepts(self, x: Tensor) -> bool:
        """Whether the kernel runs on `x`; the decision is logged the first time it is made for a reason."""
        reason = self.refusal(x)
        _log_choice(self.name, str(x.device), self.backend, reason)
        return reason is None

    def require(self, x: Tensor, alternative: str) -> None:
        """Raise `BackendUnavailableError`, naming the alternative, where the kernel cannot take `x`."""
        reason = self.refusal(x)
        if reason is not None:
            raise BackendUnavailableError(f"{self.name}: needs its {self.backend}, but {reason}; {alternative}")


@functools.cache
def _log_choice(name: str, device: str, backend: str, reason: str | None) -> None:
    if reason is None:
        log.info("%s on %s: %s", name, device, backend)
    else:
        log.info("%s on %s: torch, because %s", name, device, reason)


@functools.cache
def triton_refusal(device: torch.device, min_capability: tuple[int, int] = (8, 0)) -> str | None:
    """Why Triton kernels cannot run on `device`, or None if they can; asked before every launch, answered once."""
    if device.type != "cuda":
        return f"the device is {device.type}, not cuda"
    if torch.version.hip is not None:
        return "this is a ROCm build of torch; the kernels are written for NVIDIA GPUs"
    capability = torch.cuda.get_device_capability(device)
    if capability < min_capability:
        return f"compute capability {capability[0]}.{capability[1]} is below {min_capability[0]}.{min_capability[1]}"
    return _triton_install_refusal(device.index if device.index is not None else torch.cuda.current_device())


@functools.cache
def use_tma(device: torch.device) -> bool:
    """Hopper with a Triton that has tensor descriptors: their copies cost a multiply no issue slots."""
    has_descriptors = importlib.util.find_spec("triton.tools.tensor_descriptor") is not None
    return has_descriptors and device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """How many a GPU has; 1 where there is none and kernels are interpreted."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


@functools.cache
def gluon_refusal(device: torch.device, probe: str = "run_probe") -> str | None:
    """Why the Gluon kernels for Hopper cannot run on `device`, or None if they can; others serve then. Answered once.

    `probe` names the function of `probe_gluon` that tries the kernels in question.
    """
    if device.type != "cuda" or torch.cuda.get_device_capability(device)[0] != 9:
        return "the device is not a Hopper GPU"
    reason = triton_refusal(device)
    index = device.index if device.index is not None else torch.cuda.current_device()
    return reason or _gluon_install_refusal(index, probe)


def hopper_gemm_takes(y: Tensor, probe: str = "run_probe") -> bool:
    """Whether a Gluon GEMM for Hopper can write y [M, N]: 16 or 8 bit, in rows of whole 16 bytes for TMA."""
    whole_rows = y.shape[1] * y.element_size() % 16 == 0
    return y.element_size() <= 2 and whole_rows and gluon_refusal(y.device, probe) is None


@functools.cache
def _gluon_install_refusal(device_index: int, probe: str) -> str | None:
    """Gluon is experimental and may change with any Triton: its kernels must reproduce a known result first."""
    import triton

    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if version < MIN_GLUON_TRITON:
        return f"Triton {triton.__version__} is older than {MIN_GLUON_TRITON[0]}.{MIN_GLUON_TRITON[1]}"
    try:
        from . import probe_gluon

        getattr(probe_gluon, probe)(torch.device("cuda", device_index))
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever the probe meets becomes the stated reason
        log.warning("Triton %s: the Gluon kernels do not work on cuda:%d: %s", triton.__version__, device_index, error)
        return f"their probe failed: {error}"
    return None


@functools.cache
def _triton_install_refusal(device_index: int) -> str | None:
    """Import Triton and run a one-element kernel once: finds a missing package, an old one, a broken compiler."""
    try:
        import triton
    except ImportError as error:
        return f"Triton is not installed ({error}); pip install triton (Windows: triton-windows)"
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if version < MIN_TRITON:
        return f"Triton {triton.__version__} is older than {MIN_TRITON[0]}.{MIN_TRITON[1]}"
    try:
        from .probe_triton import run_probe

        run_probe(torch.device("cuda", device_index))
    except torch.cuda.OutOfMemoryError:
        raise  # says nothing of Triton, and must not be remembered
    except Exception as error:  # noqa: BLE001 - whatever the probe meets becomes the stated reason
        log.warning("Triton %s does not work on cuda:%d: %s", triton.__version__, device_index, error)
        remedy = "; install gcc and Python's headers" if "compiler" in str(error).lower() else ""
        return f"Triton {triton.__version__} is installed but its probe failed: {error}{remedy}"
    return None
