"""``turbowan doctor``."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from .command import Command

if TYPE_CHECKING:
    from ..doctor.finding import Finding, Surroundings


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="for programs: findings with level and remedy")


def _run(arguments: argparse.Namespace) -> int:
    """1 if anything is an error."""
    from ..doctor.report import as_json, as_text, examine, worst

    surroundings, unknown = _surroundings()
    findings = [*unknown, *examine(surroundings)]
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a path may hold what the terminal cannot show
    print(as_json(findings) if arguments.json else as_text(findings))
    return 1 if worst(findings) == "error" else 0


def _surroundings() -> tuple[Surroundings, list[Finding]]:
    """Where this runs, and why the model folders are not known, if so."""
    from .. import demo_bundle
    from ..doctor.finding import Surroundings, warn
    from ..errors import TurboWanError
    from ..model_folders import base_folder, search_folders

    base = base_folder()
    try:
        folders = {folder: search_folders(folder) for folder in ("diffusion_models", "text_encoders", "vae")}
    except TurboWanError as failure:
        return Surroundings(base=base), [warn("models", str(failure), "correct that file, then run this again")]
    if (networks := demo_bundle.FOLDER / "diffusion_models").is_dir():
        folders["diffusion_models"] += (networks,)
    return Surroundings(base=base, folders=folders), []


DOCTOR = Command(
    name="doctor",
    summary="look at GPU, driver, torch, Triton, ComfyUI and model files, with a remedy for what is wrong",
    add_arguments=_add_arguments,
    run=_run,
)
