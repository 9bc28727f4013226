"""ComfyUI's modules and the pack in a process without a server, for scripts that drive the host's patchers themselves.

A test runs such a script by `report_of`, under ComfyUI's Python; the script prints its report as JSON at the end.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any


def report_of(script: Path, host_python: Path, *arguments: Path) -> Any:
    """What the script printed in its last line."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "TRITON_INTERPRET")}
    command = [str(host_python), str(script), *map(str, arguments)]
    run = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def enter(checkout: Path) -> None:
    """Make the host's modules importable, as it is when it starts with --cpu."""
    sys.argv = ["main.py", "--cpu"]
    sys.path.insert(0, str(checkout))
    os.chdir(checkout)
    server = types.ModuleType("server")
    server.PromptServer = type("PromptServer", (), {"instance": None})
    sys.modules["server"] = server
    importlib.import_module("comfy.options").enable_args_parsing()


def import_pack(pack: Path, *names: str) -> list[types.ModuleType]:
    """Modules of the pack's `nodes`, by their names; the host must have been entered, and changed where it is to be."""
    spec = importlib.util.spec_from_file_location("pack", pack / "__init__.py", submodule_search_locations=[str(pack)])
    sys.modules["pack"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return [importlib.import_module(f"pack.nodes.{name}") for name in names]
