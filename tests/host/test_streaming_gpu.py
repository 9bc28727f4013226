"""Quantized weights on a GPU that is too small for them, under the host's classic and its streaming patcher."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from host.client import ComfyClient
from host.graphs import TinyGraph, finished
from host.server import ComfyProcess

from turbowan.benchmarks import released_files, synthetic

pytestmark = pytest.mark.gpu

BIG = "big-quant.pth"
CONFIG = dataclasses.replace(synthetic.MODELS["1.3b"], num_layers=20)  # 1 GB
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
    for folder in ("diffusion_models", "loras"):
        (models / folder).mkdir()
    tensors = synthetic.tensors(CONFIG, torch.device("cuda"), quantized=True)
    torch.save(released_files.released_layout(tensors), models / "diffusion_models" / BIG)
    save_file(lora_over(tensors), models / "loras" / LORA)
    torch.cuda.empty_cache()
    return models


def lora_over(tensors: dict[str, torch.Tensor], rank: int = 4, size: float = 0.5) -> dict[str, torch.Tensor]:
    """Over every int8 Linear of a synthetic checkpoint; a delta is ``size`` times its weight."""
    generator = torch.Generator().manual_seed(0)
    lora = {}
    for name, codes in tensors.items():
        if name.endswith(".int8_weight"):
            (rows, columns), stem = codes.shape, "diffusion_model." + name.removesuffix(".int8_weight")
            lora[f"{stem}.lora_A.weight"] = torch.randn(rank, columns, generator=generator)
            spread = size / (rank * columns) ** 0.5
            lora[f"{stem}.lora_B.weight"] = spread * torch.randn(rows, rank, generator=generator)
    return lora


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
            client.free()
            _a_lora_moves_the_result(client)
        assert host.alive()
        assert crowded.report(probe)["sha256"] == roomy.report(probe)["sha256"]
        used = crowded.report(memory)["models"][0]
        assert used["loaded"] < 0.9 * used["size"], used


def _a_lora_moves_the_result(client: ComfyClient) -> None:
    graph = TinyGraph()
    latent, text = graph.empty(**SIZE), graph.text()
    patched = graph.add("LoraLoaderModelOnly", model=graph.load(BIG), lora_name=LORA, strength_model=1.0)
    with_lora = graph.probe(graph.t2v(patched, text, latent))
    plain = graph.probe(graph.t2v(graph.load(BIG), text, latent))
    run = finished(client, graph)
    assert run.report(with_lora)["finite"]
    assert run.report(with_lora)["sha256"] != run.report(plain)["sha256"]
