"""Every kernel of a forward and of the VAE compiles ahead for every generation of GPU, and for no size again."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from shared_memory_faults import filled_by_copies, idle_barriers, unfenced_reads

SCRIPT = Path(__file__).with_name("without_gpu.py")
pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")


def compiled(tmp_path: Path, *arguments: str) -> list[dict]:
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment = kept | {"TRITON_CACHE_DIR": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(SCRIPT), *arguments]
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "did not compile" not in done.stderr, done.stderr[-2000:]
    texts = {file: file.read_text() for file in tmp_path.glob("*/*.ttgir")}
    for file, ttgir in texts.items():
        assert not idle_barriers(ttgir), file.name
        assert not unfenced_reads(ttgir), file.name
    assert any(map(filled_by_copies, texts.values())) == (arguments[0] == "90"), "the copies are called otherwise now"
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("capability", "attention", "weights"),
    [
        *((80, "sla", "int8"), (86, "sagesla", "int8"), (90, "sagesla", "int8"), (90, "sla", "bf16")),
        *((120, "sla", "int8"), (86, "sla", "channelwise"), (90, "sla", "channelwise")),
    ],
)
def test_a_forward_compiles(tmp_path: Path, capability: int, attention: str, weights: str) -> None:
    lines = compiled(tmp_path, str(capability), attention, weights)
    kernels = [line for line in lines if "kernel" in line]
    counts = [line["asked for"] for line in lines if "asked for" in line]
    assert counts == [len(kernels), 0, 0, 0]
    assert len({line["kernel"] for line in kernels}) >= 7


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("capability", "least"), [(80, 14), (90, 22), (120, 14)])
def test_the_vae_compiles(tmp_path: Path, capability: int, least: int) -> None:
    """Norms, head and biases everywhere, on Hopper the convolutions too; passes of any size load no more."""
    lines = compiled(tmp_path, str(capability), "vae", "bf16")
    kernels = [line for line in lines if "kernel" in line]
    decode, decode_again, encode, encode_again = (line["asked for"] for line in lines if "asked for" in line)
    assert (decode + encode, decode_again, encode_again) == (len(kernels), 0, 0)
    assert decode >= least
