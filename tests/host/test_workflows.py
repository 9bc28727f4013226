"""The shipped API workflows, sent as shipped but for file names, text encoder and sizes, leave an MP4.

`test_demo` runs the demo model's.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from host import models, video
from host.client import ComfyClient
from host.graphs import HEIGHT, LENGTH, WIDTH
from host.server import REPO
from host.workflow import Prompt, assert_only_shrunk, nodes_of, shrink_workflow
from PIL import Image

SIZES = {"width": WIDTH, "height": HEIGHT, "length": LENGTH, "resolution": "custom"}
SHIPPED = {path.stem: path for path in sorted((REPO / "workflows" / "api").glob("*.json"))}
NODES = {
    "TurboWan_T2V": {"TurboLoader": 1, "TurboT2VSampler": 1, "TurboVAEDecodeVideo": 1},
    "TurboWan_I2V": {"TurboLoader": 2, "TurboImageToVideo": 1, "TurboI2VSampler": 1, "TurboVAEDecodeVideo": 1},
    "TurboWan_Demo": {"TurboLoader": 1, "TurboPromptCache": 1, "TurboT2VSampler": 1, "TurboVAEDecodeVideo": 1},
}
RELEASED = ("TurboWan_T2V", "TurboWan_I2V")  # the workflows of released files

LOADERS = {"TurboLoader": "diffusion_models", "CLIPLoader": "text_encoders", "VAELoader": "vae"}  # to folder


def shipped(name: str) -> Prompt:
    return json.loads(SHIPPED[name].read_text())


def tiny_files(workflow: Prompt, *, quantized: bool, image: str = "") -> dict[str, str]:
    """Shipped name to tiny file, by what the shipped name says."""
    tiny = {
        "high": models.I2V_HIGH_QUANT if quantized else models.I2V_HIGH,
        "low": models.I2V_LOW_QUANT if quantized else models.I2V_LOW,
        "t2v": models.T2V_QUANT if quantized else models.T2V,
    }
    files = {"wan_2.1_vae.safetensors": models.VAE}
    for node in nodes_of(workflow, "TurboLoader"):
        name = workflow[node]["inputs"]["file"]
        files[name] = next(file for word, file in tiny.items() if word in name.lower().replace("-", " ").split())
    for node in nodes_of(workflow, "LoadImage"):
        files[workflow[node]["inputs"]["image"]] = image
    return files


@pytest.fixture
def picture(client: ComfyClient, tmp_path: Path) -> str:
    path = tmp_path / "first frame.png"
    Image.radial_gradient("L").resize((300, 200)).convert("RGB").save(path)
    return client.upload_image(path)


def test_all_workflows_are_shipped() -> None:
    assert SHIPPED.keys() == NODES.keys()
    for name, wanted in NODES.items():
        prompt = shipped(name)
        assert {kind: len(nodes_of(prompt, kind)) for kind in wanted} == wanted
        assert [prompt[node]["inputs"]["fps"] for node in nodes_of(prompt, "TurboVAEDecodeVideo")] == [16.0]


@pytest.mark.parametrize("name", NODES)
def test_ui_workflow_names_packs_and_downloads(name: str) -> None:
    """What the frontend's dialogs about missing nodes and models read."""
    nodes = json.loads((REPO / "workflows" / f"{name}.json").read_text())["nodes"]
    for node in nodes:
        if node["type"] == "MarkdownNote":
            continue
        ours = node["type"].startswith("Turbo")
        assert node["properties"]["cnr_id"] == ("comfyui-turbowan" if ours else "comfy-core")
        if name not in RELEASED:
            assert "models" not in node["properties"]  # nothing to download
        elif node["type"] in LOADERS:
            (model,) = node["properties"]["models"]
            assert model["name"] == node["widgets_values"][0]
            assert model["directory"] == LOADERS[node["type"]]
            assert model["url"].startswith("https://huggingface.co/")
            assert model["url"].endswith(f"/{model['name']}")
            assert "/resolve/main/" in model["url"]


@pytest.mark.parametrize("quantized", [False, True], ids=["bf16", "int8"])
@pytest.mark.parametrize("name", RELEASED)
def test_shipped_workflow_makes_a_video(client: ComfyClient, picture: str, name: str, quantized: bool) -> None:
    workflow = shipped(name)
    files = tiny_files(workflow, quantized=quantized, image=picture)
    run = client.run(shrink_workflow(workflow, files=files, sizes=SIZES))
    assert run.ok, run.error
    saved = run.outputs[nodes_of(workflow, "SaveVideo")[0]]["images"][0]
    assert saved["filename"].endswith(".mp4")
    decoded = video.decode(client.view(saved["filename"], saved["subfolder"]))
    assert decoded == video.Video(width=WIDTH, height=HEIGHT, frames=LENGTH, fps=16.0)
    assert client.history(run.prompt_id)["status"]["status_str"] == "success"


def test_shipped_image_workflow_sizes_by_the_image(client: ComfyClient, picture: str) -> None:
    """As shipped, the size follows the image: the area of 720p at 3:2, sides divisible by 16."""
    workflow = shipped("TurboWan_I2V")
    small = shrink_workflow(workflow, files=tiny_files(workflow, quantized=True, image=picture), sizes={"length": 1})
    kept = {node: data for node, data in small.items() if data["class_type"] not in _AFTER_CONDITIONING}
    size = nodes_of(workflow, "TurboImageToVideo")[0]
    probe = {"class_type": "TestLatentProbe", "inputs": {"samples": [size, 1]}}
    run = client.run({**kept, "probe": probe})
    assert run.ok, run.error
    assert run.report("probe")["shape"] == [1, 16, 1, 784 // 8, 1168 // 8]


_AFTER_CONDITIONING = {"TurboI2VSampler", "TurboVAEDecodeVideo", "SaveVideo", "TurboLoader"}


def test_shrinking_changes_nothing_else() -> None:
    workflow = shipped("TurboWan_T2V")
    small = shrink_workflow(workflow, files=tiny_files(workflow, quantized=True), sizes=SIZES)
    sampler = nodes_of(small, "TurboT2VSampler")[0]
    small[sampler]["inputs"]["steps"] = 1
    with pytest.raises(AssertionError, match="steps"):
        assert_only_shrunk(workflow, small)
