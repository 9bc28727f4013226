"""Every hook of native Wan that other people's nodes use: called as often, and with the same effect, as there."""

from __future__ import annotations

from typing import Any

import pytest
from host import models
from host.client import ComfyClient
from host.graphs import HEIGHT, LENGTH, WIDTH, TinyGraph, finished
from host.workflow import Link
from tolerances import SAME_MATHS_FP32

STEPS, LAYERS = 2, 2
TOKENS = (LENGTH + 3) // 4 * (HEIGHT // 16) * (WIDTH // 16)
CALLS = {
    "block_replace": STEPS,  # one block of the two
    "attn1_patch": STEPS * LAYERS,
    "attn2_patch": STEPS * LAYERS,
    "double_block": STEPS * LAYERS,
    "wrapper": STEPS,
    "attention_override": STEPS * LAYERS * 2,  # self- and cross-attention
}
NATIVE_LACKS = {"0.8.0": {"attn1_patch", "attn2_patch", "double_block"}, "0.18.1": {"double_block"}}


def _version(request: pytest.FixtureRequest) -> str:
    return request.node.callspec.id.split("-")[0]


@pytest.mark.parametrize("kind", CALLS)
def test_hook_as_native(client: ComfyClient, request: pytest.FixtureRequest, kind: str) -> None:
    """Dense mode on a native file: our network with the hook equals the host's with the same hook."""
    label = f"{kind}-ours"
    graph = TinyGraph()
    text, latent = graph.text(), graph.empty()
    loaded = graph.load(models.T2V_NATIVE, attention="dense")
    stock = graph.add("UNETLoader", unet_name=models.T2V_NATIVE, weight_dtype="default")

    def sampled(model: Link, effect: str, label: str) -> Link:
        hooked = graph.add("TestHook", model=model, kind=kind, effect=effect, label=label)
        return graph.ksampler(hooked, text, latent)

    plain = graph.ksampler(loaded, text, latent)
    ours = sampled(loaded, "change", label)
    moved = graph.compare(ours, plain)
    unmoved = graph.compare(sampled(loaded, "pass", f"{kind}-pass"), plain)
    native = graph.compare(ours, sampled(stock, "change", f"{kind}-native"))
    notes = graph.hook_report(ours, label)
    run = finished(client, graph)
    assert run.report(notes)["count"] == CALLS[kind]
    assert run.report(unmoved)["equal"]
    assert run.report(moved)["relative"] > 0.01
    known = kind not in NATIVE_LACKS.get(_version(request), ())
    assert (run.report(native)["relative"] < SAME_MATHS_FP32) == known


@pytest.mark.parametrize("kind", ["block_replace", "attn1_patch", "attn2_patch", "double_block", "wrapper"])
def test_hook_on_sparse_int8(client: ComfyClient, kind: str) -> None:
    """The same hooks reach an SLA-trained, quantized model in the pack's own sampler."""
    graph = TinyGraph()
    model, text, latent = graph.load(models.T2V_QUANT), graph.text(), graph.empty()
    hooked = graph.add("TestHook", model=model, kind=kind, effect="change", label=f"{kind}-sla")
    plain, changed = graph.t2v(model, text, latent), graph.t2v(hooked, text, latent)
    moved, notes = graph.compare(changed, plain), graph.hook_report(changed, f"{kind}-sla")
    run = finished(client, graph)
    assert run.report(notes)["count"] == CALLS[kind]
    assert run.report(moved)["relative"] > 0.01


def test_override_serves_cross_attention_of_sparse_models(client: ComfyClient) -> None:
    graph = TinyGraph()
    hooked = graph.add(
        "TestHook", model=graph.load(models.T2V), kind="attention_override", effect="change", label="override-sla"
    )
    notes = graph.hook_report(graph.t2v(hooked), "override-sla")
    report = finished(client, graph).report(notes)
    assert report["count"] == STEPS * LAYERS
    assert {shape[1] for shape in report["notes"]} == {TOKENS}


def test_arguments_of_hooks(client: ComfyClient) -> None:
    """q as [B, L, heads, 128]; double_block gets the block's index, the latent and the time embedding."""
    graph = TinyGraph()
    model = graph.load(models.T2V)
    for kind in ("attn1_patch", "double_block"):
        model = graph.add("TestHook", model=model, kind=kind, effect="pass", label=f"{kind}-arguments")
    sampled = graph.t2v(model)
    attn1, block = (graph.hook_report(sampled, f"{kind}-arguments") for kind in ("attn1_patch", "double_block"))
    run = finished(client, graph)
    assert run.report(attn1)["notes"] == [[1, TOKENS, 2, 128]] * (STEPS * LAYERS)
    latent = [1, 16, (LENGTH + 3) // 4, HEIGHT // 8, WIDTH // 8]
    assert [note[:2] for note in run.report(block)["notes"]] == [[0, latent], [1, latent]] * STEPS


NATIVE_NODES: dict[str, dict[str, Any]] = {
    "ScaleROPE": {"scale_x": 0.5, "shift_x": 1.0, "scale_y": 2.0, "shift_y": 0.0, "scale_t": 0.7, "shift_t": 3.0},
    "EasyCache": {"reuse_threshold": 3.0, "start_percent": 0.0, "end_percent": 1.0, "verbose": False},
    "SkipLayerGuidanceDiT": {
        "double_layers": "1", "single_layers": "", "scale": 3.0, "start_percent": 0.0, "end_percent": 1.0,
        "rescaling_scale": 0.0,
    },
    "WanContextWindowsManual": {
        "context_length": 9, "context_overlap": 4, "context_schedule": "standard_static", "context_stride": 1,
        "closed_loop": False, "fuse_method": "pyramid", "freenoise": False,
    },
}  # fmt: skip


@pytest.mark.parametrize("node", NATIVE_NODES)
def test_stock_model_node_as_native(client: ComfyClient, node: str) -> None:
    """The host's own nodes that hook into Wan: rotary options, EasyCache, skip-layer guidance, context windows."""
    graph = TinyGraph()
    text, latent = graph.text(), graph.empty(length=17)
    stock = graph.add("UNETLoader", unet_name=models.T2V_NATIVE, weight_dtype="default")
    loaded = graph.load(models.T2V_NATIVE, attention="dense")
    known = client.object_info(node)[node]["input"]
    wanted = {**known["required"], **known.get("optional", {})}
    settings = {
        name: NATIVE_NODES[node].get(name, spec[1].get("default")) for name, spec in wanted.items() if name != "model"
    }

    def sampled(model: Link) -> Link:
        return graph.ksampler(graph.add(node, model=model, **settings), text, latent, steps=4, cfg=2.0)

    ours = sampled(loaded)
    native = graph.compare(ours, sampled(stock))
    moved = graph.compare(ours, graph.ksampler(loaded, text, latent, steps=4, cfg=2.0))
    run = finished(client, graph)
    assert run.report(native)["relative"] < SAME_MATHS_FP32
    assert run.report(moved)["relative"] > 1e-3
