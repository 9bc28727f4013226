"""Hold our network against the original TurboDiffusion, same weights and inputs, one GPU, interleaved timings.

    python -m turbowan.benchmarks.against_upstream --peer DIR [--layers 30] [--size 832x480x81]

DIR holds a module `peer` over an installed original: `build_model(config, attention=, topk=, quantized=, state_dict=)`
with attention sla, or sagesla where `SAGESLA`, `forward(net, x, t, context)`, `record_luts()`, `force_luts(luts)` and
`sla_op(q, k, v, weight, bias, topk=, return_lut=)`, `quant(x)`, `gemm(a, a_scale, w, w_scale)`. Errors are relative
to an fp32 forward of ours over the same block sets, so that a figure says how far each implementation is from the
mathematics, and beside it how far they are apart.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import sys
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from turbowan.benchmarks import floors, synthetic
from turbowan.benchmarks.block_sets import forced_blocks
from turbowan.benchmarks.dit_step import relative_error
from turbowan.benchmarks.request import size_argument, size_text
from turbowan.benchmarks.timing import interleaved
from turbowan.kernels import block_int8, routing
from turbowan.kernels.qk_norm import PooledHeads, pooled
from turbowan.turbo_core import attention
from turbowan.turbo_core.attention import AttentionSettings
from turbowan.turbo_core.block_int8 import dequantize_tensors
from turbowan.turbo_core.model import TurboWan
from turbowan.turbo_core.vae import latent_size

TOPK = 0.1


def load_peer(folder: Path) -> ModuleType:
    """The module `peer` of `folder`, which may import what lies beside it."""
    if not (folder / "peer.py").is_file():
        raise SystemExit(f"{folder} must hold peer.py over a built TurboDiffusion, it does not")
    sys.path.insert(0, str(folder))
    return importlib.import_module("peer")


def heads(q: Tensor, k: Tensor, int8: bool = False) -> tuple[PooledHeads, PooledHeads]:
    """Finished queries and keys as the attention takes them; with int8 codes it is SageSLA."""
    return pooled(q, routing.BLOCK_Q, int8), pooled(k, routing.BLOCK_K)


def compare_gemm(peer: ModuleType) -> None:
    generator = torch.Generator(device="cuda").manual_seed(3)
    x = torch.randn(4096, 1536, device="cuda", dtype=torch.bfloat16, generator=generator)
    w = torch.randn(8960, 1536, device="cuda", dtype=torch.bfloat16, generator=generator) / 39
    (a_codes, a_scale), (w_codes, w_scale) = peer.quant(x), peer.quant(w)
    theirs = peer.gemm(a_codes, a_scale, w_codes, w_scale)
    ours_a = block_int8.quantize_activations(x, rows=128)
    differing = int((ours_a.codes != a_codes).sum())
    print(
        f"quantize 128x128: {differing} of {x.numel()} codes differ, by at most "
        f"{int((ours_a.codes.int() - a_codes.int()).abs().max())}"
    )
    given = block_int8.QuantizedActivations(a_codes, a_scale.T.repeat_interleave(128, 1)[:, : x.shape[0]].contiguous())
    weight = block_int8.BlockInt8(w_codes, w_scale)
    ours = block_int8.linear(given, weight, None, gelu=False, like=x)
    wrong = int((ours != theirs).sum())
    print(f"gemm from the same codes: {wrong} of {ours.numel()} outputs differ")
    if wrong:
        raise SystemExit("the GEMM no longer repeats the original's bits: nothing is timed")


def compare_attention(peer: ModuleType, length: int) -> None:
    generator = torch.Generator(device="cuda").manual_seed(4)
    q, k, v = (
        torch.randn(1, length, 12, 128, device="cuda", dtype=torch.bfloat16, generator=generator) * s for s in (2, 2, 1)
    )
    weight = torch.randn(128, 128, device="cuda", generator=generator) / 11
    bias = torch.randn(128, device="cuda", generator=generator)
    theirs, lut = peer.sla_op(q, k, v, weight, bias, topk=TOPK, return_lut=True)
    settings = AttentionSettings(mode="sla", topk=TOPK)
    with forced_blocks([lut] * 3):
        ours = attention.sparse_linear_attention(*heads(q, k), v, weight, bias, settings)
        sage = attention.sparse_linear_attention(*heads(q, k, int8=True), v, weight, bias, settings)
        exact = attention.sparse_linear_attention(*heads(q.float(), k.float()), v.float(), weight, bias, settings)
    print(
        f"attention, same blocks, L={length}, error to fp32: ours sla {relative_error(ours, exact):.2e}, "
        f"ours sagesla {relative_error(sage, exact):.2e}, upstream sla {relative_error(theirs, exact):.2e}; "
        f"ours to upstream {relative_error(ours, theirs):.2e}"
    )
    own_q, own_k = heads(q, k)
    own = routing.route(own_q.means, own_k.means, routing.key_mean(own_k.means, length), lut.shape[-1])
    shape = (*own.shape[:3], own_k.means.shape[2])
    sets = [torch.zeros(shape, dtype=torch.bool, device="cuda").scatter_(-1, s.long(), True) for s in (own, lut)]
    print(f"block sets shared with upstream's bf16 routing: {float((sets[0] & sets[1]).sum() / sets[0].sum()):.4f}")


def compare_network(peer: ModuleType, layers: int, latent: tuple[int, int, int], repeats: int) -> None:
    device = torch.device("cuda")
    config = dataclasses.replace(synthetic.MODELS["1.3b"], num_layers=layers)
    quantized = synthetic.tensors(config, device, quantized=True)
    dense = dequantize_tensors(quantized, torch.bfloat16)
    generator = torch.Generator(device=device).manual_seed(5)
    x = torch.randn(1, 16, *latent, device=device, dtype=torch.bfloat16, generator=generator)
    context = torch.randn(1, 512, 4096, device=device, dtype=torch.bfloat16, generator=generator)
    t = torch.tensor([988.0], device=device)
    arguments = {"dim": config.dim, "ffn_dim": config.ffn_dim, "num_heads": config.num_heads, "num_layers": layers}
    theirs = {
        name: peer.build_model(
            arguments | {"in_dim": 16}, attention="sla", topk=TOPK, quantized=name == "int8", state_dict=dict(weights)
        )
        for name, weights in (("bf16", dense), ("int8", quantized))
    }
    ours = {}
    for name, weights in (("bf16", dense), ("int8", quantized), ("fp32", dequantize_tensors(quantized, torch.float32))):
        ours[name] = TurboWan(config, device="meta")
        ours[name].load(weights)
        ours[name].attention = AttentionSettings(mode="sla", topk=TOPK)
    with peer.record_luts() as luts:
        upstream_bf16 = peer.forward(theirs["bf16"], x, t, context)
    luts = list(luts)
    with forced_blocks(luts):
        exact = ours["fp32"](x.float(), t, context)
    del ours["fp32"]
    torch.cuda.empty_cache()
    outputs = {"upstream bf16": upstream_bf16}
    with peer.force_luts(luts):
        outputs["upstream int8"] = peer.forward(theirs["int8"], x, t, context)
    for name in ("bf16", "int8"):
        with forced_blocks(luts):
            outputs[f"ours {name}"] = ours[name](x, t, context)
    ours["int8"].set_activation_rows(128)
    with forced_blocks(luts):
        outputs["ours int8 exact"] = ours["int8"](x, t, context)
    ours["int8"].set_activation_rows(1)
    ours["int8"].attention = AttentionSettings(mode="sagesla", topk=TOPK)
    with forced_blocks(luts):
        outputs["ours int8 sagesla"] = ours["int8"](x, t, context)
    for name, out in outputs.items():
        print(
            f"network of {layers}, same blocks: {name:18s} error to fp32 {relative_error(out, exact):.4f}, "
            f"to upstream bf16 {relative_error(out, upstream_bf16):.4f}"
        )
    for name in ("bf16", "int8"):
        ours[name].attention = AttentionSettings(mode="sla", topk=TOPK)
    own_blocks = ours["bf16"](x, t, context)
    print(
        f"network of {layers}, own blocks: ours bf16 to upstream bf16 {relative_error(own_blocks, upstream_bf16):.4f}"
    )

    def sagesla() -> Tensor:
        ours["int8"].attention = AttentionSettings(mode="sagesla", topk=TOPK)
        out = ours["int8"](x, t, context)
        ours["int8"].attention = AttentionSettings(mode="sla", topk=TOPK)
        return out

    runs = {
        "upstream bf16 + sla": lambda: peer.forward(theirs["bf16"], x, t, context),
        "upstream int8 + sla": lambda: peer.forward(theirs["int8"], x, t, context),
        "ours bf16 + sla": lambda: ours["bf16"](x, t, context),
        "ours int8 + sla": lambda: ours["int8"](x, t, context),
        "ours int8 + sagesla": sagesla,
    }
    for name, timing in interleaved(runs, repeats).items():
        print(f"{name:22s} {timing.ms:8.1f} ms a step")


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--size", type=size_argument, default="832x480x81", help="width x height x frames")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    peer = load_peer(arguments.peer)
    width, height, frames = arguments.size
    latent = latent_size(frames, height, width)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {size_text(arguments.size)}")
    compare_gemm(peer)
    compare_attention(peer, floors.tokens_of(arguments.size))
    compare_network(peer, arguments.layers, latent, arguments.repeats)


if __name__ == "__main__":
    main()
