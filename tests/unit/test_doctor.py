"""The doctor: no probe can fail or hang it, and each fault that it knows brings its remedy."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from findings import NOWHERE, levels, only

import turbowan
from turbowan.turbo_core import cli
from turbowan.turbo_core.doctor import comfyui, report, system
from turbowan.turbo_core.doctor.finding import Finding, Probe, Surroundings, error, ok, version, warn

ROOT = Path(turbowan.__file__).parent


# Guards.


def test_a_failing_probe_is_a_finding() -> None:
    def look(_: Surroundings) -> Iterator[Finding]:
        yield ok("x", "first")
        raise PermissionError("no access")

    first, second = report.ask(Probe(topic="x", look=look), NOWHERE)
    assert first.said == "first"
    assert (second.level, second.topic) == ("warn", "x")
    assert second.said == "could not be examined: PermissionError: no access"


def test_a_hanging_probe_is_left_behind() -> None:
    def look(_: Surroundings) -> Iterator[Finding]:
        yield ok("x", "first")
        time.sleep(30)

    started = time.monotonic()
    first, second = report.ask(Probe(topic="x", look=look, seconds=0.1), NOWHERE)
    assert time.monotonic() - started < 5
    assert first.said == "first"
    assert "no answer within 0 s" in second.said


def test_quick_probes_say_nothing_else() -> None:
    """Those that may take longer than 2 s are the ones that import, compile, or open files."""
    slow = {probe.topic for probe in report.PROBES if probe.seconds > 2}
    assert slow == {"torch", "gpu", "triton", "kernels", "sageattention", "models"}


def test_text_and_json() -> None:
    findings = [ok("a", "fine"), warn("b", "so so", "do this"), error("c", "broken", "do that")]
    text = report.as_text(findings)
    assert "WARN   b" in text
    assert "-> do this" in text
    assert text.endswith("TurboWan doctor: 1 ok, 1 warn, 1 error")
    told = json.loads(report.as_json(findings))
    assert told["worst"] == "error"
    assert told["findings"][1] == {"topic": "b", "level": "warn", "said": "so so", "remedy": "do this"}
    assert report.worst([]) == "ok"


@pytest.mark.parametrize(("installed", "told"), [(None, True), ("/usr/bin/turbowan", False)])
def test_commands_can_be_typed(monkeypatch: pytest.MonkeyPatch, installed: str | None, told: bool) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: installed)
    asks = warn("models", "nothing there", "`turbowan download t2v-1.3b`")
    assert (f'"{sys.executable}" "{ROOT}"' in report.as_text([asks])) is told
    assert "PATH" not in report.as_text([ok("models", "there")])


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("2.11.0+cu130", (2, 11, 0)),
        ("3.6.0rc1", (3, 6, 0)),
        ("580.95.05", (580, 95, 5)),
        ("3.6.0.post25", (3, 6, 0)),
        ("?", ()),
    ],
)
def test_versions(text: str, numbers: tuple[int, ...]) -> None:
    assert version(text) == numbers


# The system.


def test_windows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path / "include")})
    monkeypatch.setattr(ctypes, "WinDLL", lambda name: None, raising=False)
    runtime, headers = system.windows(NOWHERE)
    assert levels([runtime, headers]) == ["ok", "warn"]
    assert "include and libs" in headers.said

    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "WinDLL", missing, raising=False)
    for file in ("include/Python.h", "libs/python311.lib"):
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).touch()
    runtime, headers = system.windows(NOWHERE)
    assert levels([runtime, headers]) == ["error", "ok"]
    assert "Visual Studio is not needed" in runtime.remedy


def test_no_windows_findings_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    assert list(system.windows(NOWHERE)) == []


def test_lacking_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"einops": "0.6.1", "tqdm": "4.70.1", "transformers": "5.0"}
    monkeypatch.setattr(system, "_installed", there.get)
    lacking, found, single = system.packages(NOWHERE)
    assert lacking.level == "error"
    assert "einops>=0.7 (0.6.1), safetensors>=0.4.2 (missing)" in lacking.said
    assert "-m pip install -r" in lacking.remedy
    assert found.said == "tqdm 4.70.1"
    assert "transformers 5.0" in single.said
    assert "huggingface_hub missing (download)" in single.said
    monkeypatch.setattr(system, "_installed", lambda name: system.UNKNOWN)
    assert levels(system.packages(NOWHERE)) == ["ok", "ok"]


def test_little_memory_and_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(system, "_memory", lambda: (8e9, 4e9))
    assert only(system.memory(NOWHERE)).level == "warn"
    monkeypatch.setattr(system, "_memory", lambda: (32e9, 4e9))
    assert only(system.memory(NOWHERE)).said == "32 GB of system memory, 4 GB free"
    monkeypatch.chdir(tmp_path)
    surroundings = Surroundings(base=tmp_path, folders={"vae": (tmp_path, tmp_path / "absent")})
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=5e9))
    assert only(system.disk(surroundings)).level == "warn"
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=50e9))
    assert only(system.disk(surroundings)).level == "ok"


def test_interpreted_kernels_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert levels(system.python(NOWHERE)) == ["ok", "warn"]


# ComfyUI.


@pytest.mark.parametrize(("found", "level"), [("0.33.0", "ok"), ("0.8.0", "ok"), ("0.7.2", "error")])
def test_comfyui_versions(tmp_path: Path, found: str, level: str) -> None:
    (tmp_path / "comfyui_version.py").write_text(f'# written\n__version__ = "{found}"\n')
    finding = only(comfyui.host(Surroundings(base=tmp_path)))
    assert finding.level == level
    assert f"ComfyUI {found}" in finding.said


def test_comfyui_that_is_not_known(tmp_path: Path) -> None:
    assert only(comfyui.host(Surroundings(base=tmp_path))).level == "ok"
    assert only(comfyui.host(Surroundings(base=tmp_path, comfyui="0.5.0"))).level == "error"
    assert only(comfyui.host(NOWHERE)).level == "warn"
    assert "COMFYUI_DIR names" in only(comfyui.host(Surroundings(base=tmp_path / "none"))).said


def test_two_copies_of_the_pack(tmp_path: Path) -> None:
    surroundings = Surroundings(base=tmp_path)
    assert list(comfyui.copies(surroundings)) == []
    for name, project in (("a", "comfyui-turbowan"), ("b", "other"), ("c", "comfyui-turbowan")):
        folder = tmp_path / "custom_nodes" / name
        folder.mkdir(parents=True)
        (folder / "pyproject.toml").write_text(f'[project]\nname = "{project}"\n')
        if name == "a":
            assert only(comfyui.copies(surroundings)).level == "ok"
    found = only(comfyui.copies(surroundings))
    assert found.level == "warn"
    assert "several copies" in found.said
    (tmp_path / "custom_nodes" / "c").rename(tmp_path / "custom_nodes" / "c.disabled")
    assert only(comfyui.copies(surroundings)).level == "ok"


# The command.


def test_the_command_here(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    status = cli.main(["doctor", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert {finding["topic"] for finding in told["findings"]} >= {probe.topic for probe in report.PROBES} - {"windows"}
    assert status == (told["worst"] == "error")
    assert "could not be examined" not in str(told)


def test_a_broken_paths_file_is_a_finding(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMFYUI_DIR", str(tmp_path))
    (tmp_path / "extra_model_paths.yaml").write_text("a: [")
    cli.main(["doctor"])
    assert "extra_model_paths.yaml: must be YAML" in capsys.readouterr().out


def test_it_runs_without_torch_and_without_installation(tmp_path: Path) -> None:
    """From custom_nodes, by a Python that has nothing: the report says so."""
    stubs = tmp_path / "stubs"
    stubs.mkdir()
    for name in ("torch", "triton", "einops"):
        (stubs / f"{name}.py").write_text(f"raise ModuleNotFoundError('No module named {name}', name='{name}')")
    base = tmp_path / "ComfyUI"
    (base / "custom_nodes").mkdir(parents=True)
    (base / "models" / "vae").mkdir(parents=True)
    (base / "custom_nodes" / "comfyui-turbowan").symlink_to(ROOT)
    done = subprocess.run(
        [sys.executable, "custom_nodes/comfyui-turbowan", "doctor"],
        cwd=base, capture_output=True, text=True, timeout=60, check=False,
        env=os.environ | {"PYTHONPATH": str(stubs), "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert done.stderr == ""
    assert "ERROR  torch          torch cannot be imported: No module named torch" in done.stdout
    assert "WARN   kernels        could not be examined without the package torch" in done.stdout
    assert "report this" not in done.stdout
    assert f"this pack lies in {base / 'custom_nodes' / 'comfyui-turbowan'}" in done.stdout
