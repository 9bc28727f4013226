"""TurboVAEDecode and TurboImageToVideo against the host's own nodes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from host import models
from host.client import ComfyClient
from host.graphs import HEIGHT, WIDTH, TinyGraph, finished
from host.server import ComfyProcess
from tolerances import MOVED, ROUND_TRIP, SAME_CONDITIONING, SAME_MATHS_FP32


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


@pytest.mark.parametrize("length", [1, 5, 9, 49])
def test_encode_as_stock(client: ComfyClient, length: int) -> None:
    """One image before grey frames, none of which we lay out and few of which we compute."""
    graph = TinyGraph()
    text, vae = graph.text(), graph.vae()
    ours, _ = graph.own_i2v(text, length=length, vae=vae)
    stock, _ = graph.stock_i2v(text, length=length, vae=vae)
    latents, masks = (
        graph.add("TestCompareConditionings", a=ours, b=stock, key=key)[0]
        for key in ("concat_latent_image", "concat_mask")
    )
    run = finished(client, graph)
    report, frames = run.report(latents), 1 + (length - 1) // 4
    assert report["a"]["shape"] == [1, 16, frames, HEIGHT // 8, WIDTH // 8]
    assert report["same_shape"], report
    assert report["same_device"]
    assert report["a"]["dtype"] == report["b"]["dtype"]
    assert report["relative"] < SAME_MATHS_FP32
    assert run.report(masks)["equal"]
    assert run.progress(ours[0])[-1] == (frames, frames)


def test_images_and_latents_have_the_type_that_the_host_was_told(
    checkout: Path, host_python: Path, models_dir: Path, tmp_path: Path
) -> None:
    option = "--fp16-intermediates"
    if option not in (checkout / "comfy" / "cli_args.py").read_text():
        pytest.skip(f"this ComfyUI has no {option}")
    (tmp_path / "models").symlink_to(models_dir, target_is_directory=True)
    graph = TinyGraph()
    text, vae = graph.text(), graph.vae()
    (ours, latent), (stock, _) = graph.own_i2v(text, vae=vae), graph.stock_i2v(text, vae=vae)
    encoded = graph.add("TestCompareConditionings", a=ours, b=stock, key="concat_latent_image")[0]
    images = (graph.add(node, samples=latent, vae=vae) for node in ("TurboVAEDecode", "VAEDecode"))
    decoded = graph.add("TestCompareImages", **dict(zip("ab", images, strict=True)))[0]
    with ComfyProcess(checkout, host_python, tmp_path, flags=(option,)) as host:
        run = finished(ComfyClient(host.url), graph)
    for report in (run.report(encoded), run.report(decoded)):
        assert report["a"]["dtype"] == report["b"]["dtype"] == "torch.float16"
        assert report["relative"] < 2 * ROUND_TRIP[torch.float16]  # the host rounds twice


def test_other_vaes_run_themselves(client: ComfyClient, host: ComfyProcess) -> None:
    graph = TinyGraph()
    text, vae = graph.text(), graph.vae(models.VAE_ALPHA)
    ours, latent = graph.own_i2v(text, vae=vae)
    stock, _ = graph.stock_i2v(text, vae=vae)
    encoded = graph.add("TestCompareConditionings", a=ours, b=stock, key="concat_latent_image")[0]
    images = (graph.add(node, samples=latent, vae=vae) for node in ("TurboVAEDecode", "VAEDecode"))
    decoded = graph.add("TestCompareImages", **dict(zip("ab", images, strict=True)))[0]
    run = finished(client, graph)
    assert run.report(encoded)["relative"] < SAME_MATHS_FP32
    assert run.report(decoded)["equal"]
    assert "TurboImageToVideo: the VAE's own encoder, because it encodes 4 channels, not 3" in host.log()
    assert "TurboVAEDecode: the VAE's own decoder, because it decodes 4 channels, not 3" in host.log()


def test_image_to_video_conditions_as_stock(client: ComfyClient) -> None:
    """With the image already at the video's size, the conditioning drives a model as WanImageToVideo's does."""
    graph = TinyGraph()
    text = graph.text()
    own, stock = graph.own_i2v(text), graph.stock_i2v(text)
    high, low = graph.load(models.I2V_HIGH), graph.load(models.I2V_LOW)
    comparison = graph.compare(graph.i2v(high, low, *own), graph.i2v(high, low, *stock))
    assert finished(client, graph).report(comparison)["relative"] < SAME_CONDITIONING


def test_image_decides_the_result(client: ComfyClient) -> None:
    graph = TinyGraph()
    text = graph.text()
    high, low = graph.load(models.I2V_HIGH), graph.load(models.I2V_LOW)
    results = [
        graph.i2v(high, low, *graph.own_i2v(text, 2, seed=seed, width=123, height=77), steps=3) for seed in (5, 6)
    ]
    comparison = graph.compare(*results)
    report = finished(client, graph).report(comparison)
    assert report["a"]["shape"] == [2, 16, 3, 12, 20]
    assert report["relative"] > MOVED
