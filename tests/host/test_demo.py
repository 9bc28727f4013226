"""The demo model inside ComfyUI: found in the pack; its workflow as shipped, with no text encoder, to an MP4."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from host import video
from host.client import ComfyClient
from host.server import REPO, ComfyProcess
from host.workflow import Graph, Prompt, nodes_of

from turbowan.turbo_core import demo_bundle


def workflow() -> Prompt:
    return json.loads((REPO / "workflows" / "api" / "TurboWan_Demo.json").read_text())


def _prompt() -> str:
    graph = workflow()
    (node,) = nodes_of(graph, "TurboPromptCache")
    return graph[node]["inputs"]["text"]


@pytest.fixture(scope="module")
def host_with_demo(
    checkout: Path, host_python: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ComfyProcess]:
    """Nothing lies in its models folder."""
    with ComfyProcess(checkout, host_python, tmp_path_factory.mktemp("demo")) as process:
        yield process


@pytest.fixture(scope="module")
def made(host_with_demo: ComfyProcess) -> bytes:
    """The MP4 that the shipped workflow saves."""
    client = ComfyClient(host_with_demo.url)
    graph = workflow()
    run = client.run(graph)
    assert run.ok, run.error
    assert run.texts[nodes_of(graph, "TurboPromptCache")[0]] == f"prompt from {demo_bundle.PROMPTS.name}"
    saved = run.outputs[nodes_of(graph, "SaveVideo")[0]]["images"][0]
    return client.view(saved["filename"], saved["subfolder"])


def test_the_shipped_workflow_makes_a_video(made: bytes) -> None:
    assert video.decode(made) == video.Video(width=160, height=160, frames=81, fps=16.0)


def test_the_video_shows_what_was_asked(made: bytes) -> None:
    from turbowan.demo.detector import detect
    from turbowan.demo.vocabulary import Triple

    frames = torch.from_numpy(video.images(made)).permute(3, 0, 1, 2)[None]  # [1, 3, T, H, W]
    (found,) = detect(frames.float() / 127.5 - 1)
    assert _prompt() == "a red ball bouncing to the right"
    assert found.confirms(Triple("red", "ball", "bounce right")), found


def test_the_loader_lists_networks_alone(host_with_demo: ComfyProcess) -> None:
    info = ComfyClient(host_with_demo.url).object_info("TurboLoader")["TurboLoader"]
    spec = info["input"]["required"]["file"]
    listed = spec[0] if isinstance(spec[0], list) else spec[1]["options"]
    assert demo_bundle.T2V.name in listed
    assert not {demo_bundle.VAE.name, demo_bundle.TEXT_ENCODER.name, demo_bundle.PROMPTS.name} & set(listed)


def test_another_models_prompt_is_refused_with_the_remedy(host_with_demo: ComfyProcess) -> None:
    graph = Graph()
    model = graph.add("TurboLoader", file=demo_bundle.T2V.name, attention="auto", topk=0.1, precision="auto")
    text = graph.add("TestConditioning", seed=1, tokens=512, width=4096, batch=1, words=40, fault="none")
    latent = graph.add("EmptyHunyuanLatentVideo", width=160, height=160, length=5, batch_size=1)
    sampled = graph.add(
        "TurboT2VSampler", model=model, conditioning=text, latent=latent, seed=0, steps=1, sigma_max=80.0, noise="comfy"
    )
    graph.add("TestLatentProbe", samples=sampled)
    error = ComfyClient(host_with_demo.url).run(graph.prompt).error
    assert "got (1, 512, 4096); use the prompts that came with this model (TurboPromptCache without clip)" in error
