"""The loader's MODEL in the host's own nodes, held against the host's own Wan model with the same weights."""

from __future__ import annotations

from typing import Any

import pytest
from host import models
from host.client import ComfyClient
from host.graphs import TinyGraph, finished
from host.workflow import Link
from tolerances import DEQUANTIZED, LORA_DENSE, LORA_INT8, LORAS_INT8, MOVED_SLIGHTLY, SAME_MATHS_FP32, SAME_SAMPLING


def _pair(graph: TinyGraph, native_file: str) -> list[Link]:
    return [
        graph.load(native_file, attention="dense"),
        graph.add("UNETLoader", unet_name=native_file, weight_dtype="default"),
    ]


@pytest.mark.parametrize("settings", [{}, {"sampler_name": "lcm"}, {"cfg": 3.0}, {"denoise": 0.6}])
def test_ksampler_as_native(client: ComfyClient, settings: dict[str, Any]) -> None:
    graph = TinyGraph()
    text, latent = graph.text(), graph.empty()
    ours, native = (graph.ksampler(model, text, latent, **settings) for model in _pair(graph, models.T2V_NATIVE))
    comparison = graph.compare(ours, native)
    report = finished(client, graph).report(comparison)
    assert report["relative"] < SAME_MATHS_FP32, report


def test_odd_sides_as_native(client: ComfyClient) -> None:
    graph = TinyGraph()
    latent = graph.add("TestLatent", seed=0, channels=16, frames=3, height=11, width=19, batch=2)
    text = graph.text()
    ours, native = (graph.ksampler(model, text, latent) for model in _pair(graph, models.T2V_NATIVE))
    comparison = graph.compare(ours, native)
    assert finished(client, graph).report(comparison)["relative"] < SAME_MATHS_FP32


def test_stock_image_conditioning_as_native(client: ComfyClient) -> None:
    graph = TinyGraph()
    conditioning, latent = graph.stock_i2v(graph.text())
    ours, native = (graph.ksampler(model, conditioning, latent) for model in _pair(graph, models.I2V_NATIVE))
    comparison = graph.compare(ours, native)
    report = finished(client, graph).report(comparison)
    assert report["relative"] < SAME_MATHS_FP32, report


def test_model_sampling_shift_as_native(client: ComfyClient) -> None:
    graph = TinyGraph()
    text, latent = graph.text(), graph.empty()
    loaded = _pair(graph, models.T2V_NATIVE)
    shifted = [graph.add("ModelSamplingSD3", model=model, shift=3.0) for model in loaded]
    ours, native, plain = (graph.ksampler(model, text, latent) for model in (*shifted, loaded[0]))
    same, moved = graph.compare(ours, native), graph.compare(ours, plain)
    run = finished(client, graph)
    assert run.report(same)["relative"] < SAME_MATHS_FP32
    assert run.report(moved)["relative"] > MOVED_SLIGHTLY


def test_shift_does_not_change_our_sampler(client: ComfyClient) -> None:
    """rCM's times are given as SIGMAS; a shift in the graph may not move them."""
    graph = TinyGraph()
    model, text, latent = graph.load(), graph.text(), graph.empty()
    shifted = graph.add("ModelSamplingSD3", model=model, shift=3.0)
    comparison = graph.compare(graph.t2v(shifted, text, latent), graph.t2v(model, text, latent))
    assert finished(client, graph).report(comparison)["relative"] < SAME_SAMPLING


@pytest.mark.parametrize("file", [models.T2V, models.T2V_QUANT])
def test_turbo_files_in_ksampler(client: ComfyClient, file: str) -> None:
    graph = TinyGraph()
    probe = graph.probe(graph.ksampler(graph.load(file), graph.text(), graph.empty()))
    assert finished(client, graph).report(probe)["finite"]


