"""All probes in their order, each guarded, and the findings as text or JSON."""

from __future__ import annotations

import json
import logging
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from . import comfyui, files, gpu, kernels, system
from .finding import LEVELS, Finding, Probe, Surroundings, warn

log = logging.getLogger("turbowan")

PACK = Path(__file__).parents[2]

PROBES = (
    Probe(topic="python", look=system.python),
    Probe(topic="comfyui", look=comfyui.host),
    Probe(topic="comfyui", look=comfyui.copies),
    Probe(topic="packages", look=system.packages),
    Probe(topic="torch", look=gpu.torch_build, seconds=60),  # imports torch
    Probe(topic="driver", look=gpu.driver),
    Probe(topic="gpu", look=gpu.gpus, seconds=20),  # wakes the driver up
    Probe(topic="windows", look=system.windows),
    Probe(topic="triton", look=kernels.triton, seconds=20),  # imports Triton
    Probe(topic="compiler", look=kernels.compiler),
    Probe(topic="kernels", look=kernels.dispatch, seconds=180),  # compiles small kernels, the first time on a machine
    Probe(topic="sageattention", look=kernels.sageattention, seconds=60),  # runs it once
    Probe(topic="memory", look=system.memory),
    Probe(topic="disk", look=system.disk),
    Probe(topic="models", look=files.networks, seconds=30),  # opens every file's header
    Probe(topic="models", look=files.text_encoders, seconds=15),
    Probe(topic="models", look=files.vaes, seconds=15),
    Probe(topic="models", look=files.demo),
)
MARKS = {"ok": "ok   ", "warn": "WARN ", "error": "ERROR"}


def examine(surroundings: Surroundings, probes: Sequence[Probe] = PROBES) -> list[Finding]:
    """Ask every probe; none can fail or hang the caller."""
    return [finding for probe in probes for finding in ask(probe, surroundings)]


def ask(probe: Probe, surroundings: Surroundings) -> list[Finding]:
    """What a probe found within its time; its own failure is a finding as well."""
    found: list[Finding] = []

    def look() -> None:
        try:
            for finding in probe.look(surroundings):
                found.append(finding)
        except ModuleNotFoundError as failure:
            text = f"could not be examined without the package {failure.name or failure}"
            found.append(warn(probe.topic, text, "install what is lacking, then run this again"))
        except Exception as failure:  # whatever a machine answers, the doctor goes on
            log.debug("doctor: %s", probe.topic, exc_info=True)
            text = f"could not be examined: {type(failure).__name__}: {failure}"
            found.append(warn(probe.topic, text, "report this with the lines above"))

    started = time.monotonic()
    thread = threading.Thread(target=look, name=f"doctor {probe.topic}", daemon=True)
    thread.start()
    thread.join(probe.seconds)
    if thread.is_alive():
        text = f"no answer within {time.monotonic() - started:.0f} s; the rest of this examination is left out"
        return [*found, warn(probe.topic, text, "a slow disk, a busy GPU or its driver may be why")]
    return found


def as_text(findings: Sequence[Finding]) -> str:
    """Lines for people; a remedy below each finding that has one."""
    lines = []
    for finding in findings:
        lines.append(f"{MARKS[finding.level]}  {finding.topic:<13}  {finding.said}")
        if finding.remedy:
            lines.append(f"       {'':<13}  -> {finding.remedy}")
    counts = ", ".join(f"{sum(f.level == level for f in findings)} {level}" for level in LEVELS)
    if any("`turbowan " in finding.remedy for finding in findings) and shutil.which("turbowan") is None:
        lines += ["", f'turbowan is not on the PATH; the same command: "{sys.executable}" "{PACK}"']
    return "\n".join([*lines, "", f"TurboWan doctor: {counts}"])


def as_json(findings: Sequence[Finding]) -> str:
    rows = [{"topic": f.topic, "level": f.level, "said": f.said, "remedy": f.remedy} for f in findings]
    return json.dumps({"findings": rows, "worst": worst(findings)}, indent=2, ensure_ascii=False)


def worst(findings: Sequence[Finding]) -> str:
    return max((finding.level for finding in findings), key=LEVELS.index, default="ok")
