"""Quantized weights on a GPU that is too small for them, under the host's classic and its streaming patcher."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from host.client import ComfyClient
from host.crowded import crowded_gpu
from host.graphs import TinyGraph, finished
from host.server import ComfyProcess

from turbowan.benchmarks import released_files, synthetic

pytestmark = pytest.mark.gpu

BIG = "big-quant.pth"
CONFIG = dataclasses.replace(synthetic.MODELS["1.3b"], num_layers=20)  # 1 GB
LORA = "big-lora.safetensors"
SIZE = {"width": 416, "height": 240, "length": 33}
CLASSIC = "--disable-dynamic-vram"
LEFT_FREE = 0.7  # GiB for ComfyUI: activations and a part of the weights


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


@pytest.fixture(scope="module", params=["streaming", "classic"])
def gpu_host(
    request: pytest.FixtureRequest,
    checkout: Path,
    host_python: Path,
    big_models: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ComfyProcess]:
    """A host that keeps no result longer than a prompt, so that each is computed anew, and has run one prompt.

    A process's first call of the host's own attention takes another torch backend.
    """
    base = tmp_path_factory.mktemp(request.param)
    (base / "models").symlink_to(big_models, target_is_directory=True)
    flags = {"streaming": (), "classic": (CLASSIC,)}[request.param]
    with ComfyProcess(checkout, host_python, base, flags=("--cache-classic", *flags), device="cuda") as host:
        sampled(ComfyClient(host.url), seed=0)
        yield host


def sampled(client: ComfyClient, *, seed: int, lora: bool = False, topk: float = 0.4) -> str:
    """The hash of the latents."""
    graph = TinyGraph()
    model = graph.load(BIG, topk=topk)
    if lora:
        model = graph.add("LoraLoaderModelOnly", model=model, lora_name=LORA, strength_model=1.0)
    samples = graph.t2v(model, latent=graph.empty(**SIZE), seed=seed)
    probe = graph.probe(samples)
    run = finished(client, graph)
    assert samples[0] in run.executed()
    report = run.report(probe)
    assert report["finite"]
    return report["sha256"]


def loaded(client: ComfyClient) -> dict:
    """What the host says of the one model it has on the GPU."""
    graph = TinyGraph()
    memory = graph.add("TestMemory", samples=graph.t2v(graph.load(BIG), latent=graph.empty(**SIZE), seed=99))[0]
    (model,) = finished(client, graph).report(memory)["models"]
    return model


@pytest.mark.timeout(600)
def test_a_crowded_gpu_changes_the_place_of_weights_not_the_result(gpu_host: ComfyProcess) -> None:
    client = ComfyClient(gpu_host.url)
    client.free()
    roomy = sampled(client, seed=7)
    client.free()
    with crowded_gpu(LEFT_FREE):
        assert sampled(client, seed=7) == roomy
        sampled(client, seed=8)
        assert sampled(client, seed=7) == roomy
        used = loaded(client)
        assert used["loaded"] < 0.9 * used["size"], used
        client.free()
        assert sampled(client, seed=7, lora=True) != roomy
    assert gpu_host.alive()


@pytest.mark.timeout(600)
def test_what_a_prompt_leaves_on_the_gpu_changes_no_later_result(gpu_host: ComfyProcess) -> None:
    """The same model again, a LoRA's coming and going, another model, unloading."""
    client = ComfyClient(gpu_host.url)
    client.free()
    plain = sampled(client, seed=7)
    other = sampled(client, seed=8)
    assert len({plain, other, sampled(client, seed=7)}) == 2
    lora = sampled(client, seed=7, lora=True)
    sampled(client, seed=8, lora=True)
    assert sampled(client, seed=7, lora=True) == lora != plain
    assert sampled(client, seed=7) == plain
    assert sampled(client, seed=7, topk=0.2) != plain
    assert sampled(client, seed=7) == plain
    client.free(caches=False)
    assert sampled(client, seed=8) == other
    assert sampled(client, seed=7) == plain


@pytest.mark.timeout(600)
def test_each_patcher_reads_the_large_weights_from_the_file(gpu_host: ComfyProcess) -> None:
    """The host's streaming would copy them into page-locked memory first."""
    client = ComfyClient(gpu_host.url)
    client.free()
    model = loaded(client)
    if CLASSIC in gpu_host.flags:
        assert model["patcher"] == "_ClassicPatcher"
        assert model["from_file"] >= 10 * CONFIG.num_layers
    else:
        assert model["patcher"] == "_StreamingPatcher"
        assert model["loaded"] > 0.95 * model["size"]
        assert model["page_locked"] < 0.05 * model["size"]
