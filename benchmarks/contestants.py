"""Networks that are timed beside each other over the same weights: ours, the original, ComfyUI's native one.

Ours are the rows of `dit_step`; a peer that does the same with the same weights carries the row's name after its own,
as in "upstream int8 + sla". Nothing is copied: all of them refer to one set of tensors for each kind of weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from turbowan.benchmarks import dit_step, native, synthetic
from turbowan.benchmarks.against_upstream import load_peer
from turbowan.benchmarks.dit_step import TOPK, Row
from turbowan.benchmarks.timing import GIB
from turbowan.turbo_core.block_int8 import dequantize_tensors
from turbowan.turbo_core.config import WanConfig

UPSTREAM, NATIVE = "upstream ", "native "
DENSE = "bf16 + dense"

Forward = Callable[[Tensor, Tensor, Tensor], Tensor]


def _nothing() -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """A network and how it is called; `row` is set for ours."""

    name: str
    net: nn.Module
    forward: Forward
    prepare: Callable[[], None] = _nothing
    row: Row | None = None

    @property
    def weight_gib(self) -> float:
        tensors = {t.data_ptr(): t for t in (*self.net.parameters(), *self.net.buffers())}
        return sum(tensor.nbytes for tensor in tensors.values()) / GIB


class Weights:
    """One random checkpoint: int8 codes, and the dense weights they stand for, made when first asked for."""

    def __init__(self, config: WanConfig, device: torch.device) -> None:
        self.config = config
        self._quantized = synthetic.tensors(config, device, quantized=True)
        self._dense: dict[str, Tensor] | None = None

    def tensors(self, *, quantized: bool) -> dict[str, Tensor]:
        if quantized:
            return self._quantized
        if self._dense is None:
            self._dense = dequantize_tensors(self._quantized, torch.bfloat16)
        return self._dense


def ours(weights: Weights, rows: Sequence[Row]) -> Iterator[Contestant]:
    """A contestant for each row; rows that differ in settings alone share a network."""
    nets: dict[Row, nn.Module] = {}
    for row in rows:
        alike = dataclasses.replace(row, name="", mode="", activation_rows=1)
        if alike not in nets:
            nets[alike] = dit_step.build(weights.config, row, weights.tensors(quantized=row.quantized))
        net = nets[alike]
        yield Contestant(
            name=row.name, net=net, forward=net, row=row, prepare=lambda net=net, row=row: dit_step.prepare(net, row)
        )


def upstream(weights: Weights, folder: Path, rows: Sequence[Row]) -> Iterator[Contestant]:
    """The original: its fastest (bf16, SageSLA where that was built), and what stands beside our rows by name."""
    peer = load_peer(folder)
    config = weights.config
    shape = {name: getattr(config, name) for name in ("dim", "ffn_dim", "num_heads", "num_layers", "in_dim")}
    modes = ("sagesla", "sla") if getattr(peer, "SAGESLA", False) else ("sla",)
    wanted = {row.name for row in rows} | {f"bf16 + {modes[0]}"}
    for kind, quantized in (("bf16", False), ("int8", True)):
        for mode in modes:
            name = f"{kind} + {mode}"
            if name not in wanted:
                continue
            net = peer.build_model(
                shape,
                attention=mode,
                topk=TOPK,
                quantized=quantized,
                state_dict=dict(weights.tensors(quantized=quantized)),
            )
            yield Contestant(name=UPSTREAM + name, net=net, forward=lambda x, t, c, net=net: peer.forward(net, x, t, c))


def comfyui(weights: Weights, checkout: Path) -> Contestant:
    """ComfyUI's own dense network."""
    native.use(checkout)
    net = native.network(weights.config, weights.tensors(quantized=False), torch.bfloat16)
    return Contestant(name=NATIVE + DENSE, net=net, forward=net)


@contextmanager
def shallow(contestants: Sequence[Contestant], layers: int) -> Iterator[None]:
    """All of them with their first `layers` blocks only."""
    full = {id(contestant.net): (contestant.net, contestant.net.blocks) for contestant in contestants}
    for net, blocks in full.values():
        net.blocks = blocks[:layers]
    try:
        yield
    finally:
        for net, blocks in full.values():
            net.blocks = blocks
