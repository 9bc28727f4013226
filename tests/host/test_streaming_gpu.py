"""Quantized weights on a GPU that is too small for them, under the host's classic and its streaming patcher."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import tiny
from host.client import ComfyClient
from host.graphs import TinyGraph, finished
from host.server import ComfyProcess

pytestmark = pytest.mark.gpu

BIG = "big-quant.pth"  # 1 GB: 20 blocks of the 1.3B model's shape
LORA = "big-lora.safetensors"
SIZE = {"width": 416, "height": 240, "length": 33}
LEFT_FREE = 0.7  # GiB for ComfyUI: activations and a part of the weights

HOG = """
import sys, torch
free, _ = torch.cuda.mem_get_info()
held = torch.empty(int(free - float(sys.argv[1]) * 2**30), dtype=torch.uint8, device="cuda")
torch.cuda.synchronize()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def big_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from safetensors.torch import save_file

    models = tmp_path_factory.mktemp("big")
    tensors = tiny.tiny_tensors(dim=1536, ffn_dim=8960, num_layers=20, quantized=True)
    tiny.save_pth(models / "diffusion_models" / BIG, tensors)
    (models / "loras").mkdir()
    save_file(tiny.tiny_lora(tensors), models / "loras" / LORA)
    return models


@contextmanager
def crowded_gpu(left_gib: float) -> Iterator[None]:
    """Another process holds the GPU's free memory down to `left_gib`."""
    hog = subprocess.Popen(
        [sys.executable, "-c", HOG, str(left_gib)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert hog.stdout.readline().strip() == "held"
        yield
    finally:
        hog.stdin.close()
        hog.wait(60)


@pytest.mark.parametrize("flags", [(), ("--disable-dynamic-vram",)], ids=["streaming", "classic"])
@pytest.mark.timeout(600)
def test_a_crowded_gpu_changes_the_place_of_weights_not_the_result(
    checkout: Path, host_python: Path, big_models: Path, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    (tmp_path / "models").symlink_to(big_models, target_is_directory=True)
    with ComfyProcess(checkout, host_python, tmp_path, flags=flags, device="cuda") as host:
        client = ComfyClient(host.url)
        graph = TinyGraph()
        model = graph.load(BIG)
        sampled = graph.t2v(model, latent=graph.empty(**SIZE))
        probe, memory = graph.probe(sampled), graph.add("TestMemory", samples=sampled)[0]
        finished(client, graph)  # a process's first call of the host's own attention takes another torch backend
        client.free()
        roomy = finished(client, graph)
        client.free()
        with crowded_gpu(LEFT_FREE):
            crowded = finished(client, graph)
        assert host.alive()
        assert crowded.report(probe)["sha256"] == roomy.report(probe)["sha256"]
        used = crowded.report(memory)["models"][0]
        assert used["loaded"] < 0.9 * used["size"], used
        _lora_runs_crowded(client)


def _lora_runs_crowded(client: ComfyClient) -> None:
    """A LoRA on streamed int8 weights moves the result, and lands near the LoRA on resident ones."""
    graph = TinyGraph()
    latent, text = graph.empty(**SIZE), graph.text()
    patched = graph.add("LoraLoaderModelOnly", model=graph.load(BIG), lora_name=LORA, strength_model=1.0)
    with_lora = graph.probe(graph.t2v(patched, text, latent))
    plain = graph.probe(graph.t2v(graph.load(BIG), text, latent))
    client.free()
    with crowded_gpu(LEFT_FREE):
        run = finished(client, graph)
    assert run.report(with_lora)["sha256"] != run.report(plain)["sha256"]
