"""Rows of the stage `prompt`: the shipped workflow through ComfyUI's queue, warm, from the prompt's start to its MP4.

Seconds are the host's as `host_run` sees them; the first prompt (files, JIT) is not counted. ComfyUI's native models
have no few-step sampler: what 50 steps with CFG would take there is counted from its forward and decode where this run
has measured them, and its MP4 from ours. Memory is what the GPU holds more than before ComfyUI was started.
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
from turbowan.benchmarks.prompt_stages import DECODER, SAMPLER
from turbowan.benchmarks.report import Row
from turbowan.benchmarks.request import Request
from turbowan.benchmarks.vae_rows import WIDTH

STEPS = 4
NATIVE_FORWARDS = 100  # 50 steps, each with and without the prompt
PASSES = ("cold", "warm", "warm 2", "warm 3")
STAGES = {"sampler": SAMPLER, "VAE decode": DECODER, "MP4": "SaveVideo"}


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
    warm = [runs[name] for name in PASSES[1:]]
    whole = 1e3 * statistics.median(figures.seconds["total"] for figures in warm)
    parts = {
        stage: 1e3 * statistics.median(_of_node(figures.seconds, node) for figures in warm)
        for stage, node in STAGES.items()
    }
    native = native_prompt_ms(measured, parts["MP4"])
    floor = STEPS * _step_floor(request, ceilings), _decode_floor(request, ceilings)
    label = f"{request.label} prompt, {STEPS} steps"
    command = request.command("prompt")
    peer = "native, 50 steps with CFG (counted)" if native else None
    used = max(figures.gpu_used for figures in warm)  # 0 without nvidia-smi
    rows = [
        Row(name=label, stage="prompt", ms=whole, peer=peer, peer_ms=native, floor_ms=sum(floor),
            peak_gib=(used - (total - free)) / host_run.GIB if used else None, command=command)
    ]  # fmt: skip
    for (stage, milliseconds), least in zip(parts.items(), (*floor, None), strict=True):
        rows.append(Row(name=f"{label}: {stage}", stage="prompt", ms=milliseconds, floor_ms=least, command=command))
    return rows


def native_prompt_ms(measured: Sequence[Row], mp4: float) -> float | None:
    """50 steps with CFG, decode and MP4 of ComfyUI's own models, or None where a part was not measured."""
    forward = next((row.peer_ms for row in measured if row.stage == "step" and row.peer == NATIVE + DENSE), None)
    decode = next((row.peer_ms for row in measured if row.stage == "vae" and "decode" in row.name), None)
    return None if forward is None or decode is None else NATIVE_FORWARDS * forward + decode + mp4


def _of_node(seconds: dict[str, float], node: str) -> float:
    """A node's seconds, compiling and a sampler's steps together."""
    return sum(value for name, value in seconds.items() if name == node or name.startswith(node + " "))


def _step_floor(request: Request, ceilings: Ceilings) -> float:
    config, tokens = synthetic.MODELS[request.model], floors.tokens_of(request.size)
    return floors.total_ms(floors.step(config, tokens, bits=8, mode="sla"), ceilings)


def _decode_floor(request: Request, ceilings: Ceilings) -> float:
    return floors.total_ms(floors.vae(random_vae.shapes(WIDTH), "decoder", request.size), ceilings)
