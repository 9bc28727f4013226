"""TurboPromptCache in the host: a known prompt runs nothing that feeds `clip`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from host.client import ComfyClient, Run
from host.graphs import finished
from host.server import ComfyProcess
from host.workflow import Graph, Link

from turbowan.turbo_core.prompt_book import write_book
from turbowan.turbo_core.prompt_cache import PromptCache
from turbowan.turbo_core.prompt_key import host_settings, prompt_key

ENCODER = "tiny-encoder.safetensors"
TEXT = "a red ball bounces to the right"


@pytest.fixture
def kept(host: ComfyProcess) -> Iterator[Path]:
    """The folder of kept prompts, empty at first, and an encoder's file."""
    encoders = host.models / "text_encoders"
    encoders.mkdir(exist_ok=True)
    (encoders / ENCODER).write_bytes(b"no weights at all")
    folder = host.base / "user" / "turbowan_prompts"
    for path in folder.glob("*"):
        path.unlink()
    yield folder
    (encoders / ENCODER).unlink()


def cached(graph: Graph, clip: Link | None, text: str | Link = TEXT, **settings: int) -> Link:
    return graph.add("TurboPromptCache", text=text, **({"clip": clip} if clip else {}), **settings)


def fake_clip(graph: Graph, fault: str = "none") -> Link:
    return graph.add("TestClip", encoder=ENCODER, fault=fault)


def run_once(
    client: ComfyClient, text: str = TEXT, *, fault: str = "none", scale: float = 2.0
) -> tuple[Run, bool, dict]:
    """Without the host's own caches: the run, whether the encoder's nodes ran in it, and what the prompt became."""
    graph = Graph()
    loader = fake_clip(graph, fault)
    clip = graph.add("TestClipScale", clip=loader, scale=scale)
    encoded = cached(graph, clip, text)
    probe = graph.add("TestConditioningProbe", conditioning=encoded)
    client.free()
    run = finished(client, graph)
    ran = set(run.executed())
    assert (loader[0] in ran) == (clip[0] in ran)
    return run, loader[0] in ran, run.report(probe[0]) | {"said": run.texts[encoded[0]]}


def test_a_known_prompt_runs_no_encoder(client: ComfyClient, kept: Path) -> None:
    _, ran, first = run_once(client)
    assert ran
    assert first["said"].startswith("prompt encoded and kept (0 of 1024 MB)")
    _, ran, second = run_once(client)
    assert not ran
    assert second.pop("said") == "prompt from disk"
    del first["said"]
    assert second == first
    assert len(list(kept.glob("*.safetensors"))) == 1


def test_as_clip_text_encode(client: ComfyClient, kept: Path) -> None:
    graph = Graph()
    clip = fake_clip(graph)
    ours = graph.add("TestConditioningProbe", conditioning=cached(graph, clip))
    stock = graph.add("TestConditioningProbe", conditioning=graph.add("CLIPTextEncode", clip=clip, text=TEXT))
    for _ in range(2):  # encoded, then from disk
        client.free()
        run = finished(client, graph)
        assert run.report(ours[0]) == run.report(stock[0])
        assert {"pooled_output", "attention_mask"} <= run.report(ours[0]).keys()


def test_another_encoder_text_or_file_encodes_again(client: ComfyClient, host: ComfyProcess, kept: Path) -> None:
    run_once(client)
    assert run_once(client, "a blue cube")[1]
    assert run_once(client, scale=3.0)[1]
    assert not run_once(client)[1]
    os.utime(host.models / "text_encoders" / ENCODER, (1, 1))
    assert run_once(client)[1]


def test_another_embedding_encodes_again(client: ComfyClient, host: ComfyProcess, kept: Path) -> None:
    file = host.models / "embeddings" / "mine.safetensors"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"one")
    text = "a ball, embedding:mine, in the rain"
    run_once(client, text)
    assert not run_once(client, text)[1]
    file.write_bytes(b"another")
    assert run_once(client, text)[1]


def test_a_damaged_entry_is_made_again(client: ComfyClient, kept: Path) -> None:
    whole = run_once(client)[2]
    (entry,) = kept.glob("*.safetensors")
    entry.write_bytes(entry.read_bytes()[:-9])
    _, ran, again = run_once(client)
    assert ran
    assert again == whole
    assert not run_once(client)[1]


def test_a_linked_text(client: ComfyClient, kept: Path) -> None:
    graph = Graph()
    text = graph.add("PrimitiveString", value=TEXT)
    probe = graph.add("TestConditioningProbe", conditioning=cached(graph, fake_clip(graph), text))
    client.free()
    first = finished(client, graph).report(probe[0])
    client.free()
    second = finished(client, graph)
    assert second.report(probe[0]) == first
    assert "TestClip" not in [graph.prompt[node]["class_type"] for node in second.executed()]


