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
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import tiny_umt5
import torch
from safetensors.torch import save_file

import turbowan
from turbowan.kernels import channel_fp8, dispatch
from turbowan.turbo_core import cli, demo_bundle
from turbowan.turbo_core.doctor import comfyui, files, gpu, kernels, report, system
from turbowan.turbo_core.doctor.finding import Finding, Probe, Surroundings, error, ok, version, warn

ROOT = Path(turbowan.__file__).parent
NOWHERE = Surroundings()


def levels(findings: Iterable[Finding]) -> list[str]:
    return [finding.level for finding in findings]


def only(findings: Iterable[Finding]) -> Finding:
    (finding,) = findings
    return finding


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


# torch, GPU, driver.


def fake_torch(
    monkeypatch: pytest.MonkeyPatch,
    *,
    release: str = "2.11.0",
    cuda: str | None = "13.0",
    hip: str | None = None,
    capability: tuple[int, int] | None = (9, 0),
    architectures: tuple[str, ...] = ("sm_80", "sm_90", "sm_100", "sm_120", "compute_120"),
) -> None:
    count = 0 if capability is None else 1
    properties = None if capability is None else SimpleNamespace(major=capability[0], minor=capability[1], name="GPU X")
    on_gpu = SimpleNamespace(
        is_available=lambda: count > 0,
        device_count=lambda: count,
        get_device_properties=lambda index: properties,
        mem_get_info=lambda index: (2**33, 2**34),
        get_arch_list=lambda: list(architectures),
    )
    module = SimpleNamespace(__version__=release, version=SimpleNamespace(cuda=cuda, hip=hip), cuda=on_gpu)
    monkeypatch.setitem(sys.modules, "torch", module)


@pytest.mark.parametrize(
    ("build", "level", "words"),
    [
        ({}, "ok", "CUDA 13.0"),
        ({"release": "2.3.1"}, "error", "2.4 or newer"),
        ({"cuda": None, "hip": "6.2"}, "warn", "ROCm"),
        ({"cuda": None}, "error", "CPU only"),
    ],
)
def test_torch_builds(monkeypatch: pytest.MonkeyPatch, build: dict[str, Any], level: str, words: str) -> None:
    fake_torch(monkeypatch, **build)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    found = only(gpu.torch_build(NOWHERE))
    assert found.level == level
    assert words in found.said + found.remedy


def test_no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    found = only(gpu.torch_build(NOWHERE))
    assert found.level == "error"
    assert "ComfyUI's own Python" in found.remedy


@pytest.mark.parametrize(
    ("build", "level", "words"),
    [
        ({}, "ok", "compute capability 9.0, 16.0 GiB (8.0 free)"),
        ({"capability": (8, 6)}, "ok", "8.6"),
        ({"capability": (7, 5), "architectures": ("sm_75",)}, "warn", "RTX 30 and newer"),
        ({"capability": (12, 0), "architectures": ("sm_80", "sm_90")}, "error", "no code for it"),
        ({"capability": (12, 0), "architectures": ("sm_90", "compute_90"), "release": "2.6.0"}, "error", "2.7"),
        ({"capability": (12, 0), "release": "2.8.0"}, "ok", "12.0"),
        ({"capability": None}, "warn", "demo model"),
    ],
)
def test_gpus(monkeypatch: pytest.MonkeyPatch, build: dict[str, Any], level: str, words: str) -> None:
    fake_torch(monkeypatch, **build)
    found = only(gpu.gpus(NOWHERE))
    assert found.level == level
    assert words in found.said + found.remedy


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script stands for nvidia-smi")
@pytest.mark.parametrize(
    ("answer", "status", "cuda", "level", "words"),
    [
        ("580.95.05", 0, "13.0", "ok", "NVIDIA driver 580.95.05"),
        ("560.35.03", 0, "13.0", "error", "needs 580 or newer"),
        ("560.35.03", 0, "12.8", "ok", "CUDA 12.8"),
        ("560.35.03", 0, None, "ok", "NVIDIA driver"),
        ("couldn't communicate with the driver", 9, "13.0", "error", "nvidia-smi fails: couldn't"),
    ],
)
def test_drivers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answer: str, status: int, cuda: str | None, level: str, words: str
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f'#!/bin/sh\necho "{answer}"\nexit {status}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    fake_torch(monkeypatch, cuda=cuda)
    found = only(gpu.driver(NOWHERE))
    assert found.level == level
    assert words in found.said + found.remedy


# Triton and kernels.


