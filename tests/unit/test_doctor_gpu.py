"""The doctor on torch, GPUs, their driver, Triton and the kernels."""

from __future__ import annotations

import shutil
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from findings import NOWHERE, levels, only

from turbowan.kernels import channel_fp8, dispatch
from turbowan.turbo_core.doctor import gpu, kernels, report
from turbowan.turbo_core.doctor.finding import Finding, Surroundings

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


def test_torch_whose_libraries_do_not_load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As Windows says it."""
    (tmp_path / "torch.py").write_text("raise OSError('[WinError 126] error loading c10.dll')")
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.syspath_prepend(tmp_path)
    found = only(gpu.torch_build(NOWHERE))
    assert (found.level, "c10.dll" in found.said) == ("error", True)
    assert "install torch anew" in found.remedy


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