def test_the_stock_loader_does_not_open_its_file(client: ComfyClient, host: ComfyProcess, kept: Path) -> None:
    """The file is no encoder: CLIPLoader fails on it where it runs, and a known prompt never lets it.

    Only one that this version of ComfyUI encoded, and on this device, is known.
    """
    graph = Graph()
    loader = graph.add("CLIPLoader", clip_name=ENCODER, type="wan", device="default")
    probe = graph.add("TestConditioningProbe", conditioning=cached(graph, loader))
    assert not client.run(graph.prompt).ok
    status = (host.models / "text_encoders" / ENCODER).stat()
    stamp = [["text_encoders", status.st_size, status.st_mtime_ns]]
    version = re.search(r'"([\d.]+)"', (host.checkout / "comfyui_version.py").read_text())[1]

    def put(*settings: str) -> None:
        others = host_settings(*settings, {})
        files = {ENCODER: stamp}
        key = prompt_key(TEXT, loader, graph.prompt.__getitem__, lambda value: files.get(value, []), others)
        PromptCache(folder=kept, limit=10**9).put(key, TEXT, [[torch.ones(1, 4, 8), {}]])

    put("0.7.0", "cpu")
    put(version, "cuda")
    assert not client.run(graph.prompt).ok
    put(version, "cpu")
    run = finished(client, graph)
    assert loader[0] not in run.executed()
    assert run.report(probe[0])["text"]["shape"] == [1, 4, 8]


def test_nothing_overflown_is_kept(client: ComfyClient, kept: Path) -> None:
    graph = Graph()
    graph.add("TestConditioningProbe", conditioning=cached(graph, fake_clip(graph, "nan")))
    client.free()
    assert "must be finite, got NaN or infinity" in client.run(graph.prompt).error
    assert list(kept.glob("*")) == []


def test_what_cannot_be_kept_is_passed_on(client: ComfyClient, host: ComfyProcess, kept: Path) -> None:
    """As CLIPTextEncode passes it on; the node and the log say why it is encoded each time."""
    graph = Graph()
    clip = fake_clip(graph, "hooks")
    encoded = cached(graph, clip)
    ours = graph.add("TestConditioningProbe", conditioning=encoded)
    stock = graph.add("TestConditioningProbe", conditioning=graph.add("CLIPTextEncode", clip=clip, text=TEXT))
    for _ in range(2):
        client.free()
        log = len(host.log())
        run = finished(client, graph)
        assert run.report(ours[0]) == run.report(stock[0])
        assert run.report(ours[0])["others"]["hooks"] == "_Encoder"
        assert run.texts[encoded[0]] == "prompt encoded, not kept: it holds _Encoder in conditioning[0][1].hooks"
        assert "TurboPromptCache: the prompt is passed on, not kept" in host.log()[log:]
        assert clip[0] in run.executed()
    assert list(kept.glob("*")) == []


@pytest.fixture
def books(host: ComfyProcess) -> Iterator[Path]:
    """The user's folder of prompt books, empty before and after."""
    folder = host.models / "turbowan_prompts"
    folder.mkdir(exist_ok=True)
    yield folder
    for path in folder.glob("*"):
        path.unlink()


def test_a_book_that_changed_is_read_again(client: ComfyClient, books: Path, kept: Path) -> None:
    """With ComfyUI's own caches, which keep what did not change; one that comes or goes counts too."""
    graph = Graph()
    encoded = cached(graph, None)
    probe = graph.add("TestConditioningProbe", conditioning=encoded)

    def mean(value: float, name: str = "mine.safetensors") -> float:
        write_book(books / name, {TEXT: [[torch.full((1, 6, 8), value), {}]]})
        return finished(client, graph).report(probe[0])["text"]["mean"]

    assert mean(2.0) == 2.0
    assert encoded[0] not in finished(client, graph).executed()
    assert mean(3.0) == 3.0
    assert mean(4.0, "earlier.safetensors") == 4.0
    (books / "earlier.safetensors").unlink()
    assert finished(client, graph).report(probe[0])["text"]["mean"] == 3.0


def test_books_do_not_count_where_an_encoder_is_connected(client: ComfyClient, books: Path, kept: Path) -> None:
    graph = Graph()
    encoded = cached(graph, fake_clip(graph))
    graph.add("TestConditioningProbe", conditioning=encoded)
    client.free()
    assert encoded[0] in finished(client, graph).executed()
    write_book(books / "mine.safetensors", {TEXT: [[torch.ones(1, 6, 8), {}]]})
    assert encoded[0] not in finished(client, graph).executed()


def test_without_clip_a_book_serves(client: ComfyClient, books: Path, kept: Path) -> None:
    write_book(books / "mine.safetensors", {TEXT: [[torch.full((1, 6, 8), 2.0), {"pooled_output": None}]]})
    graph = Graph()
    encoded = cached(graph, None)
    probe = graph.add("TestConditioningProbe", conditioning=encoded)
    run = finished(client, graph)
    assert run.texts[encoded[0]] == "prompt from mine.safetensors"
    assert run.report(probe[0])["text"]["mean"] == 2.0

    graph = Graph()
    graph.add("TestConditioningProbe", conditioning=cached(graph, None, "a red ball bounces to the left"))
    error = client.run(graph.prompt).error
    assert "without clip the prompt must be in a prompt book, got 'a red ball bounces to the left'" in error
    assert repr(TEXT) in error
    assert "turbowan prompts" in error