def test_a_missing_compiler_and_headers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(kernels.platform, "system", lambda: "Linux")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    found = only(kernels.compiler(NOWHERE))
    assert found.level == "warn"
    assert "a C compiler (gcc or clang) and Python's headers" in found.said
    assert "apt install gcc python3-dev" in found.remedy
    monkeypatch.setenv("CC", "my-compiler")
    assert "the compiler that CC names, my-compiler" in only(kernels.compiler(NOWHERE)).said
    (tmp_path / "Python.h").touch()
    (tmp_path / "my-compiler").touch()
    (tmp_path / "my-compiler").chmod(0o755)
    assert only(kernels.compiler(NOWHERE)).level == "ok"


@pytest.mark.parametrize(
    ("platform", "release", "triton", "level", "words"),
    [
        ("linux", "2.11.0", "3.6.0", "ok", "Triton 3.6.0"),
        ("linux", "2.9.0", "3.6.0", "ok", "Triton 3.6.0"),
        ("win32", "2.9.0", "3.5.1.post24", "ok", "Triton 3.5.1"),
        ("win32", "2.9.0", "3.6.0.post25", "warn", "triton-windows==3.5.*"),
        ("win32", "2.99.0", "3.6.0", "ok", "Triton 3.6.0"),
        ("win32", "2.9.0", None, "warn", "pip install triton-windows"),
        ("linux", "2.9.0", None, "warn", "pip install triton,"),
    ],
)
def test_triton_versions(
    monkeypatch: pytest.MonkeyPatch, platform: str, release: str, triton: str | None, level: str, words: str
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    fake_torch(monkeypatch, release=release)
    monkeypatch.setitem(sys.modules, "triton", triton and SimpleNamespace(__version__=triton))
    found = only(kernels.triton(NOWHERE))
    assert found.level == level
    assert words in found.said + found.remedy


def test_kernels_on_the_cpu() -> None:
    found = only(kernels.dispatch(Surroundings(device="cpu")))
    assert (found.level, found.said) == ("ok", "on cpu every operation takes the torch path")


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Finding]]:
    """The kernel probe on a GPU that refuses Triton, Gluon and fp8 for these reasons."""

    def look(triton: str | None, gluon: str | None, fp8: str | None = None) -> list[Finding]:
        monkeypatch.setattr(dispatch, "triton_refusal", lambda device, capability=(8, 0): triton)
        monkeypatch.setattr(dispatch, "gluon_refusal", lambda device, probe="run_probe": gluon)
        monkeypatch.setattr(channel_fp8, "scaled_mm_refusal", lambda device: fp8)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GPU X")
        return list(kernels.dispatch(Surroundings(device="cuda:0")))

    return look


def test_kernels_on_hopper(on_a_gpu: Callable[..., list[Finding]]) -> None:
    found = only(on_a_gpu(None, None))
    assert found.level == "ok"
    for name in ("block-int8 linear", "norm with fp8 rows", "VAE convolution", "sparse-linear attention"):
        assert name in found.said


def test_kernels_on_another_gpu(on_a_gpu: Callable[..., list[Finding]], monkeypatch: pytest.MonkeyPatch) -> None:
    """The reasons are those that the kernels themselves give on an RTX 30: nothing is wrong with it."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    device = torch.device("cuda:0")
    runs, *refused = on_a_gpu(None, dispatch.gluon_refusal(device), channel_fp8.scaled_mm_refusal(device))
    assert levels([runs, *refused]) == ["ok", "ok", "ok"]
    assert any("VAE convolution" in finding.said for finding in refused)
    assert any("channel-fp8 linear" in finding.said for finding in refused)
    assert "VAE convolution" not in runs.said


def test_kernels_that_should_run_and_do_not(on_a_gpu: Callable[..., list[Finding]]) -> None:
    assert levels(on_a_gpu(None, "their probe failed: boom")) == ["ok", "warn"]
    found = only(on_a_gpu("Triton is not installed; pip install triton", None))
    assert found.level == "warn"
    assert "none runs on cuda:0: Triton is not installed" in found.said


@pytest.mark.gpu
def test_on_a_real_gpu() -> None:
    """Every probe answers in its time, and Triton's kernels run."""
    findings = report.examine(Surroundings(device="cuda:0"))
    told = report.as_text(findings)
    assert "could not be examined" not in told
    assert "no answer within" not in told
    by_topic = {topic: [f for f in findings if f.topic == topic] for topic in ("torch", "gpu", "driver", "kernels")}
    assert "CUDA" in by_topic["torch"][0].said
    assert any("cuda:0" in finding.said and "GiB" in finding.said for finding in by_topic["gpu"])
    assert all(finding.level != "error" for finding in findings), told
    if torch.cuda.get_device_capability() >= (8, 0):
        assert "run on cuda:0" in by_topic["kernels"][0].said, told


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


