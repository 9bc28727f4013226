"""Unloading, reloading, partial loading: the result does not depend on where the weights were."""

from __future__ import annotations

import re

import pytest
from host import models
from host.client import ComfyClient
from host.graphs import TinyGraph, finished
from host.server import ComfyProcess
from host.workflow import Link
from tolerances import LORA_STREAMED


@pytest.mark.parametrize("file", [models.T2V, models.T2V_QUANT])
def test_unload_and_reload_give_the_same_latents(client: ComfyClient, file: str) -> None:
    graph = TinyGraph()
    probe = graph.probe(graph.t2v(graph.load(file), seed=41))
    first = finished(client, graph).report(probe)["sha256"]
    client.free(caches=False)
    other = TinyGraph()
    finished_other = finished(client, _with_probe(other, file, seed=42))
    assert finished_other.ok
    client.free()
    assert finished(client, graph).report(probe)["sha256"] == first


def _with_probe(graph: TinyGraph, file: str, seed: int) -> TinyGraph:
    graph.probe(graph.t2v(graph.load(file), seed=seed))
    return graph


@pytest.mark.parametrize("kind", ["partial"])
@pytest.mark.parametrize("file", [models.T2V, models.T2V_QUANT])
def test_streamed_weights_give_the_same_latents(client: ComfyClient, kind: str, file: str) -> None:
    full, streamed = TinyGraph(), TinyGraph()
    full_probe = full.probe(full.t2v(full.load(file)))
    sampled = streamed.t2v(streamed.add("TestPatcher", model=streamed.load(file), kind=kind, budget=1))
    probe, memory = streamed.probe(sampled), streamed.add("TestMemory", samples=sampled)[0]
    client.free()
    wanted = finished(client, full).report(full_probe)["sha256"]
    client.free()
    run = finished(client, streamed)
    _assert_streamed(run.report(memory))
    assert run.report(probe)["sha256"] == wanted


@pytest.mark.parametrize(("file", "converted"), [(models.T2V_QUANT, 0), (models.T2V, 20)])
def test_the_host_can_read_every_weight_from_its_file(
    client: ComfyClient, host: ComfyProcess, file: str, converted: int
) -> None:
    """As its streaming does it on a GPU, instead of copying from the mapping. Dense block weights are fp32 on a CPU."""
    if _version(host) < (0, 16):
        pytest.skip("this ComfyUI does not read weights from files")
    graph = TinyGraph()
    reads = graph.add("TestFileReads", model=graph.load(file))[0]
    report = finished(client, graph).report(reads)
    assert report["weights"] > 60
    assert report["equal"] == report["read"] == report["weights"] - converted


@pytest.mark.parametrize("lora", [False, True], ids=["plain", "lora"])
def test_weights_read_from_the_file_give_the_same_latents(client: ComfyClient, host: ComfyProcess, lora: bool) -> None:
    """A LoRA's weights are left to the host. Unloading puts the mapped ones back, where a copy would lie in no file."""
    usual, read, after = TinyGraph(), TinyGraph(), TinyGraph()

    def sampled(graph: TinyGraph, model: Link) -> Link:
        if lora:
            model = graph.add("LoraLoaderModelOnly", model=model, lora_name=models.LORA, strength_model=1.0)
        return graph.t2v(model)

    usual_probe = usual.probe(sampled(usual, usual.load(models.T2V_QUANT)))
    from_file = read.add("TestPatcher", model=read.load(models.T2V_QUANT), kind="from_file", budget=1)
    result = sampled(read, from_file)
    probe, memory = read.probe(result), read.add("TestMemory", samples=result)[0]
    client.free()
    wanted = finished(client, usual).report(usual_probe)["sha256"]
    client.free()
    run = finished(client, read)
    assert run.report(probe)["sha256"] == wanted
    (used,) = run.report(memory)["models"]
    assert 0 < used["from_file"] < 20 if lora else used["from_file"] > 20
    client.free(caches=False)
    if _version(host) >= (0, 16):
        reads = after.add("TestFileReads", model=after.load(models.T2V_QUANT))[0]
        report = finished(client, after).report(reads)
        assert report["equal"] == report["weights"]


