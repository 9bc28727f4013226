"""TurboVAEDecode and TurboImageToVideo against the host's own nodes."""

from __future__ import annotations

import pytest
from host import models
from host.client import ComfyClient
from host.graphs import HEIGHT, LENGTH, WIDTH, TinyGraph, finished
from host.workflow import output
from tolerances import MOVED, SAME_CONDITIONING, SAME_MATHS_FP32


@pytest.mark.parametrize("frames", [1, 2, 3, 5])
@pytest.mark.parametrize("batch", [1, 2])
def test_decode_as_stock(client: ComfyClient, frames: int, batch: int) -> None:
    graph = TinyGraph()
    latent = graph.add("TestLatent", seed=3, channels=16, frames=frames, height=10, width=14, batch=batch)
    vae = graph.vae()
    ours = graph.add("TurboVAEDecode", samples=latent, vae=vae)
    stock = graph.add("VAEDecode", samples=latent, vae=vae)
    comparison = graph.add("TestCompareImages", a=ours, b=stock)[0]
    report = finished(client, graph).report(comparison)
    assert report["same_shape"], report
    assert report["a"]["shape"] == [batch * (4 * frames - 3), 80, 112, 3]
    assert report["relative"] < SAME_MATHS_FP32


def test_image_to_video_conditions_as_stock(client: ComfyClient) -> None:
    """With the image already at the video's size, the conditioning drives a model as WanImageToVideo's does."""
    graph = TinyGraph()
    text, vae = graph.text(), graph.vae()
    image = graph.add("TestImage", seed=5, width=WIDTH, height=HEIGHT, batch=1)
    own = graph.add(
        "TurboImageToVideo", conditioning=text, vae=vae, image=image, resolution="custom", aspect="adaptive",
        width=WIDTH, height=HEIGHT, length=LENGTH, batch_size=1,
    )  # fmt: skip
    stock, latent = graph.stock_i2v(text)
    high, low = graph.load(models.I2V_HIGH), graph.load(models.I2V_LOW)
    ours = graph.i2v(high, low, own, output(own, 1))
    theirs = graph.i2v(high, low, stock, latent)
    comparison = graph.compare(ours, theirs)
    assert finished(client, graph).report(comparison)["relative"] < SAME_CONDITIONING


def test_image_decides_the_result(client: ComfyClient) -> None:
    graph = TinyGraph()
    text, vae = graph.text(), graph.vae()
    high, low = graph.load(models.I2V_HIGH), graph.load(models.I2V_LOW)
    results = []
    for seed in (5, 6):
        image = graph.add("TestImage", seed=seed, width=123, height=77, batch=1)
        made = graph.add(
            "TurboImageToVideo", conditioning=text, vae=vae, image=image, resolution="custom", aspect="adaptive",
            width=WIDTH, height=HEIGHT, length=LENGTH, batch_size=2,
        )  # fmt: skip
        results.append(graph.i2v(high, low, made, output(made, 1), steps=3))
    comparison = graph.compare(*results)
    report = finished(client, graph).report(comparison)
    assert report["a"]["shape"] == [2, 16, 3, 12, 20]
    assert report["relative"] > MOVED
