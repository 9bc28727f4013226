"""The command line as a user runs it: from the package, from the folder, and what it says when it refuses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
import torch

import turbowan
from turbowan.turbo_core import checkpoint, cli

ROOT = Path(turbowan.__file__).parent
MODULE = [sys.executable, "-m", "turbowan"]


def run(arguments: list[str], cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments, cwd=cwd, capture_output=True, text=True, timeout=120, env=os.environ | environment, check=False
    )


@pytest.fixture
def source(tmp_path: Path) -> Path:
    tensors = tiny.tiny_tensors(text_dim=64, in_dim=36, quantized=True, num_layers=1)
    return tiny.save_pth(tmp_path / "TurboWan2.2-I2V-A14B-high-720P-quant.pth", tensors)


@pytest.mark.parametrize("way", ["module", "folder"])
def test_convert_and_inspect(tmp_path: Path, source: Path, way: str) -> None:
    if way == "module":
        command = MODULE
    else:
        (tmp_path / "comfyui-turbowan").symlink_to(ROOT)
        command = [sys.executable, "comfyui-turbowan"]
    done = run([*command, "convert", source.name, "out.safetensors"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "out.safetensors: Wan I2V (dim 256, 1 blocks)" in done.stdout
    assert "100%" in done.stderr
    assert checkpoint.read(tmp_path / "out.safetensors").expert == "high"

    again = run([*command, "convert", source.name, "out.safetensors"], tmp_path)
    assert again.returncode == 1
    assert again.stderr.strip().startswith("turbowan: convert: out.safetensors must not exist")
    assert len(again.stderr.strip().splitlines()) == 1


def test_folder_run_needs_no_installed_package(tmp_path: Path, source: Path) -> None:
    """With an empty `turbowan` first on the path, the folder still runs its own code, not that one."""
    (tmp_path / "lib" / "turbowan").mkdir(parents=True)
    (tmp_path / "lib" / "turbowan" / "__init__.py").write_text("raise ImportError('the wrong package')")
    done = run([sys.executable, str(ROOT), "inspect", source.name], tmp_path, PYTHONPATH=str(tmp_path / "lib"))
    assert done.returncode == 0, done.stderr


def test_help_needs_no_torch(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    done = run([*MODULE, "--help"], tmp_path, PYTHONPATH=str(tmp_path), COLUMNS="200")
    assert done.returncode == 0, done.stderr
    for command in cli.COMMANDS:
        assert command.name in done.stdout
        assert command.summary in done.stdout


def test_missing_dependency_is_named(tmp_path: Path, source: Path) -> None:
    (tmp_path / "safetensors").mkdir()
    (tmp_path / "safetensors" / "__init__.py").write_text(
        "raise ModuleNotFoundError('No module named safetensors', name='safetensors')"
    )
    done = run([*MODULE, "inspect", str(source)], tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr == (
        "turbowan: the Python package safetensors must be installed; run `pip install safetensors`\n"
    )


def test_inspect_describes_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = tiny.tiny_tensors(text_dim=64, in_dim=36, quantized=True) | {"accum_iteration": torch.zeros(1)}
    path = tiny.save_pth(tmp_path / "a-low.pth", {"state_dict": {f"net.{k}": v for k, v in tensors.items()}})
    assert cli.main(["inspect", str(path)]) == 0
    out = capsys.readouterr().out
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert lines["model"].startswith("Wan I2V (dim 256, 2 blocks): dim 256, ffn 384, 2 heads")
    assert lines["layout"] == "PyTorch, TurboDiffusion, prefix net."
    assert lines["attention"].startswith("SLA-trained")
    assert lines["weights"] == "block-int8"
    assert lines["expert"] == "low"
    assert "20 int8" in lines["tensors"]
    assert lines["ignored"] == "net.accum_iteration"


def test_convert_int8_with_expert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tiny.save_pth(tmp_path / "a.pth", tiny.tiny_tensors(text_dim=64, in_dim=36, num_layers=1))
    target = tmp_path / "b.safetensors"
    assert cli.main(["convert", str(path), str(target), "--int8", "--expert", "low"]) == 0
    read = checkpoint.read(target)
    assert read.config.quantized
    assert read.expert == "low"
    assert "b.safetensors" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "{tmp}/none.pth"], "checkpoint: {tmp}/none.pth must exist"),
        (["convert", "{tmp}/none.pth", "{tmp}/b.safetensors"], "checkpoint: {tmp}/none.pth must exist"),
        (["convert", "{tmp}/none.pth", "{tmp}/b.pth"], "convert: the output must end in .safetensors"),
        (["inspect", "{tmp}"], "checkpoint: {tmp} must be a model file, came a folder"),
    ],
)
def test_refusals_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert cli.main([argument.format(tmp=tmp_path) for argument in arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("turbowan: " + message.format(tmp=tmp_path))
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [[], ["fly"], ["convert"], ["convert", "a", "b", "--expert", "middle"]])
def test_wrong_usage_shows_the_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    assert "usage: turbowan" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_leaves_no_half_file(tmp_path: Path) -> None:
    source = tiny.save_pth(tmp_path / "in.pth", tiny.tiny_tensors(text_dim=64, dim=1024, ffn_dim=4096, num_layers=8))
    process = subprocess.Popen(
        [*MODULE, "convert", str(source), "out.safetensors", "--int8"],
        cwd=tmp_path, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".out.safetensors.*.partial")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error.rstrip().endswith("turbowan: interrupted; nothing was written")
    assert "Traceback" not in error
    assert [path.name for path in tmp_path.iterdir()] == ["in.pth"]
