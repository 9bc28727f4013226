"""Importing the pack does nothing: no torch, no Triton, no host, no output; and the arrows between parts hold."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HOST = {"comfy", "comfy_api", "comfy_kitchen", "comfy_execution", "folder_paths", "server", "execution"}


def imported_modules(code):
    script = f"import sys; {code}; print(*sorted(sys.modules))"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert out.stderr == ""
    return set(out.stdout.split())


def test_importing_the_pack_loads_neither_torch_nor_triton_nor_the_host():
    loaded = imported_modules("import turbowan")
    assert not loaded & ({"torch", "triton", "einops", "safetensors", "numpy"} | HOST)


def test_importing_the_core_does_not_load_triton():
    loaded = imported_modules(
        "import turbowan.turbo_core.model, turbowan.turbo_core.checkpoint, turbowan.turbo_core.vae"
    )
    assert "torch" in loaded
    # torch itself may know of Triton; the kernels must not have been imported.
    assert not {name for name in loaded if name.startswith("turbowan.kernels.") and name.endswith("_triton")}


def imports(path):
    """(level, top name) of every import in a file, function-level ones included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, (node.module or "").split(".")[0]


@pytest.mark.parametrize("folder", ["kernels", "turbo_core"])
def test_the_core_never_imports_the_host(folder):
    for path in (ROOT / folder).glob("*.py"):
        found = {name for level, name in imports(path) if level == 0} & (HOST | {"turbowan", "nodes"})
        assert not found, f"{path.name} imports {found}"


def test_kernels_import_nothing_above_them():
    for path in (ROOT / "kernels").glob("*.py"):
        assert not [name for level, name in imports(path) if level > 1], path.name


def test_the_core_does_not_import_the_nodes():
    for path in (ROOT / "turbo_core").glob("*.py"):
        above = {name for level, name in imports(path) if level == 2}
        assert above <= {"kernels"}, f"{path.name} imports {above}"


def test_requirements_mirror_the_metadata_and_leave_torch_to_the_host():
    lines = (ROOT / "requirements.txt").read_text().split()
    metadata = (ROOT / "pyproject.toml").read_text()
    assert all(f'"{line}"' in metadata for line in lines)
    assert not [line for line in lines if line.startswith(("torch", "triton"))]
