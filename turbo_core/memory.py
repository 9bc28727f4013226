"""A GPU's memory: what is free of it, and an error that says how much was wanted and what helps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


def free_bytes(device: torch.device) -> int:
    """What a CUDA device can still give this process, with what torch holds in reserve."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch ran out of memory, on a GPU or on the CPU."""
    return isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )


@contextmanager
def memory_advice(
    where: str,
    device: torch.device,
    remedy: str,
    is_out_of_memory: Callable[[RuntimeError], bool] = is_out_of_memory,
) -> Iterator[None]:
    """Add the peak and the remedy to an out-of-memory error, which stays torch's own for a host to act on."""
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            peak = f" at a peak of {torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB" if cuda else ""
            error.args = (f"{where}: ran out of memory on {device}{peak}; {remedy}. {error}",)
        raise
