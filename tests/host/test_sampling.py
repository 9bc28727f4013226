"""The pack's samplers inside a real ComfyUI: same seed, same latents; the experts' turns; progress and previews."""

from __future__ import annotations

import pytest
from host import models
from host.client import ComfyClient
from host.graphs import I2V_TIMESTEPS, LENGTH, T2V_TIMESTEPS, TinyGraph, finished
from host.workflow import Link
from tolerances import MOVED, OTHER_PRECISION, SAME_MATHS_FP32, SAME_SAMPLING

LATENT_SHAPE = [1, 16, (LENGTH + 3) // 4, 12, 20]


@pytest.mark.parametrize("file", [models.T2V, models.T2V_QUANT, models.T2V_TRAINING])
def test_t2v_sampler_equals_the_custom_graph_bitwise(client: ComfyClient, file: str) -> None:
    graph = TinyGraph()
    model, text, latent = graph.load(file), graph.text(), graph.empty()
    own = graph.t2v(model, text, latent, seed=11, steps=4)
    custom = graph.custom(model, text, latent, seed=11, steps=4)
    comparison = graph.compare(own, custom)
    report = finished(client, graph).report(comparison)
    assert report["equal"], report
    assert report["a"]["finite"]
    assert report["a"]["shape"] == LATENT_SHAPE


def test_a_seed_decides_the_latents(client: ComfyClient) -> None:
    graph = TinyGraph()
    model, text, latent = graph.load(models.T2V_QUANT), graph.text(), graph.empty()
    probes = [graph.probe(graph.t2v(model, text, latent, seed=seed)) for seed in (21, 22)]
    first = finished(client, graph)
    hashes = [first.report(probe)["sha256"] for probe in probes]
    assert len(set(hashes)) == 2
    client.free()
    again = finished(client, graph)
    assert [again.report(probe)["sha256"] for probe in probes] == hashes


def test_network_times_progress_and_previews_of_t2v(client: ComfyClient) -> None:
    graph = TinyGraph()
    model = graph.add("TestHook", model=graph.load(), kind="wrapper", effect="pass", label="t2v-times")
    sampled = graph.t2v(model, steps=4, seed=31)
    notes = graph.hook_report(sampled, "t2v-times")
    run = finished(client, graph)
    assert [time for time, _ in run.report(notes)["notes"]] == T2V_TIMESTEPS
    assert run.progress(sampled[0])[-4:] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert len(run.previews) >= 4


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
@pytest.mark.parametrize("sampler", ["ode", "sde"])
def test_experts_take_their_turns(client: ComfyClient, steps: int, sampler: str) -> None:
    """High while t >= 0.9; the low expert is not loaded before its first step, and never for 1 or 2 steps."""
    client.free()
    graph, label = TinyGraph(), f"turns-{steps}-{sampler}"
    high = graph.add("TestModelLabel", model=graph.load(models.I2V_HIGH_QUANT), name="high", label=label)
    low = graph.add("TestModelLabel", model=graph.load(models.I2V_LOW_QUANT), name="low", label=label)
    conditioning, latent = graph.stock_i2v(graph.text())
    sampled = graph.i2v(high, low, conditioning, latent, steps=steps, sampler=sampler)
    notes, probe = graph.hook_report(sampled, label), graph.probe(sampled)
    run = finished(client, graph)
    turns = run.report(notes)["notes"]
    expected = ["high", "high", "low", "low"][:steps]
    assert [turn["name"] for turn in turns] == expected
    assert [turn["t"] for turn in turns] == I2V_TIMESTEPS[:steps]
    for turn in turns:
        assert turn["name"] in turn["loaded"]
        assert turn["name"] == "low" or "low" not in turn["loaded"]
    assert run.progress(sampled[0])[-steps:] == [(step + 1, steps) for step in range(steps)]
    report = run.report(probe)
    assert report["finite"]
    assert report["shape"] == LATENT_SHAPE


def test_ode_of_a_batch_equals_its_parts(client: ComfyClient) -> None:
    graph = TinyGraph()
    model, text = graph.load(models.T2V), graph.text()
    both = graph.custom(model, text, graph.empty(batch=2), sampler="ode")
    one = graph.custom(model, text, graph.empty(), sampler="ode")
    first = graph.add("LatentFromBatch", samples=both, batch_index=0, length=1)
    second = graph.add("LatentFromBatch", samples=both, batch_index=1, length=1)
    same, other = graph.compare(first, one), graph.compare(second, one)
    run = finished(client, graph)
    assert run.report(same)["relative"] < SAME_SAMPLING
    assert run.report(other)["relative"] > MOVED


@pytest.mark.parametrize("file", [models.T2V, models.T2V_QUANT])
def test_batch_of_two(client: ComfyClient, file: str) -> None:
    graph = TinyGraph()
    probe = graph.probe(graph.t2v(graph.load(file), latent=graph.empty(batch=2)))
    report = finished(client, graph).report(probe)
    assert report["finite"]
    assert report["shape"] == [2, *LATENT_SHAPE[1:]]


@pytest.mark.parametrize("noise", ["comfy", "upstream"])
def test_noise_orders(client: ComfyClient, noise: str) -> None:
    graph = TinyGraph()
    probe = graph.probe(graph.t2v(graph.load(), steps=4, noise=noise))
    assert finished(client, graph).report(probe)["finite"]


def test_odd_latent_sides(client: ComfyClient) -> None:
    """Native Wan pads odd sides and crops the result; so does the pack's network."""
    graph = TinyGraph()
    latent = graph.add("TestLatent", seed=0, channels=16, frames=3, height=11, width=19, batch=1)
    probe = graph.probe(graph.t2v(graph.load(), latent=latent))
    report = finished(client, graph).report(probe)
    assert report["finite"]
    assert report["shape"] == [1, 16, 3, 11, 19]


@pytest.mark.parametrize("precision", ["exact", "bf16", "int8"])
def test_precisions_stay_near_each_other(client: ComfyClient, precision: str) -> None:
    """Every precision is the same model: with all blocks kept, its result stays near the default's."""
    graph = TinyGraph()
    text, latent = graph.text(), graph.empty()
    file = models.T2V if precision == "int8" else models.T2V_QUANT
    chosen = graph.t2v(graph.load(file, precision=precision, topk=1.0), text, latent)
    usual = graph.t2v(graph.load(models.T2V_QUANT, topk=1.0), text, latent)
    comparison = graph.compare(chosen, usual)
    report = finished(client, graph).report(comparison)
    assert report["a"]["finite"]
    assert report["relative"] < OTHER_PRECISION


@pytest.mark.parametrize("file", [models.T2V, models.T2V_QUANT])
def test_dense_attention_lacks_the_linear_branch(client: ComfyClient, file: str) -> None:
    """Even with all blocks kept, SLA is not dense attention: its linear branch moves the result."""
    graph = TinyGraph()
    text, latent = graph.text(), graph.empty()
    dense = graph.t2v(graph.load(file, attention="dense"), text, latent)
    sparse = graph.t2v(graph.load(file, attention="sla", topk=1.0), text, latent)
    comparison = graph.compare(dense, sparse)
    report = finished(client, graph).report(comparison)
    assert report["a"]["finite"]
    assert report["relative"] > 10 * OTHER_PRECISION


def test_noise_mask(client: ComfyClient) -> None:
    """Where the mask is 0 the input stays, where it is 1 the result is as without a mask."""
    graph = TinyGraph()
    model, text = graph.load(), graph.text()
    given = graph.add("TestLatent", seed=9, channels=16, frames=3, height=12, width=20, batch=1)

    def sampled(value: float) -> Link:
        mask = graph.add("SolidMask", value=value, width=20, height=12)
        return graph.t2v(model, text, graph.add("SetLatentNoiseMask", samples=given, mask=mask))

    plain = graph.t2v(model, text, given)
    kept, free = graph.compare(sampled(0.0), given), graph.compare(sampled(1.0), plain)
    moved = graph.compare(plain, given)
    run = finished(client, graph)
    assert run.report(kept)["relative"] < SAME_MATHS_FP32
    assert run.report(free)["relative"] < SAME_MATHS_FP32
    assert run.report(moved)["relative"] > MOVED
