"""Rows of the stages `step` and `block`: one forward, and one transformer block of it, of ours and the peers.

A block's time is the slope between a whole network and one with half its blocks, so that embeddings and head drop out.
Nothing is timed unless the kernels agree with their references and every network with the same function agrees with
the bf16 one to `AGREEMENT`, in fp8 to `FP8_AGREEMENT`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from turbowan.benchmarks import contestants, floors, synthetic
from turbowan.benchmarks.ceilings import Ceilings
from turbowan.benchmarks.contestants import DENSE, NATIVE, UPSTREAM, Contestant, Weights
from turbowan.benchmarks.dit_step import ROWS, TOPK, check_kernels, relative_error
from turbowan.benchmarks.report import Row
from turbowan.benchmarks.request import Request, Size
from turbowan.benchmarks.timing import Timing, interleaved
from turbowan.turbo_core.config import WanConfig
from turbowan.turbo_core.vae import latent_size

AGREEMENT = 0.05  # int8 to bf16 is near 0.015 on these weights, another block set near 0.01; a wrong network near 1
FP8_AGREEMENT = 0.15  # e4m3 rounds a linear's inputs 10 dB worse, so that about 0.05 is expected


def measure(request: Request, ceilings: Ceilings) -> list[Row]:
    device = torch.device("cuda")
    check_kernels(device)
    config = synthetic.MODELS[request.model]
    chosen = [row for row in ROWS if request.rows in row.name]
    if not chosen:
        names = ", ".join(row.name for row in ROWS)
        raise SystemExit(f"--rows must be part of one of: {names}; got {request.rows!r}")
    weights = Weights(config, device)
    networks = list(contestants.ours(weights, chosen))
    if request.peer is not None:
        networks += contestants.upstream(weights, request.peer, chosen)
    if request.comfy is not None:
        networks.append(contestants.comfyui(weights, request.comfy))
    inputs = _inputs(config, request.size, device)
    _agree(networks, inputs)
    whole = _timed(networks, inputs, request.repeats)
    rows = _paired(request, "step", networks, whole, ceilings, config.num_layers)
    if "block" in request.stages:
        half = config.num_layers // 2
        with contestants.shallow(networks, half):
            part = _timed(networks, inputs, request.repeats)
        slopes = {
            name: Timing(ms=(timing.ms - part[name].ms) / (config.num_layers - half), peak_gib=timing.peak_gib)
            for name, timing in whole.items()
        }
        rows += _paired(request, "block", networks, slopes, ceilings, 1)
    return [row for row in rows if row.stage in request.stages]


def _inputs(config: WanConfig, size: Size, device: torch.device) -> tuple[Tensor, ...]:
    width, height, frames = size
    generator = torch.Generator(device=device).manual_seed(5)
    half = {"device": device, "dtype": torch.bfloat16, "generator": generator}
    x = torch.randn(1, config.in_dim, *latent_size(frames, height, width), **half)
    return x, torch.tensor([988.0], device=device), torch.randn(1, floors.TEXT_TOKENS, config.text_dim, **half)


def _agree(networks: Sequence[Contestant], inputs: tuple[Tensor, ...]) -> None:
    """SystemExit unless all dense networks agree, and all sparse ones."""
    first: dict[bool, tuple[str, Tensor]] = {}
    for network in sorted(networks, key=lambda network: "bf16" not in network.name):
        network.prepare()
        if network.row is not None:
            network.net.compile_ahead(*inputs)  # in parallel; a first call would compile one kernel after another
        out = network.forward(*inputs).float()
        if not torch.isfinite(out).all():
            raise SystemExit(f"{network.name}: the output must be finite; nothing is timed")
        name, reference = first.setdefault(network.name.endswith("dense"), (network.name, out))
        error = relative_error(out, reference)
        print(f"check {network.name:26s} {error:.4f} from {name}", flush=True)
        limit = FP8_AGREEMENT if network.name.startswith("fp8") else AGREEMENT
        if not error < limit:
            raise SystemExit(f"{network.name} must agree with {name} to {limit}, got {error:.3f}; nothing is timed")


def _timed(networks: Sequence[Contestant], inputs: tuple[Tensor, ...], repeats: int) -> dict[str, Timing]:
    return interleaved(
        {network.name: lambda network=network: network.forward(*inputs) for network in networks},
        repeats,
        prepare={network.name: network.prepare for network in networks},
        warm=True,  # `_agree` ran them
    )


def _paired(
    request: Request,
    stage: str,
    networks: Sequence[Contestant],
    times: Mapping[str, Timing],
    ceilings: Ceilings,
    layers: int,
) -> list[Row]:
    """Each of ours beside its peers; a block's peak is the step's and left out."""
    by_name = {network.name: network for network in networks}
    config, tokens = synthetic.MODELS[request.model], floors.tokens_of(request.size)
    peaks = {name: timing.peak_gib + by_name[name].weight_gib if layers > 1 else None for name, timing in times.items()}
    rows = []
    for own in (network for network in networks if network.row is not None):
        bits = 16 if own.name.startswith("bf16") else 8
        work = floors.block(config, tokens, bits=bits, mode=own.row.mode, topk=TOPK) * layers
        for peer in peers_of(own.name, times) or [None]:
            rows.append(
                Row(
                    name=f"{request.label} {own.name}",
                    stage=stage,
                    ms=times[own.name].ms,
                    peer=peer,
                    peer_ms=times[peer].ms if peer else None,
                    floor_ms=floors.total_ms(work, ceilings),
                    peak_gib=peaks[own.name],
                    peer_peak_gib=peaks[peer] if peer else None,
                    command=request.command(stage),
                )
            )
    return rows


def peers_of(name: str, times: Mapping[str, Timing]) -> list[str]:
    """The original's fastest, its like there, and ComfyUI's dense network beside the dense row and the first."""
    upstream = sorted((peer for peer in times if peer.startswith(UPSTREAM)), key=lambda peer: times[peer].ms)
    peers = []
    if name != DENSE:
        peers += upstream[:1]
        peers += [peer for peer in upstream[1:] if peer == UPSTREAM + name]
    if NATIVE + DENSE in times and name in (DENSE, next(iter(times))):
        peers.append(NATIVE + DENSE)
    return peers
