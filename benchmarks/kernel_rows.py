"""Rows of the stage `kernel`: what one block is made of, beside cuBLAS or cuDNN where they do the like.

Each kernel runs after a flush of the L2 cache. The products' peer is the bf16 product of the same shape, the sparse
attention's a dense attention, which does 1 / top-k as much: no more than a place on the scale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import linear as torch_linear

from turbowan.benchmarks import floors, synthetic
from turbowan.benchmarks.ceilings import Ceilings
from turbowan.benchmarks.dit_step import TOPK, check_kernels
from turbowan.benchmarks.floors import Work
from turbowan.benchmarks.report import Row
from turbowan.benchmarks.request import Request
from turbowan.benchmarks.timing import short
from turbowan.kernels import block_int8, norm, routing
from turbowan.kernels.qk_norm import pooled
from turbowan.turbo_core import rope
from turbowan.turbo_core.attention import AttentionSettings, dense_attention, sparse_linear_attention
from turbowan.turbo_core.config import WanConfig


@dataclass(frozen=True, kw_only=True)
class Case:
    name: str
    run: Callable[[], object]
    work: Work
    peer: str | None = None
    peer_run: Callable[[], object] | None = None


def measure(request: Request, ceilings: Ceilings) -> list[Row]:
    device = torch.device("cuda")
    check_kernels(device)
    config, tokens = synthetic.MODELS[request.model], floors.tokens_of(request.size)
    rows = []
    for case in (*_products(config, tokens, device), *_passes(config, request, device), *_attention(config, tokens)):
        if request.rows not in case.name:
            continue
        runs = {"ours": case.run} | ({"peer": case.peer_run} if case.peer_run else {})
        times = short(runs)
        rows.append(
            Row(
                name=f"{request.label} {case.name}",
                stage="kernel",
                ms=times["ours"],
                peer=case.peer,
                peer_ms=times.get("peer"),
                floor_ms=case.work.milliseconds(ceilings),
                command=request.command("kernel"),
            )
        )
    if not rows:
        print(f"no kernel has {request.rows!r} in its name", flush=True)
    return rows


def _generator(device: torch.device | str) -> torch.Generator:
    return torch.Generator(device=device).manual_seed(7)


def _products(config: WanConfig, tokens: int, device: torch.device) -> Iterator[Case]:
    """Block-int8 products from codes that lie ready."""
    dim, ffn = config.dim, config.ffn_dim
    generator = _generator(device)
    for columns, inner in ((dim, dim), (ffn, dim), (dim, ffn)):
        x = torch.randn(tokens, inner, device=device, dtype=torch.bfloat16, generator=generator)
        dense = torch.randn(columns, inner, device=device, generator=generator) / inner**0.5
        codes, weight = block_int8.quantize_activations(x), block_int8.quantize_weight(dense)
        name = f"product {columns}×{inner}"
        yield Case(
            name=name,
            run=partial(block_int8.linear, codes, weight, None, gelu=False, like=x),
            work=floors.linear(name, tokens, columns, inner, bits=8),
            peer="cuBLAS bf16",
            peer_run=partial(torch_linear, x, dense.to(torch.bfloat16)),
        )


def _passes(config: WanConfig, request: Request, device: torch.device) -> Iterator[Case]:
    """What only moves bytes."""
    width, height, frames = request.size
    tokens, dim = floors.tokens_of(request.size), config.dim
    generator = _generator(device)
    x, y = (torch.randn(1, tokens, dim, device=device, dtype=torch.bfloat16, generator=generator) for _ in range(2))
    row = torch.randn(1, dim, device=device, generator=generator)
    table = rope.rotation(((frames - 1) // 4 + 1, height // 16, width // 16), config.head_dim, device)
    half = x.nbytes
    cases: dict[str, tuple[Callable[[], object], float]] = {
        "norm to codes": (partial(norm.layer_norm_quantized, x, row, row, 1e-6), 1.5 * half),
        "norm": (partial(norm.layer_norm, x, row, row, 1e-6), 2 * half),
        "q norm, rotation": (partial(norm.rms_norm_rope, x, row[0], 1e-6, table), 2 * half),
        "gate, residual": (partial(norm.gated_residual, x, y, row), 3 * half),
        "quantize": (partial(block_int8.quantize_activations, x), 1.5 * half),
    }
    for name, (run, bytes_) in cases.items():
        yield Case(name=name, run=run, work=Work(name=name, bytes=bytes_))


def _attention(config: WanConfig, tokens: int) -> Iterator[Case]:
    """Self-attention from normed and pooled q, k and v to the input of `o`, routing and linear branch included."""
    generator = _generator("cuda")
    shape = (1, tokens, config.num_heads, config.head_dim)
    q, k, v = (torch.randn(shape, device="cuda", dtype=torch.bfloat16, generator=generator) for _ in range(3))
    head = config.head_dim
    weight: Tensor = torch.randn(head, head, device="cuda", dtype=torch.bfloat16, generator=generator) / head**0.5
    bias = torch.randn(head, device="cuda", dtype=torch.bfloat16, generator=generator)
    for mode in ("sagesla", "sla"):
        work = floors.self_attention(config, tokens, mode, TOPK, floors.HALF * tokens * config.dim)
        heads = pooled(q, routing.BLOCK_Q, int8=mode == "sagesla"), pooled(k, routing.BLOCK_K)
        yield Case(
            name=f"attention {mode}",
            run=partial(sparse_linear_attention, *heads, v, weight, bias, AttentionSettings(mode=mode, topk=TOPK)),
            work=floors.combined(f"attention {mode}", work),
            peer="dense",
            peer_run=partial(dense_attention, q, k, v),
        )
