"""The harness itself, with the host's own nodes only: a tiny native Wan file makes an MP4."""

from __future__ import annotations

from host import models, video
from host.client import ComfyClient
from host.workflow import Graph


def test_stock_nodes_make_a_video(client: ComfyClient) -> None:
    graph = Graph()
    model = graph.add("UNETLoader", unet_name=models.T2V_NATIVE, weight_dtype="default")
    text = graph.add("TestConditioning", seed=1, tokens=512, width=4096, batch=1, words=40, fault="none")
    latent = graph.add("EmptyHunyuanLatentVideo", width=160, height=96, length=9, batch_size=1)
    sampled = graph.add(
        "KSampler", model=model, positive=text, negative=text, latent_image=latent, seed=3, steps=2, cfg=1.0,
        sampler_name="euler", scheduler="simple", denoise=1.0,
    )  # fmt: skip
    vae = graph.add("VAELoader", vae_name=models.VAE)
    images = graph.add("VAEDecode", samples=sampled, vae=vae)
    clip = graph.add("CreateVideo", images=images, fps=16.0)
    save = graph.add("SaveVideo", video=clip, filename_prefix="stock", format="mp4", codec="h264")
    probe = graph.add("TestLatentProbe", samples=sampled)
    run = client.run(graph.prompt)
    assert run.ok, run.error
    assert run.report(probe[0])["finite"]
    assert run.progress(sampled[0]) == [(1, 2), (2, 2)]
    assert run.previews
    saved = run.outputs[save[0]]["images"][0]
    assert video.decode(client.view(saved["filename"], saved["subfolder"])) == video.Video(
        width=160, height=96, frames=9, fps=16.0
    )
