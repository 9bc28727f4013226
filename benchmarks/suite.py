"""`turbowan bench`: the stages one after another, each against its peers, as one table and as JSON.

Every stage first checks that what it is about to time is right, and ends the run where it is not.
"""

from __future__ import annotations

import dataclasses
import datetime
import platform
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from turbowan.benchmarks import ceilings as gpu
from turbowan.benchmarks import report
from turbowan.benchmarks.ceilings import Ceilings
from turbowan.benchmarks.report import Report, Row
from turbowan.benchmarks.request import Request

PACKAGES = ("triton", "comfy-kitchen")


@torch.inference_mode()
def run(request: Request, json: Path | None) -> None:
    """Measure, print the table, and add the rows to the report at `json`."""
    if not torch.cuda.is_available():
        raise SystemExit("turbowan bench: a CUDA GPU is needed, there is none")
    old = report.read(json) if json is not None and json.is_file() else None
    name = torch.cuda.get_device_name()
    reached = gpu.measure(torch.device("cuda"))
    ceilings = gpu.of_gpu(name, **reached)
    torch.cuda.empty_cache()
    print(f"{name}: {reached['bf16']:.0f} TFLOP/s bf16 and {reached['copy']:.2f} TB/s copy now; ceilings {ceilings}")
    rows: list[Row] = []
    for stage in stages(request):
        started = time.perf_counter()
        rows += _measure(stage, request, ceilings, rows)
        print(f"stage {stage}: {time.perf_counter() - started:.0f} s", flush=True)
        torch.cuda.empty_cache()
        new = Report(
            gpu=name,
            versions=versions(),
            date=datetime.date.today().isoformat(),
            ceilings=dataclasses.asdict(ceilings) | {"reached": reached},
            rows=tuple(rows),
        )
        if json is not None:  # after every stage: a later one may end the run
            (report.merged(old, new) if old else new).write(json)
    print(f"\n{name}, {', '.join(f'{k} {v}' for k, v in new.versions.items())}, {new.date}\n{report.table(rows)}")


def stages(request: Request) -> list[str]:
    """The modules to run, in order: block and step are one."""
    wanted = ["step" if stage == "block" else stage for stage in report.STAGES if stage in request.stages]
    return list(dict.fromkeys(wanted))


def _measure(stage: str, request: Request, ceilings: Ceilings, measured: Sequence[Row]) -> list[Row]:
    """A stage's module is imported when it is its turn: host_run needs packages that the others do not."""
    if stage == "kernel":
        from turbowan.benchmarks import kernel_rows

        return kernel_rows.measure(request, ceilings)
    if stage == "step":
        from turbowan.benchmarks import network_rows

        return network_rows.measure(request, ceilings)
    if stage == "vae":
        from turbowan.benchmarks import vae_rows

        return vae_rows.measure(request, ceilings)
    from turbowan.benchmarks import prompt_rows

    return prompt_rows.measure(request, ceilings, measured)


def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
