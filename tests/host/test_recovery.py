"""After an interruption or an error the next prompt runs as if nothing had been."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from host import models
from host.client import ComfyClient
from host.graphs import TinyGraph, finished
from host.server import ComfyProcess
from host.workflow import Link, output

STOPS_WITHIN = 15.0  # seconds; the whole run would take minutes


def _reference(client: ComfyClient) -> str:
    graph = TinyGraph()
    probe = graph.probe(graph.t2v(graph.load(models.T2V_QUANT), seed=51))
    client.free()
    return finished(client, graph).report(probe)["sha256"]


def test_interrupt_stops_within_a_step(client: ComfyClient) -> None:
    before = _reference(client)
    graph = TinyGraph()
    latent = graph.empty(width=832, height=480, length=33)
    sampled = graph.t2v(graph.load(models.T2V_DEEP), latent=latent, steps=4)
    graph.probe(sampled)
    times: dict[str, float] = {}

    def interrupt() -> None:
        times["asked"] = time.monotonic()
        client.interrupt()

    def on_event(event: dict[str, Any]) -> None:
        if event["type"] == "executing" and event["data"].get("node") == sampled[0]:
            threading.Timer(3.0, interrupt).start()
        if event["type"] == "execution_interrupted":
            times["stopped"] = time.monotonic()

    run = client.run(graph.prompt, on_event=on_event)
    assert run.ending == "execution_interrupted"
    assert not run.progress(sampled[0]), "it must be interrupted inside the first step"
    assert times["stopped"] - times["asked"] < STOPS_WITHIN
    assert _reference(client) == before


@pytest.mark.parametrize("node", ["TurboVAEDecode", "TurboVAEDecodeVideo", "TurboImageToVideo"])
def test_interrupt_stops_the_vae_between_frames(client: ComfyClient, node: str) -> None:
    graph = TinyGraph()
    if node != "TurboImageToVideo":
        latent = graph.add("TestLatent", seed=3, channels=16, frames=9, height=60, width=104, batch=1)
        made = _decode(graph, node, latent, graph.vae())
    else:
        made, latent = graph.own_i2v(graph.text(), length=33, size=(832, 480))
        graph.probe(latent)

    def on_event(event: dict[str, Any]) -> None:
        if event["type"] == "progress" and str(event["data"]["node"]) == made[0] and event["data"]["value"] == 1:
            client.interrupt()

    run = client.run(graph.prompt, on_event=on_event)
    assert run.ending == "execution_interrupted"
    assert run.progress(made[0])[-1][0] < run.progress(made[0])[-1][1]


def _decode(graph: TinyGraph, node: str, latent: Link, vae: Link) -> Link:
    if node == "TurboVAEDecodeVideo":
        made = graph.add(node, samples=latent, vae=vae, fps=16.0, crf=23)
        graph.add("TestVideoProbe", video=made)
    else:
        made = graph.add(node, samples=latent, vae=vae)
        graph.add("TestImageProbe", image=made)
    return made


def test_bad_file_then_a_good_one(client: ComfyClient, host: ComfyProcess) -> None:
    before = _reference(client)
    bad = host.models / "diffusion_models" / "broken.pth"
    bad.write_bytes((host.models / "diffusion_models" / models.T2V).read_bytes()[:100_000])
    graph = TinyGraph()
    graph.probe(graph.t2v(graph.load("broken.pth")))
    run = client.run(graph.prompt)
    assert run.ending == "execution_error"
    assert "broken.pth" in run.error
    assert "download" in run.error
    assert _reference(client) == before


def test_out_of_memory_names_the_remedy_and_stays_torchs_own(client: ComfyClient) -> None:
    """The host frees its models on torch's own type alone."""
    before = _reference(client)
    graph = TinyGraph()
    hooked = graph.add(
        "TestHook", model=graph.load(models.T2V_QUANT), kind="out_of_memory", effect="change", label="memory"
    )
    graph.probe(graph.t2v(hooked))
    run = client.run(graph.prompt)
    assert run.ending == "execution_error"
    kind, message = run.error.split(":", 1)
    assert kind.endswith("OutOfMemoryError")
    for part in ("TurboT2VSampler: ran out of memory on cpu", "fewer frames", "--lowvram", "Allocation on device"):
        assert part in message, message
    assert _reference(client) == before


@pytest.mark.parametrize("node", ["TurboVAEDecode", "TurboVAEDecodeVideo", "TurboImageToVideo"])
def test_out_of_memory_in_the_vae_has_its_own_remedy(client: ComfyClient, node: str) -> None:
    graph = TinyGraph()
    vae = graph.add("TestFullVAE", vae=graph.vae())
    if node != "TurboImageToVideo":
        latent = graph.add("TestLatent", seed=3, channels=16, frames=2, height=8, width=8, batch=1)
        _decode(graph, node, latent, vae)
    else:
        image = graph.add("TestImage", seed=5, width=64, height=64, batch=1)
        made = graph.add(
            node, conditioning=graph.text(), vae=vae, image=image, resolution="custom", aspect="adaptive", width=64,
            height=64, length=5, batch_size=1,
        )  # fmt: skip
        graph.probe(output(made, 1))
    run = client.run(graph.prompt)
    assert run.ending == "execution_error"
    kind, message = run.error.split(":", 1)
    assert kind.endswith("OutOfMemoryError")
    assert f"{node}: ran out of memory on cpu" in message
    assert "close other programs" in message
    assert "attention" not in message


@pytest.mark.parametrize("sampler", ["stock", "own"])
def test_infinite_output_names_the_timestep(client: ComfyClient, sampler: str) -> None:
    before = _reference(client)
    graph = TinyGraph()
    model, text, latent = graph.load(models.T2V_HUGE), graph.text(), graph.empty()
    graph.probe(graph.ksampler(model, text, latent) if sampler == "stock" else graph.t2v(model, text, latent))
    run = client.run(graph.prompt)
    assert run.ending == "execution_error"
    assert re.search(r"the network must give finite values, got NaN or infinity at timestep \d+", run.error), run.error
    assert _reference(client) == before


def test_a_linked_file_is_loaded_once(client: ComfyClient) -> None:
    """The file's name comes from another node: a second prompt takes the loaded model from the host's cache."""
    client.free()
    first, second = (_linked(seed) for seed in (1, 2))
    loader = next(node for node, data in first.prompt.items() if data["class_type"] == "TurboLoader")
    assert loader in finished(client, first).executed()
    assert loader not in finished(client, second).executed()


def _linked(seed: int) -> TinyGraph:
    graph = TinyGraph()
    graph.probe(graph.t2v(graph.load(graph.add("TestName", name=models.T2V_QUANT)), seed=seed, steps=1))
    return graph


def test_replaced_file_is_loaded_again(client: ComfyClient, host: ComfyProcess) -> None:
    """The same name with other content is another model: no stale cache."""
    folder = host.models / "diffusion_models"
    target = folder / "replaced.pth"
    graph = TinyGraph()
    target.write_bytes((folder / models.T2V).read_bytes())
    probe = graph.probe(graph.t2v(graph.load("replaced.pth")))
    first = finished(client, graph).report(probe)["sha256"]
    fresh = folder / "replaced.new"
    fresh.write_bytes((folder / models.T2V_QUANT).read_bytes())
    Path(fresh).replace(target)
    assert finished(client, graph).report(probe)["sha256"] != first
    target.unlink()
