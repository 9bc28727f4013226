"""``turbowan bench``: the front of the folder ``benchmarks``, which only a checkout has."""

from __future__ import annotations

import argparse
import importlib
import os
from pathlib import Path
from types import ModuleType

from .command import Command

STAGES = ("kernel", "block", "step", "vae", "prompt")


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--stages", default="kernel,block,step,vae", help=f"some of {','.join(STAGES)}")
    parser.add_argument("--model", choices=("1.3b", "14b"), default="1.3b", help="random weights of this size")
    parser.add_argument("--size", default="832x480x81", help="width x height x frames")
    parser.add_argument("--rows", default="", help="only rows of ours whose name contains this, as 'int8 + sagesla'")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--comfy", type=Path, default=os.environ.get("COMFYUI_DIR"), help="a ComfyUI checkout (default: COMFYUI_DIR)"
    )
    parser.add_argument("--peer", type=Path, help="a folder with peer.py over a built TurboDiffusion")
    parser.add_argument("--json", type=Path, help="the report to write, or to renew these stages' rows in")


def _run(arguments: argparse.Namespace) -> None:
    from ..errors import SettingsError

    stages = tuple(arguments.stages.split(","))
    if unknown := [stage for stage in stages if stage not in STAGES]:
        raise SettingsError(f"bench: stages must be among {', '.join(STAGES)}, got {', '.join(unknown)}")
    if arguments.repeats < 1:
        raise SettingsError(f"bench: repeats must be 1 or more, got {arguments.repeats}")
    request = _benchmark("request").Request(
        stages=stages,
        model=arguments.model,
        size=_benchmark("request").parse_size(arguments.size),
        rows=arguments.rows,
        repeats=arguments.repeats,
        comfy=arguments.comfy,
        peer=arguments.peer,
    )
    _benchmark("suite").run(request, arguments.json)


def _benchmark(name: str) -> ModuleType:
    """A module of the folder `benchmarks`, which lies beside the core in a checkout and nowhere else."""
    package = f"{__package__.rsplit('.', 2)[0]}.benchmarks"
    try:
        return importlib.import_module(f"{package}.{name}")
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        from ..errors import SettingsError

        raise SettingsError(
            "bench: the folder benchmarks must lie in the pack, this installation came without it; "
            "clone the repository and run `python comfyui-turbowan bench` beside it"
        ) from error


BENCH = Command(
    name="bench",
    summary="time this GPU, beside its peers",
    add_arguments=_add_arguments,
    run=_run,
)
