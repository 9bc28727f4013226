"""Time the kernels of both attentions at a model's shapes, after holding each against fp32 at an odd length.

    python -m turbowan.benchmarks.attention_kernels [--model 1.3b] [--tokens 32760] [--ratio 0.1]

Where a kernel for Hopper serves, Triton's plain one takes turns with it, each after a flush of the L2 cache.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from turbowan.benchmarks import synthetic
from turbowan.benchmarks.dit_step import codes_error, relative_error
from turbowan.benchmarks.timing import short
from turbowan.kernels import dispatch, key_pass, qk_norm, routing, sla, text_attention
from turbowan.kernels.block_int8 import QuantizedActivations
from turbowan.turbo_core import rope
from turbowan.turbo_core.config import WanConfig

Result = Tensor | QuantizedActivations

EPS = 1e-6
TEXT_TOKENS = 512
RELATIVE_ERROR_LIMIT = 1e-2  # as in `dit_step`
CHECKED_TOKENS, CHECKED_HEADS = 1057, 2


@dataclass(frozen=True, kw_only=True)
class Case:
    name: str
    ours: Callable[[], Result]
    exact: Callable[[], Tensor]
    plain: Callable[[], Result] | None = None
    compared: Callable[[Tensor], Tensor] | None = None  # what must agree of both results, where not they themselves
    flops: float = 0.0
    bytes: float = 0.0


class Inputs:
    """What a block's projections give for random tokens, and the block's small weights."""

    def __init__(self, device: torch.device, tokens: int, heads: int, head_dim: int, ratio: float):
        self.tokens, self.heads, self.head_dim, self.ratio = tokens, heads, head_dim, ratio
        self._generator = torch.Generator(device=device).manual_seed(4)
        self._device = device
        self.qkv = self.half(1, tokens, 3 * heads * head_dim).split(heads * head_dim, dim=-1)
        self.rotation = rope.rotation((tokens, 1, 1), head_dim, device)
        self.norm_weight = 1 + 0.2 * self.half(heads * head_dim)
        self.proj_l = self.half(head_dim, head_dim) / head_dim**0.5, self.half(head_dim)

    def half(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self._device, dtype=torch.bfloat16, generator=self._generator)

    def normed(self, part: int, block: int, int8: bool = False) -> qk_norm.PooledHeads:
        """Queries (0) or keys (1) as `qk_norm` makes them."""
        return qk_norm.qk_norm(self.qkv[part], self.norm_weight, EPS, self.rotation, self.heads, block, int8)

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, self.head_dim))

    def sparse(self, int8: bool) -> sla.SlaInputs:
        queries, keys = self.normed(0, routing.BLOCK_Q, int8), self.normed(1, routing.BLOCK_K)
        return sla.prepare(queries, keys, self.split(self.qkv[2]), *self.proj_l, self.ratio)


def cases(inputs: Inputs) -> Iterator[Case]:
    """What the attentions of a block call, in their order; sagesla where its kernel runs."""
    modes = (True, False) if sla.SAGE.accepts(inputs.qkv[0]) else (False,)
    for int8 in modes:
        yield _norm(inputs, "queries", 0, routing.BLOCK_Q, int8)
    yield _norm(inputs, "keys", 1, routing.BLOCK_K, False)
    for int8 in modes:
        yield _key_pass(inputs, int8)
    yield _routing(inputs)
    for int8 in modes:
        yield _sparse(inputs, int8)
    for distinct in (TEXT_TOKENS, TEXT_TOKENS // 4):
        yield _text(inputs, distinct)


def _norm(inputs: Inputs, name: str, part: int, block: int, int8: bool) -> Case:
    x, weight = inputs.qkv[part], inputs.norm_weight
    arguments = EPS, inputs.rotation, inputs.heads, block
    return Case(
        name=f"norm of {name}{', codes' if int8 else ''}",
        ours=lambda: inputs.normed(part, block, int8).x,
        exact=lambda: qk_norm.qk_norm_ref(x.float(), weight.float(), *arguments).x,
        bytes=x.numel() * (5 if int8 else 4),
    )


def _key_pass(inputs: Inputs, int8: bool) -> Case:
    keys = inputs.normed(1, routing.BLOCK_K)
    v, mean = inputs.split(inputs.qkv[2]), routing.key_mean(keys.means, inputs.tokens)
    return Case(
        name=f"pass over the keys{', codes' if int8 else ''}",
        ours=lambda: key_pass.key_pass(keys.x, v, mean, *inputs.proj_l, int8).branch.values,
        exact=lambda: key_pass.key_pass_ref(keys.x, v, mean, *inputs.proj_l).branch.values,
        flops=2 * v.numel() * inputs.head_dim,
        bytes=v.numel() * (5 if int8 else 4),
    )


def _routing(inputs: Inputs) -> Case:
    queries, keys = inputs.normed(0, routing.BLOCK_Q), inputs.normed(1, routing.BLOCK_K)
    kept = routing.kept_blocks(inputs.tokens, inputs.ratio)

    def choose(mean: Callable[..., Tensor], route: Callable[..., Tensor]) -> Tensor:
        return route(queries.means, keys.means, mean(keys.means, inputs.tokens), kept)

    def scores(blocks: Tensor) -> Tensor:
        """Of the blocks chosen: near-equal ones may be chosen either way."""
        score = queries.means @ keys.means.transpose(-1, -2)
        return score.gather(-1, blocks.long()).sort(dim=-1).values

    return Case(
        name="routing",
        ours=lambda: choose(routing.key_mean, routing.route),
        exact=lambda: choose(routing.key_mean_ref, routing.route_ref),
        compared=scores,
    )


def _sparse(inputs: Inputs, int8: bool) -> Case:
    given = inputs.sparse(int8)

    def exact() -> Tensor:
        single = dataclasses.replace(given, q=given.q.float(), k=given.k.float(), v=given.v.float())
        return sla.attend_ref(single).flatten(2)

    per_key = 4 * given.q.numel()
    kept = min(inputs.tokens, given.blocks.shape[3] * routing.BLOCK_K)
    return Case(
        name="sagesla" if int8 else "sla",
        ours=lambda: sla.attend_quantized(given),
        exact=exact,
        plain=_plain_sparse(given) if _on_hopper(given.q) else None,
        flops=per_key * (kept + inputs.head_dim / 2),
    )


def _text(inputs: Inputs, distinct: int) -> Case:
    q = inputs.split(inputs.qkv[0].contiguous())
    k, v = (inputs.half(1, TEXT_TOKENS, inputs.heads, inputs.head_dim) for _ in range(2))
    for padded in (k, v):
        padded[:, distinct:] = padded[:, distinct - 1 : distinct]
    repeats = text_attention.trailing_repeats(k.flatten(2))
    squares = text_attention.row_squares_ref(q)
    return Case(
        name=f"cross-attention, {distinct} keys",
        ours=lambda: text_attention.text_attention_quantized(q, k, v, EPS, repeats=repeats, squares=squares),
        exact=lambda: text_attention.text_attention_ref(q.float(), k.float(), v.float(), EPS).flatten(2),
        plain=_plain_text(q, k, v, repeats, squares) if _on_hopper(q) else None,
        flops=4 * q.numel() * distinct,
        bytes=3 * q.numel(),
    )


def _on_hopper(x: Tensor) -> bool:
    return x.device.type == "cuda" and dispatch.gluon_refusal(x.device, "run_attention_probe") is None


def _plain_sparse(given: sla.SlaInputs) -> Callable[[], QuantizedActivations]:
    from turbowan.kernels.sla_triton import launch_plain

    def run() -> QuantizedActivations:
        out = _codes_for(given.q)
        launch_plain(given, out.codes, out.scale)
        return out

    return run


def _plain_text(
    q: Tensor, k: Tensor, v: Tensor, repeats: Tensor, squares: Tensor
) -> Callable[[], QuantizedActivations]:
    from turbowan.kernels.text_attention_triton import launch_plain

    def run() -> QuantizedActivations:
        out = _codes_for(q)
        launch_plain(q, k, v, EPS, repeats, squares, out.codes, out.scale)
        return out

    return run


def _codes_for(q: Tensor) -> QuantizedActivations:
    rows, heads = q.shape[0] * q.shape[1], q.shape[2]
    codes = torch.empty(rows, heads * q.shape[3], dtype=torch.int8, device=q.device)
    return QuantizedActivations(codes, torch.empty(heads, rows, device=q.device))


def error(case: Case, result: Result) -> float:
    """Of codes to the codes of the exact result, of tensors to the exact result itself."""
    exact = case.exact()
    if isinstance(result, QuantizedActivations):
        return codes_error(result, exact)
    return (
        relative_error(result, exact) if case.compared is None else relative_error(*map(case.compared, (result, exact)))
    )


def check(device: torch.device, config: WanConfig) -> None:
    """Raise unless every kernel agrees with fp32."""
    for case in cases(Inputs(device, CHECKED_TOKENS, CHECKED_HEADS, config.head_dim, 0.2)):
        for kind, run in (("ours", case.ours), ("plain", case.plain)):
            off = 0.0 if run is None else error(case, run())
            if not off < RELATIVE_ERROR_LIMIT:
                raise SystemExit(f"{case.name}, {kind}, is wrong ({off:.2e}): nothing is timed")
    print(f"every kernel agrees with fp32 at {CHECKED_TOKENS} tokens", flush=True)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=synthetic.MODELS, default="1.3b")
    parser.add_argument("--tokens", type=int, default=32_760, help="32760 are 81 frames 832x480, 75600 1280x720")
    parser.add_argument("--ratio", type=float, default=0.1, help="share of key blocks kept")
    arguments = parser.parse_args()
    config, device = synthetic.MODELS[arguments.model], torch.device("cuda")
    check(device, config)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {arguments.model}, {arguments.tokens:,} tokens")
    for case in cases(Inputs(device, arguments.tokens, config.num_heads, config.head_dim, arguments.ratio)):
        runs = {"ours": case.ours} | ({"plain": case.plain} if case.plain is not None else {})
        times = short(runs, rounds=10)
        rates = [f"{case.flops / times['ours'] / 1e9:4.0f} TFLOP/s"] if case.flops else []
        rates += [f"{case.bytes / times['ours'] / 1e9:5.2f} TB/s"] if case.bytes else []
        plain = f", plain {1000 * times['plain']:7.0f} µs" if case.plain is not None else ""
        print(f"{case.name:26s} {1000 * times['ours']:7.0f} µs{plain}  {' '.join(rates)}", flush=True)


if __name__ == "__main__":
    main()
