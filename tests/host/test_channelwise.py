"""TurboLoader's precision `channelwise` in a real ComfyUI: near the file's own, under LoRAs, streamed, and told of.

`fp8` needs a GPU: on the CPU of these tests it is refused (`test_bad_inputs`), and a test node loads it all the same,
so that the host's handling of its weights is tested.
"""

from __future__ import annotations

import re

import pytest
import torch
from host import models
from host.client import ComfyClient
from host.graphs import TinyGraph, finished
from host.server import ComfyProcess
from host.workflow import Link
from tolerances import (
    DEQUANTIZED,
    FP8_MODEL,
    LORA_FP8,
    LORA_INT8,
    LORA_STREAMED,
    OTHER_PRECISION,
    SQNR_ROW_CODES_DB,
)

SAID = re.compile(r"signal-to-noise ratio of the weights ([\d.]+) dB \(median of 20 layers\), ([\d.]+) dB \(lowest")


def _lora(graph: TinyGraph, model: Link) -> Link:
    return graph.add("LoraLoaderModelOnly", model=model, lora_name=models.LORA, strength_model=1.0)


def _channelwise(graph: TinyGraph, file: str, **settings: object) -> Link:
    return graph.load(file, precision="channelwise", **settings)


@pytest.mark.parametrize("file", [models.T2V, models.T2V_QUANT, models.T2V_NATIVE])
def test_result_stays_near_the_one_of_the_file(client: ComfyClient, file: str) -> None:
    graph = TinyGraph()
    text, latent = graph.text(), graph.empty()
    usual = graph.t2v(graph.load(file, topk=1.0), text, latent)
    chosen = graph.t2v(_channelwise(graph, file, topk=1.0), text, latent)
    comparison = graph.compare(chosen, usual)
    report = finished(client, graph).report(comparison)
    assert report["a"]["finite"]
    assert 1e-4 < report["relative"] < OTHER_PRECISION


def test_the_node_and_the_log_say_what_rounding_cost(client: ComfyClient, host: ComfyProcess) -> None:
    client.free()
    graph = TinyGraph()
    model = _channelwise(graph, models.T2V)
    graph.probe(graph.t2v(model))
    start = len(host.log())
    run = finished(client, graph)
    on_node = SAID.search(run.texts[model[0]])
    in_log = SAID.search(host.log()[start:])
    assert on_node, run.texts
    assert in_log
    assert on_node.groups() == in_log.groups()
    median, lowest = (float(value) for value in on_node.groups())
    assert median >= lowest > SQNR_ROW_CODES_DB[torch.int8]
    assert run.progress(model[0])[-1] == (20, 20)


def test_lora_equals_the_merged_weights(client: ComfyClient) -> None:
    graph = TinyGraph()
    text, latent = graph.text(), graph.empty()
    model = _channelwise(graph, models.T2V_DENSE_QUANT)
    plain, patched = graph.t2v(model, text, latent), graph.t2v(_lora(graph, model), text, latent)
    dense = graph.t2v(graph.load(models.T2V_DEQUANTIZED), text, latent)
    merged = graph.t2v(graph.load(models.T2V_LORA_MERGED), text, latent)
    pairs = {"base": (plain, dense), "patched": (patched, merged), "effect": (patched, plain)}
    comparisons = {name: graph.compare(*pair) for name, pair in pairs.items()}
    run = finished(client, graph)
    errors = {name: run.report(node)["relative"] for name, node in comparisons.items()}
    assert errors["base"] < 2 * DEQUANTIZED, errors
    assert errors["patched"] < LORA_INT8, errors
    assert errors["effect"] > 10 * errors["patched"], errors


def test_removing_a_lora_restores_the_weights(client: ComfyClient) -> None:
    graph = TinyGraph()
    model, text, latent = _channelwise(graph, models.T2V_QUANT), graph.text(), graph.empty()
    plain = graph.t2v(model, text, latent, seed=1)
    changed = graph.t2v(_lora(graph, model), text, plain, seed=1)
    again = graph.t2v(model, text, graph.add("LatentBatch", samples1=latent, samples2=changed), seed=1)
    probes = [graph.probe(link) for link in (plain, changed, again)]
    run = finished(client, graph)
    assert all(run.report(probe)["finite"] for probe in probes)
    restored = TinyGraph()
    probe = restored.probe(restored.t2v(_channelwise(restored, models.T2V_QUANT), seed=1))
    assert finished(client, restored).report(probe)["sha256"] == run.report(probes[0])["sha256"]