def test_weights_are_read_from_the_file_again_after_a_lora(client: ComfyClient) -> None:
    """The host puts an original back in another Parameter over the same memory."""

    def from_file(lora: bool) -> int:
        graph = TinyGraph()
        model = graph.add("TestPatcher", model=graph.load(models.T2V_QUANT), kind="from_file", budget=1)
        if lora:
            model = graph.add("LoraLoaderModelOnly", model=model, lora_name=models.LORA, strength_model=1.0)
        memory = graph.add("TestMemory", samples=graph.t2v(model))[0]
        (used,) = finished(client, graph).report(memory)["models"]
        return used["from_file"]

    client.free()
    before = from_file(lora=False)
    client.free(caches=False)
    assert 0 < from_file(lora=True) < before
    client.free(caches=False)
    assert from_file(lora=False) == before


def test_a_gpu_of_a_host_without_streaming_reads_the_file(client: ComfyClient) -> None:
    """The host streams on NVIDIA GPUs where comfy-aimdo works; elsewhere our own reader stands before its patcher."""
    graph = TinyGraph()
    made = graph.add("TestGpuPatcher", model=graph.load(models.T2V_QUANT))[0]
    assert finished(client, graph).report(made)["patcher"] == "_ClassicPatcher"


def test_a_file_that_changed_is_not_read_again(client: ComfyClient, host: ComfyProcess) -> None:
    """Its mapping still holds what was loaded where another file took its name."""
    graph, read = TinyGraph(), TinyGraph()
    usual_probe = graph.probe(graph.t2v(graph.load(models.T2V_QUANT)))
    changed = read.add("TestPatcher", model=read.load(models.T2V_QUANT), kind="from_changed_file", budget=1)
    probe = read.probe(read.t2v(changed))
    client.free()
    wanted = finished(client, graph).report(usual_probe)["sha256"]
    client.free()
    assert finished(client, read).report(probe)["sha256"] == wanted
    assert f"{models.T2V_QUANT} was changed since it was opened" in host.log()


@pytest.mark.parametrize("kind", ["partial"])
def test_lora_on_streamed_int8_weights(client: ComfyClient, kind: str) -> None:
    """Near the merged weights, for the LoRA moves the result by far more."""
    graph = TinyGraph()
    text, latent = graph.text(), graph.empty()
    streamed = graph.add("TestPatcher", model=graph.load(models.T2V_DENSE_QUANT), kind=kind, budget=1)
    patched = graph.add("LoraLoaderModelOnly", model=streamed, lora_name=models.LORA, strength_model=1.0)
    result = graph.t2v(patched, text, latent)
    memory = graph.add("TestMemory", samples=result)[0]
    merged = graph.t2v(graph.load(models.T2V_LORA_MERGED), text, latent)
    plain = graph.t2v(graph.load(models.T2V_DEQUANTIZED), text, latent)
    near, moved = graph.compare(result, merged), graph.compare(plain, merged)
    client.free()
    run = finished(client, graph)
    _assert_streamed(run.report(memory))
    assert run.report(near)["relative"] < LORA_STREAMED
    assert run.report(moved)["relative"] > 2 * LORA_STREAMED


@pytest.mark.parametrize("file", [models.T2V, models.T2V_QUANT])
def test_a_clone_that_does_not_stream_stays_ours(client: ComfyClient, host: ComfyProcess, file: str) -> None:
    """A streaming patcher's clone without streaming is of the host's class, which int8 weights cannot bear."""
    if _version(host) < (0, 16):
        pytest.skip("this ComfyUI's patchers do not stream")
    graph = TinyGraph()
    clone = graph.add("TestPatcher", model=graph.load(file), kind="delegate", budget=1)
    patched = graph.add("LoraLoaderModelOnly", model=clone, lora_name=models.LORA, strength_model=1.0)
    usual = graph.add("LoraLoaderModelOnly", model=graph.load(file), lora_name=models.LORA, strength_model=1.0)
    result = graph.t2v(patched)
    memory = graph.add("TestMemory", samples=result)[0]
    comparison = graph.compare(result, graph.t2v(usual))
    client.free()
    run = finished(client, graph)
    assert {model["patcher"] for model in run.report(memory)["models"]} == {"_ClassicPatcher"}
    assert run.report(comparison)["equal"]


def _version(host: ComfyProcess) -> tuple[int, ...]:
    text = (host.checkout / "comfyui_version.py").read_text()
    return tuple(int(part) for part in re.search(r'"([\d.]+)"', text)[1].split("."))


def _assert_streamed(memory: dict) -> None:
    used = next(model for model in memory["models"] if model["patcher"] == "PartialPatcher")
    assert used["loaded"] < used["size"] / 2, memory
