"""The key blocks that SLA's routing chose in a forward: kept, and imposed on another one.

Two networks that differ in rounding choose some blocks differently, and such a block moves the result more than the
rounding does. With the sets of one imposed on the other, what is left between them is arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from turbowan.kernels import routing


@contextmanager
def recorded_blocks() -> Iterator[list[Tensor]]:
    """Collects the sets that are chosen, call by call: int32 [B, H, query blocks, kept] each."""
    chosen: list[Tensor] = []
    route = routing.route

    def record(*inputs: Tensor | int) -> Tensor:
        chosen.append(route(*inputs))
        return chosen[-1]

    routing.route = record
    try:
        yield chosen
    finally:
        routing.route = route


@contextmanager
def forced_blocks(sets: Sequence[Tensor]) -> Iterator[None]:
    """The routing returns the given sets, call by call, in ascending order.

    Raises:
        ValueError: unless there was a call for each set, and none more.
    """
    left = list(sets)
    route = routing.route

    def give(*_: Tensor | int) -> Tensor:
        if not left:
            raise ValueError(f"forced blocks: must get a set for each call, got {len(sets)} and another call")
        return left.pop(0).to(torch.int32).sort(dim=-1).values

    routing.route = give
    try:
        yield
    finally:
        routing.route = route
    if left:
        raise ValueError(f"forced blocks: must get a set for each call, got {len(sets)}, {len(left)} without a call")