def test_lora_on_int8_weights_equals_the_merged_weights(client: ComfyClient) -> None:
    """The merged weights are rounded to int8 again, stochastically: step²/6 of variance, 1.2 % of a weight."""
    graph = TinyGraph()
    text, latent = graph.text(), graph.empty()

    def sampled(file: str, lora: bool = False) -> Link:
        model = graph.load(file, attention="dense")
        if lora:
            model = graph.add("LoraLoaderModelOnly", model=model, lora_name=models.LORA, strength_model=1.0)
        return graph.t2v(model, text, latent)

    int8, int8_lora = sampled(models.T2V_DENSE_QUANT), sampled(models.T2V_DENSE_QUANT, lora=True)
    dense, merged = sampled(models.T2V_DEQUANTIZED), sampled(models.T2V_LORA_MERGED)
    dense_lora = sampled(models.T2V_DEQUANTIZED, lora=True)
    base, patched = graph.compare(int8, dense), graph.compare(int8_lora, merged)
    effect, exact = graph.compare(int8_lora, int8), graph.compare(dense_lora, merged)
    run = finished(client, graph)
    errors = {name: run.report(node)["relative"] for name, node in
              {"base": base, "patched": patched, "effect": effect, "exact": exact}.items()}  # fmt: skip
    assert errors["exact"] < LORA_DENSE, errors
    assert errors["base"] < DEQUANTIZED, errors
    assert errors["patched"] < LORA_INT8, errors
    assert errors["effect"] > 10 * errors["patched"], errors


@pytest.mark.parametrize("file", [models.T2V_DENSE_QUANT, models.T2V_DEQUANTIZED])
def test_lora_in_bypass_mode_equals_the_merged_weights(client: ComfyClient, file: str) -> None:
    """It replaces the forwards of Linears, which may be part of a larger product or leave codes, and rounds nothing."""
    node = "LoraLoaderBypassModelOnly"
    if not client.object_info(node):
        pytest.skip("this ComfyUI has no bypass mode")
    graph = TinyGraph()
    text, latent = graph.text(), graph.empty()
    model = graph.load(file, attention="dense")
    patched = graph.t2v(graph.add(node, model=model, lora_name=models.LORA, strength_model=1.0), text, latent)
    merged = graph.t2v(graph.load(models.T2V_LORA_MERGED), text, latent)
    near, moved = graph.compare(patched, merged), graph.compare(graph.t2v(model, text, latent), merged)
    run = finished(client, graph)
    assert run.report(near)["relative"] < LORA_DENSE
    assert run.report(moved)["relative"] > 10 * LORA_DENSE


def test_two_loras_on_int8_weights_equal_the_merged_weights(client: ComfyClient) -> None:
    graph = TinyGraph()
    text, latent = graph.text(), graph.empty()
    model = graph.load(models.T2V_DENSE_QUANT)
    first = graph.add("LoraLoaderModelOnly", model=model, lora_name=models.LORA, strength_model=1.0)
    both = graph.add("LoraLoaderModelOnly", model=first, lora_name=models.LORA_OTHER, strength_model=1.0)
    merged = graph.t2v(graph.load(models.T2V_LORAS_MERGED), text, latent)
    stacked = graph.t2v(both, text, latent)
    near, moved = graph.compare(stacked, merged), graph.compare(graph.t2v(first, text, latent), merged)
    run = finished(client, graph)
    assert run.report(near)["relative"] < LORAS_INT8
    assert run.report(moved)["relative"] > 5 * LORAS_INT8


def test_removing_a_lora_restores_the_weights(client: ComfyClient) -> None:
    graph = TinyGraph()
    model, text, latent = graph.load(models.T2V_QUANT), graph.text(), graph.empty()
    patched = graph.add("LoraLoaderModelOnly", model=model, lora_name=models.LORA, strength_model=1.0)
    plain = graph.t2v(model, text, latent, seed=1)
    changed = graph.t2v(patched, text, plain, seed=1)
    again = graph.t2v(model, text, graph.add("LatentBatch", samples1=latent, samples2=changed), seed=1)
    probes = [graph.probe(link) for link in (plain, changed, again)]
    run = finished(client, graph)
    assert all(run.report(probe)["finite"] for probe in probes)
    restored = TinyGraph()
    probe = restored.probe(restored.t2v(restored.load(models.T2V_QUANT), seed=1))
    assert finished(client, restored).report(probe)["sha256"] == run.report(probes[0])["sha256"]