# Files.


def in_folders(tmp_path: Path) -> Surroundings:
    folders = {folder: (tmp_path / folder,) for folder in ("diffusion_models", "text_encoders", "vae")}
    for (folder,) in folders.values():
        folder.mkdir(exist_ok=True)
    return Surroundings(folders=folders)


def test_networks_are_recognised(tmp_path: Path) -> None:
    surroundings = in_folders(tmp_path)
    dits = tmp_path / "diffusion_models"
    tiny.save_pth(dits / "sub" / "x.pth", tiny.tiny_tensors(text_dim=64, quantized=True, num_layers=1))
    save_file({"double_blocks.0.img_attn.qkv.weight": torch.zeros(2, 2)}, dits / "flux.safetensors")
    (dits / "old.ckpt").write_bytes(b"\x80\x02pickle")
    (dits / "notes.txt").write_text("nothing")
    (dits / "cut.pth").write_bytes((dits / "sub" / "x.pth").read_bytes()[:5000])
    damaged, known, others = files.networks(surroundings)
    assert damaged.level == "warn"
    assert "cut.pth must be complete" in damaged.said
    assert "x.pth: Wan T2V (dim 256, 1 blocks), block-int8, SLA-trained" in known.said
    assert others.said == "2 more files are for other loaders"


def test_no_network(tmp_path: Path) -> None:
    found = only(files.networks(in_folders(tmp_path)))
    assert found.level == "warn"
    assert "`turbowan download t2v-1.3b`" in found.remedy


@pytest.mark.parametrize(
    ("names", "lacking"),
    [
        (["a-high.pth"], "low-noise"),
        (["a-low.pth"], "high-noise"),
        (["a.pth"], "other"),
        (["a-high.pth", "b-high.pth"], "low-noise"),
        (["a-high.pth", "a-low.pth"], None),
        (["a.pth", "b.pth"], None),
        (["a-high.pth", "b.pth"], None),
    ],
)
def test_a_missing_expert(tmp_path: Path, names: list[str], lacking: str | None) -> None:
    surroundings = in_folders(tmp_path)
    tensors = tiny.tiny_tensors(in_dim=36, text_dim=64, num_layers=1, ffn_dim=128)
    for name in names:
        tiny.save_pth(tmp_path / "diffusion_models" / name, tensors)
    found = list(files.networks(surroundings))
    assert levels(found) == ["ok"] * len(names) + (["error"] if lacking else [])
    if lacking:
        assert f"lacks its {lacking} expert" in found[-1].said
        assert "turbowan download i2v-a14b" in found[-1].remedy


def test_text_encoders_and_vaes(tmp_path: Path) -> None:
    surroundings = in_folders(tmp_path)
    for probe, name in ((files.text_encoders, "umt5_xxl"), (files.vaes, "wan_2.1_vae")):
        found = only(probe(surroundings))
        assert found.level == "warn"
        assert name in found.remedy
    save_file(tiny_umt5.tiny_umt5_tensors(), tmp_path / "text_encoders" / "umt5.safetensors")
    save_file({"text_model.x": torch.zeros(2)}, tmp_path / "text_encoders" / "clip_l.safetensors")
    save_file(tiny.tiny_vae_tensors(), tmp_path / "vae" / "wan.safetensors")
    save_file({"decoder.conv_in.weight": torch.zeros(2)}, tmp_path / "vae" / "ae.safetensors")
    assert "umt5.safetensors: umT5 encoder (dim 64, 2 blocks)" in only(files.text_encoders(surroundings)).said
    assert "wan.safetensors: Wan 2.1 VAE (width 8)" in only(files.vaes(surroundings)).said


def test_the_demo_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(demo_bundle, "FOLDER", tmp_path / "bundle")
    assert only(files.demo(NOWHERE)).level == "ok"  # not part of the installation
    (tmp_path / "bundle").mkdir()
    assert only(files.demo(NOWHERE)).level == "warn"
    for file in demo_bundle.FILES:
        (tmp_path / "bundle" / file).parent.mkdir(exist_ok=True)
        (tmp_path / "bundle" / file).touch()
    assert "is complete" in only(files.demo(NOWHERE)).said


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
    assert f"this pack lies in {base / 'custom_nodes' / 'comfyui-turbowan'}" in done.stdout
