"""After an interruption or an error the next prompt runs as if nothing had been."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

from host import models
from host.client import ComfyClient
from host.graphs import TinyGraph, finished
from host.server import ComfyProcess

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
