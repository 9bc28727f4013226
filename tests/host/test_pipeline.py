"""The pipeline without ComfyUI gives the latents that the nodes give, for the same conditioning and seed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from host import models
from host.client import ComfyClient
from host.graphs import HEIGHT, LENGTH, WIDTH, TinyGraph, finished
from host.server import ComfyProcess
from host.workflow import output
from PIL import Image
from safetensors.torch import load_file
from tolerances import SAME_SAMPLING, relative_error

from turbowan.turbo_core.expert import NetworkSettings
from turbowan.turbo_core.pipeline import ModelFiles, Pipeline
from turbowan.turbo_core.request import Request

SEED = 7


def conditioning() -> torch.Tensor:
    """What `TinyGraph.text()` makes."""
    text = torch.randn(1, 512, 4096, generator=torch.Generator().manual_seed(1))
    text[:, 40:] = 0
    return text


def saved(host: ComfyProcess, client: ComfyClient, graph: TinyGraph, samples: list) -> torch.Tensor:
    node = graph.add("SaveLatent", samples=samples, filename_prefix="latents/pipeline")
    told = finished(client, graph).outputs[node[0]]["latents"][0]
    return load_file(host.base / "output" / told["subfolder"] / told["filename"])["latent_tensor"]


def pipeline(dits: Path, network: str, low: str | None = None) -> Pipeline:
    files = ModelFiles(
        network=dits / network,
        low=dits / low if low else None,
        vae=dits.parent / "vae" / models.VAE,
        text_encoder=dits / network,  # never opened: the conditioning is given
    )
    return Pipeline(files, NetworkSettings(topk=0.4), torch.device("cpu"))


@pytest.mark.parametrize("file", [models.T2V, models.T2V_QUANT, models.T2V_NATIVE])
@pytest.mark.parametrize("noise", ["comfy", "upstream"])
def test_text_to_video(host: ComfyProcess, client: ComfyClient, file: str, noise: str) -> None:
    graph = TinyGraph()
    theirs = saved(host, client, graph, graph.t2v(graph.load(file), seed=SEED, steps=4, noise=noise))
    request = Request(prompt="", size=(WIDTH, HEIGHT), frames=LENGTH, seed=SEED, steps=4, noise=noise)
    ours = pipeline(host.models / "diffusion_models", file).sample(request, conditioning())
    assert relative_error(ours, theirs) < SAME_SAMPLING


@pytest.mark.parametrize("sampler", ["ode", "sde"])
def test_image_to_video(host: ComfyProcess, client: ComfyClient, tmp_path: Path, sampler: str) -> None:
    path = tmp_path / "pipeline.png"
    Image.radial_gradient("L").resize((300, 200)).convert("RGB").save(path)
    graph = TinyGraph()
    high, low = graph.load(models.I2V_HIGH_QUANT), graph.load(models.I2V_LOW_QUANT)
    made = graph.add(
        "TurboImageToVideo", conditioning=graph.text(), vae=graph.vae(), resolution="custom", aspect="adaptive",
        image=graph.add("LoadImage", image=client.upload_image(path)), width=WIDTH, height=HEIGHT, length=LENGTH,
        batch_size=1,
    )  # fmt: skip
    theirs = saved(host, client, graph, graph.i2v(high, low, made, output(made, 1), seed=SEED, sampler=sampler))
    request = Request(prompt="", size=(WIDTH, HEIGHT), frames=LENGTH, seed=SEED, image=path, sampler=sampler)
    ours = pipeline(host.models / "diffusion_models", models.I2V_HIGH_QUANT, models.I2V_LOW_QUANT)
    assert relative_error(ours.sample(request, conditioning()), theirs) < SAME_SAMPLING
