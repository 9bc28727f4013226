"""What the host knows of the pack: ids, inputs and outputs in /object_info, templates, help pages, import time."""

from __future__ import annotations

import importlib.util
import re
from typing import Any

import pytest
from host.client import ComfyClient
from host.server import REPO, ComfyProcess

# id -> (inputs, outputs); ids and input names are forever
NODES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "TurboLoader": (
        {"file": "COMBO", "attention": "COMBO", "topk": "FLOAT", "precision": "COMBO"},
        ["MODEL"],
    ),
    "TurboT2VSampler": (
        {
            "model": "MODEL", "conditioning": "CONDITIONING", "latent": "LATENT", "seed": "INT", "steps": "INT",
            "sigma_max": "FLOAT", "noise": "COMBO",
        },
        ["LATENT"],
    ),
    "TurboI2VSampler": (
        {
            "model_high": "MODEL", "model_low": "MODEL", "conditioning": "CONDITIONING", "latent": "LATENT",
            "seed": "INT", "steps": "INT", "sigma_max": "FLOAT", "boundary": "FLOAT", "sampler": "COMBO",
            "noise": "COMBO",
        },
        ["LATENT"],
    ),
    "TurboImageToVideo": (
        {
            "conditioning": "CONDITIONING", "vae": "VAE", "image": "IMAGE", "resolution": "COMBO",
            "aspect": "COMBO", "width": "INT", "height": "INT", "length": "INT", "batch_size": "INT",
        },
        ["CONDITIONING", "LATENT"],
    ),
    "TurboVAEDecode": ({"samples": "LATENT", "vae": "VAE"}, ["IMAGE"]),
    "TurboVAEDecodeVideo": (
        {"samples": "LATENT", "vae": "VAE", "fps": "FLOAT", "crf": "INT", "audio": "AUDIO"},
        ["VIDEO"],
    ),
    "TurboPromptCache": ({"text": "STRING", "clip": "CLIP", "disk_mb": "INT"}, ["CONDITIONING"]),
    "TurboScheduler": ({"steps": "INT", "sigma_max": "FLOAT"}, ["SIGMAS"]),
    "TurboSamplerSelect": ({"sampler": "COMBO"}, ["SAMPLER"]),
    "TurboDoctor": ({}, ["STRING"]),
}  # fmt: skip
DEFAULTS = {
    ("TurboLoader", "attention"): "auto",
    ("TurboLoader", "precision"): "auto",
    ("TurboLoader", "topk"): 0.1,
    ("TurboT2VSampler", "steps"): 4,
    ("TurboT2VSampler", "sigma_max"): 80.0,
    ("TurboI2VSampler", "steps"): 4,
    ("TurboI2VSampler", "sigma_max"): 200.0,
    ("TurboI2VSampler", "boundary"): 0.9,
    ("TurboI2VSampler", "sampler"): "ode",
    ("TurboScheduler", "sigma_max"): 80.0,
    ("TurboSamplerSelect", "sampler"): "sde",
    ("TurboImageToVideo", "length"): 81,
    ("TurboVAEDecodeVideo", "fps"): 16.0,
    ("TurboVAEDecodeVideo", "crf"): 23,
    ("TurboPromptCache", "disk_mb"): 1024,
}


def _inputs(info: dict[str, Any]) -> dict[str, list[Any]]:
    return {**info["input"].get("required", {}), **info["input"].get("optional", {})}


def _type(spec: list[Any]) -> str:
    return "COMBO" if isinstance(spec[0], list) else spec[0]


@pytest.mark.parametrize("node", NODES)
def test_node_is_registered(client: ComfyClient, node: str) -> None:
    info = client.object_info(node)[node]
    inputs, outputs = NODES[node]
    assert {name: _type(spec) for name, spec in _inputs(info).items()} == inputs
    assert info["output"] == outputs
    assert info["description"]


@pytest.mark.parametrize(("node", "name"), DEFAULTS)
def test_defaults(client: ComfyClient, node: str, name: str) -> None:
    assert _inputs(client.object_info(node)[node])[name][1]["default"] == DEFAULTS[node, name]


def test_every_input_explains_itself(client: ComfyClient) -> None:
    for node in NODES:
        for name, spec in _inputs(client.object_info(node)[node]).items():
            assert spec[1].get("tooltip"), f"{node}.{name} has no tooltip"


def test_no_further_node(client: ComfyClient) -> None:
    own = {name for name, info in client.object_info().items() if "comfyui-turbowan" in info["python_module"]}
    assert own == NODES.keys()


def test_import_costs_nothing(client: ComfyClient, host: ComfyProcess) -> None:
    line = re.search(r"([\d.]+) seconds( \(IMPORT FAILED\))?: \S*comfyui-turbowan", host.log())
    assert line, "the host must report the pack's import"
    assert line[2] is None
    assert float(line[1]) < 0.3


def test_templates_and_help_are_served(client: ComfyClient) -> None:
    templates = client.get("/api/workflow_templates")["comfyui-turbowan"]
    assert set(templates) >= {"TurboWan_T2V", "TurboWan_I2V"}
    for name in templates:
        assert client.get_bytes(f"/api/workflow_templates/comfyui-turbowan/{name}.jpg").startswith(b"\xff\xd8")
        assert client.get(f"/api/workflow_templates/comfyui-turbowan/{name}.json")["nodes"]
    for node in NODES:
        if (REPO / "web" / "docs" / f"{node}.md").exists():
            assert client.get_bytes(f"/extensions/comfyui-turbowan/docs/{node}.md")
            assert client.get_bytes(f"/extensions/comfyui-turbowan/docs/{node}/zh.md")


def test_the_english_words_are_the_nodes_own(client: ComfyClient) -> None:
    """Else run `python locales/build.py` beside a running ComfyUI, and translate what changed."""
    spec = importlib.util.spec_from_file_location("locales_build", REPO / "locales" / "build.py")
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    served = client.get("/i18n")
    assert served["en"]["nodeDefs"] == build.definitions({node: client.object_info(node)[node] for node in NODES})
    assert served["zh"]["nodeDefs"].keys() == NODES.keys()


def test_every_node_has_a_help_page() -> None:
    assert {path.stem for path in (REPO / "web" / "docs").glob("*.md")} >= NODES.keys()