@pytest.mark.parametrize("file", [models.T2V, models.T2V_QUANT])
def test_streamed_and_reloaded_weights_give_the_same_latents(client: ComfyClient, file: str) -> None:
    full, streamed = TinyGraph(), TinyGraph()
    full_probe = full.probe(full.t2v(_channelwise(full, file)))
    part = streamed.add("TestPatcher", model=_channelwise(streamed, file), kind="partial", budget=1)
    sampled = streamed.t2v(part)
    probe, memory = streamed.probe(sampled), streamed.add("TestMemory", samples=sampled)[0]
    client.free()
    wanted = finished(client, full).report(full_probe)["sha256"]
    client.free()
    run = finished(client, streamed)
    used = next(model for model in run.report(memory)["models"] if model["patcher"] == "PartialPatcher")
    assert used["loaded"] < used["size"] / 2, used
    assert run.report(probe)["sha256"] == wanted
    client.free()
    assert finished(client, full).report(full_probe)["sha256"] == wanted


def test_lora_on_streamed_weights(client: ComfyClient) -> None:
    graph = TinyGraph()
    text, latent = graph.text(), graph.empty()
    part = graph.add("TestPatcher", model=_channelwise(graph, models.T2V_DENSE_QUANT), kind="partial", budget=1)
    result = graph.t2v(_lora(graph, part), text, latent)
    merged = graph.t2v(graph.load(models.T2V_LORA_MERGED), text, latent)
    plain = graph.t2v(graph.load(models.T2V_DEQUANTIZED), text, latent)
    near, moved = graph.compare(result, merged), graph.compare(plain, merged)
    client.free()
    run = finished(client, graph)
    assert run.report(near)["relative"] < LORA_STREAMED
    assert run.report(moved)["relative"] > 2 * LORA_STREAMED


def test_weights_take_the_memory_of_block_int8_and_their_scales(client: ComfyClient) -> None:
    """Codes and scales are all that the host holds of a rounded layer."""
    sizes = {}
    for precision in ("int8", "channelwise"):
        client.free()
        graph = TinyGraph()
        sampled = graph.t2v(graph.load(models.T2V, precision=precision))
        memory = graph.add("TestMemory", samples=sampled)[0]
        (model,) = finished(client, graph).report(memory)["models"]
        sizes[precision] = model["size"]
    rows, blocks = 8 * 256 + 384 + 256, 8 * 4 + 6 + 6  # of the Linears of one of two layers
    assert sizes["channelwise"] - sizes["int8"] == 2 * 4 * (rows - blocks)


def test_saving_is_refused_with_the_remedy(client: ComfyClient) -> None:
    graph = TinyGraph()
    graph.add("ModelSave", model=_lora(graph, _channelwise(graph, models.T2V)), filename_prefix="diffusion_models/no")
    run = client.run(graph.prompt)
    assert run.ending == "execution_error"
    assert "precision to auto" in run.error


def test_fp8_weights_are_streamed_patched_and_not_saved(client: ComfyClient) -> None:
    graph = TinyGraph()
    text, latent = graph.text(), graph.empty()
    model = graph.add("TestFp8Model", file=models.T2V_DEQUANTIZED)
    part = graph.add("TestPatcher", model=model, kind="partial", budget=1)
    loaded, streamed = graph.t2v(model, text, latent), graph.t2v(part, text, latent)
    patched = graph.t2v(_lora(graph, model), text, latent)
    dense = graph.t2v(graph.load(models.T2V_DEQUANTIZED), text, latent)
    merged = graph.t2v(graph.load(models.T2V_LORA_MERGED), text, latent)
    pairs = {"streamed": (streamed, loaded), "base": (loaded, dense), "patched": (patched, merged)}
    pairs["effect"] = (patched, loaded)
    comparisons = {name: graph.compare(*pair) for name, pair in pairs.items()}
    run = finished(client, graph)
    errors = {name: run.report(node)["relative"] for name, node in comparisons.items()}
    assert errors["streamed"] == 0, errors
    assert 1e-3 < errors["base"] < FP8_MODEL, errors
    assert errors["patched"] < LORA_FP8, errors
    assert errors["effect"] > 3 * errors["patched"], errors
    saving = TinyGraph()
    model = saving.add("TestFp8Model", file=models.T2V_DEQUANTIZED)
    saving.add("ModelSave", model=model, filename_prefix="diffusion_models/no")
    assert "precision to auto" in client.run(saving.prompt).error
