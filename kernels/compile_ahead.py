"""Compile every Triton kernel that a computation launches, in parallel and without running one.

Left alone, a first computation compiles its kernels one after another, each where it is first launched, and neither
shows how far it is nor can be cancelled. Here the computation is walked once with its kernels only asked for: a
launch names a kernel's signature to a pool of threads and returns, so that whatever the code would launch is what
gets compiled, and nothing has to be listed by hand. Much of a compilation is spent in other processes (ptxas, the C
compiler of Triton's launchers) and in code that releases Python's lock.

Tensors made on the walk are zeros, because kernels that would have filled them did not run; its results mean nothing.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from .dispatch import gluon_refusal, triton_refusal

log = logging.getLogger(__name__)

WORKERS = 8
POLL_SECONDS = 0.1
QUIET_SECONDS = 0.5  # from Triton's disk cache all kernels arrive sooner; only compilations are worth a message

Progress = Callable[[int, int], None]
"""Called with (kernels compiled, kernels in all)."""


def compile_ahead(
    walk: Callable[[], object],
    device: torch.device,
    *,
    gluon_probes: Sequence[str],
    progress: Progress | None = None,
    interrupted: Callable[[], None] | None = None,
) -> int:
    """Compile what `walk` launches on `device`; the number of kernels that this process had not loaded yet.

    Args:
        walk: a computation on real inputs, whose result is thrown away.
        gluon_probes: what try its Gluon kernels (`dispatch.gluon_refusal`).
        interrupted: called often; raises to cancel. What has begun is waited for, a second or two.
    """
    if triton_refusal(device) is not None:
        return 0
    import triton

    if not hasattr(triton, "AsyncCompileMode"):
        log.info(
            "Triton %s compiles each kernel at its first use; a newer one compiles in parallel", triton.__version__
        )
        return 0
    for probe in gluon_probes:
        gluon_refusal(device, probe)  # decided once by a probe, which must really launch
    with torch.cuda.device(device), _pool(device) as pool:
        executor = _Loading(pool)
        with triton.AsyncCompileMode(executor, ignore_errors=True):  # an error is raised by the launch that needs it
            try:
                with _launching_nothing(), _Zeros():
                    walk()
                _wait(executor.futures, progress, interrupted)
            finally:
                for future in executor.futures:
                    future.cancel()
    failed = [error for error in (future.exception() for future in executor.futures) if error is not None]
    if failed:
        log.warning("%d of %d kernels did not compile ahead: %s", len(failed), len(executor.futures), failed[0])
    return len(executor.futures)


def _wait(futures: list[Future[Any]], progress: Progress | None, interrupted: Callable[[], None] | None) -> None:
    started = time.monotonic()
    shown = False
    pending = set(futures)
    while pending:
        if interrupted is not None:
            interrupted()
        _, pending = wait(pending, POLL_SECONDS, FIRST_COMPLETED)
        if not shown and pending and time.monotonic() - started > QUIET_SECONDS:
            shown = True
            log.info("compiling %d kernels, the first time on this GPU only", len(futures))
        if shown and progress is not None:
            progress(len(futures) - len(pending), len(futures))


class _Loading(Executor):
    """Compiles in the pool, and also builds the launcher and loads the binary there."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self.futures: list[Future[Any]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        def compile_and_load() -> Any:
            kernel = fn(*args, **kwargs)
            _ = kernel.run  # a property that builds them
            return kernel

        self.futures.append(self._pool.submit(compile_and_load))
        return self.futures[-1]


@contextlib.contextmanager
def _pool(device: torch.device) -> Iterator[ThreadPoolExecutor]:
    index = torch.cuda.current_device() if device.index is None else device.index
    pool = ThreadPoolExecutor(WORKERS, "triton-compile", initializer=torch.cuda.set_device, initargs=(index,))
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


@contextlib.contextmanager
def _launching_nothing() -> Iterator[None]:
    """Launches of this thread compile their kernel and no more."""
    from triton.runtime.jit import JITFunction

    launch, walking = JITFunction.run, {threading.get_ident()}

    @functools.wraps(launch)
    def run(self: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        return launch(self, *args, grid=grid, warmup=warmup or threading.get_ident() in walking, **options)

    JITFunction.run = run
    try:
        yield
    finally:
        # Another thread, or another copy of the pack, may have put its own in front meanwhile and call this one.
        walking.clear()
        if JITFunction.run is run:
            JITFunction.run = launch


UNFILLED = (torch.empty, torch.empty_like, torch.Tensor.new_empty)
PLAIN_TYPES = (torch.Tensor, torch.nn.Parameter)


class _Zeros(TorchFunctionMode):
    """Fresh tensors are zeros, which are in range wherever they serve as an index."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        plain = all(type(arg) in PLAIN_TYPES for arg in args[:1] if isinstance(arg, torch.Tensor))
        out = func(*args, **(kwargs or {}))
        return out.zero_() if plain and func in UNFILLED else out
