"""What a GPU can do at most: the rates that floors are computed with.

    floor of an operation = max(FLOPs / rate of their kind, bytes / copy rate)

`KNOWN` holds rates that some library reached there at shapes like ours; copy and bf16 are measured again at the start
of every run, so that a throttled or shared card shows. Another GPU gets its own two figures and, for the other two,
the ratios of the tensor cores' data sheets: an estimate, marked as one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from turbowan.benchmarks.timing import elapsed_ms

COPY_BYTES = 2**31
GEMM_SIDE = 8192
ROUNDS = 10


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """10¹² a second: 8-bit and 16-bit matrix products, attention, bytes copied (read + written)."""

    int8: float
    bf16: float
    attention: float
    copy: float
    source: str


KNOWN: dict[str, Ceilings] = {
    # cuBLAS fp8 row-wise, cuBLAS bf16, 8-bit QK with 16-bit PV, a device-to-device copy; 2026-11.
    "NVIDIA H200": Ceilings(int8=1560, bf16=805, attention=900, copy=4.26, source="measured, docs/facts.md"),
}


def of_gpu(name: str, *, bf16: float, copy: float) -> Ceilings:
    """The known rates of a GPU, never below what it just reached; an estimate from that for one not listed."""
    known = KNOWN.get(name)
    if known is None:
        return Ceilings(int8=2 * bf16, bf16=bf16, attention=bf16, copy=copy, source="estimated from bf16 and copy")
    return replace(known, bf16=max(known.bf16, bf16), copy=max(known.copy, copy))


def measure(device: torch.device) -> dict[str, float]:
    """bf16 (random 8192³ product) and copy (2 GiB), best of a few, in 10¹² a second."""
    return {"bf16": _product_rate(device) / 1e12, "copy": _copy_rate(device) / 1e12}


def _product_rate(device: torch.device) -> float:
    generator = torch.Generator(device=device).manual_seed(0)
    a, b = (
        torch.randn(GEMM_SIDE, GEMM_SIDE, device=device, dtype=torch.bfloat16, generator=generator) for _ in range(2)
    )
    return 2 * GEMM_SIDE**3 / _best_seconds(lambda: a @ b)


def _copy_rate(device: torch.device) -> float:
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / _best_seconds(lambda: target.copy_(source))


def _best_seconds(run: Callable[[], object]) -> float:
    return min(elapsed_ms(run) for _ in range(ROUNDS)) / 1e3
