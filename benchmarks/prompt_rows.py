"""Rows of the stage `prompt`: the shipped workflow through ComfyUI's queue, warm, from the prompt's start to its MP4.

Seconds are the host's as `host_run` sees them; the first prompt (files, JIT) is not counted. One prompt goes through
images and the host's own MP4: the peer of decoding and encoding at once. ComfyUI's native models have no few-step
sampler: what 50 steps with CFG would take there is counted from its forward and decode where this run has measured
them, and from that MP4. Memory is what the GPU holds more than before ComfyUI was started.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from turbowan.benchmarks import floors, host_run, random_vae, synthetic
from turbowan.benchmarks.ceilings import Ceilings
from turbowan.benchmarks.contestants import DENSE, NATIVE
from turbowan.benchmarks.host_run import Figures
from turbowan.benchmarks.prompt_stages import DECODER, IMAGE_DECODER, SAMPLER
from turbowan.benchmarks.report import Row
from turbowan.benchmarks.request import Request
from turbowan.benchmarks.vae_rows import WIDTH

STEPS = 4
NATIVE_FORWARDS = 100  # 50 steps, each with and without the prompt
WARM = ("warm 1", "warm 2", "warm 3")
THROUGH_IMAGES = tuple(f"{host_run.IMAGES} {turn}" for turn in (1, 2))
PASSES = ("cold", THROUGH_IMAGES[0], WARM[0], THROUGH_IMAGES[1], *WARM[1:])
SAVE = "SaveVideo"


def measure(request: Request, ceilings: Ceilings, measured: Sequence[Row]) -> list[Row]:
    """`measured`: rows of this run's other stages, for the native figure."""
    if request.comfy is None:
        raise SystemExit("the stage prompt needs --comfy, a ComfyUI checkout")
    plan = host_run.Plan(
        comfy=request.comfy, python=Path(sys.executable), model=request.model, size=request.size, steps=STEPS,
        cpu=False, flags=(),
    )  # fmt: skip
    free, total = torch.cuda.mem_get_info()
    with tempfile.TemporaryDirectory() as folder:
        runs = {name: figures for name, figures, _ in host_run.run_prompts(plan, Path(folder), PASSES)}
    host_run.print_table(runs)
    warm, images = ([runs[name] for name in names] for names in (WARM, THROUGH_IMAGES))
    native = native_prompt_ms(measured, _of_nodes(images, SAVE))
    floor = STEPS * _step_floor(request, ceilings), _decode_floor(request, ceilings)
    label = f"{request.label} prompt, {STEPS} steps"
    command = request.command("prompt")
    peer = "native, 50 steps with CFG (counted)" if native else None
    used = max(figures.gpu_used for figures in warm)  # 0 without nvidia-smi
    return [
        Row(name=label, stage="prompt", ms=_of_nodes(warm, "total"), peer=peer, peer_ms=native, floor_ms=sum(floor),
            peak_gib=(used - (total - free)) / host_run.GIB if used else None, command=command),
        Row(name=f"{label}: sampler", stage="prompt", ms=_of_nodes(warm, SAMPLER), floor_ms=floor[0], command=command),
        Row(name=f"{label}: VAE decode and MP4", stage="prompt", ms=_of_nodes(warm, DECODER, SAVE),
            peer="the same decoder, then ComfyUI's MP4", peer_ms=_of_nodes(images, IMAGE_DECODER, "CreateVideo", SAVE),
            floor_ms=floor[1], command=command),
    ]  # fmt: skip


def native_prompt_ms(measured: Sequence[Row], mp4: float) -> float | None:
    """50 steps with CFG, decode and MP4 of ComfyUI's own models, or None where a part was not measured."""
    forward = next((row.peer_ms for row in measured if row.stage == "step" and row.peer == NATIVE + DENSE), None)
    decode = next((row.peer_ms for row in measured if row.stage == "vae" and "decode" in row.name), None)
    return None if forward is None or decode is None else NATIVE_FORWARDS * forward + decode + mp4


def _of_nodes(runs: Sequence[Figures], *nodes: str) -> float:
    """Median milliseconds of the nodes together, with compiling and a sampler's steps."""
    return 1e3 * statistics.median(
        sum(value for name, value in run.seconds.items() if any(f"{name} ".startswith(node + " ") for node in nodes))
        for run in runs
    )


def _step_floor(request: Request, ceilings: Ceilings) -> float:
    config, tokens = synthetic.MODELS[request.model], floors.tokens_of(request.size)
    return floors.total_ms(floors.step(config, tokens, bits=8, mode="sla"), ceilings)


def _decode_floor(request: Request, ceilings: Ceilings) -> float:
    return floors.total_ms(floors.vae(random_vae.shapes(WIDTH), "decoder", request.size), ceilings)
