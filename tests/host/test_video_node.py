"""TurboVAEDecodeVideo against TurboVAEDecode, CreateVideo and SaveVideo; what the host makes of its VIDEO."""

from __future__ import annotations

import io
import json
import time
from typing import Any

import numpy as np
import pytest
from host import models, video
from host.client import ComfyClient, Run
from host.graphs import TinyGraph, finished
from host.server import ComfyProcess
from host.workflow import Link
from PIL import Image

HEIGHT, WIDTH = 80, 112
NEAR = 20  # dB: noise whose colours are halved in both directions has 22, another frame 12
STOPS_WITHIN = 10.0


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return 10 * np.log10(255**2 / np.square(a.astype(float) - b).mean())


class VideoGraph(TinyGraph):
    def latent(self, frames: int, batch: int = 1) -> Link:
        return self.add(
            "TestLatent", seed=3, channels=16, frames=frames, height=HEIGHT // 8, width=WIDTH // 8, batch=batch
        )

    def decode(self, latent: Link, vae: Link | None = None, **settings: Any) -> Link:
        settings = {"fps": 16.0, "crf": 23} | settings
        return self.add("TurboVAEDecodeVideo", samples=latent, vae=vae or self.vae(), **settings)

    def save(self, made: Link, name: str = "video", **choices: str) -> str:
        choices = {"format": "auto", "codec": "auto"} | choices
        return self.add("SaveVideo", video=made, filename_prefix=f"video_node/{name}", **choices)[0]


def saved(client: ComfyClient, run: Run, node: str) -> bytes:
    entry = run.outputs[node]["images"][0]
    return client.view(entry["filename"], entry["subfolder"])


def pictures(client: ComfyClient, run: Run, node: str) -> np.ndarray:
    """What SaveImage saved."""
    files = [client.view(entry["filename"], entry["subfolder"]) for entry in run.outputs[node]["images"]]
    return np.stack([np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files])


@pytest.mark.parametrize(("frames", "batch"), [(1, 1), (5, 1), (2, 2)])
def test_as_near_to_the_frames_as_saving_their_images(client: ComfyClient, frames: int, batch: int) -> None:
    graph = VideoGraph()
    latent, vae = graph.latent(frames, batch), graph.vae()
    images = graph.add("TurboVAEDecode", samples=latent, vae=vae)
    exact = graph.add("SaveImage", images=images, filename_prefix="video_node/frame")[0]
    ours = graph.save(graph.decode(latent, vae), "ours")
    stock = graph.save(graph.add("CreateVideo", images=images, fps=16.0), "stock")
    run = finished(client, graph)
    frames_seen = pictures(client, run, exact)
    assert len(frames_seen) == batch * (4 * frames - 3)
    files = {name: saved(client, run, node) for name, node in (("ours", ours), ("stock", stock))}
    assert video.decode(files["ours"]) == video.decode(files["stock"])
    near = {name: psnr(video.images(file), frames_seen) for name, file in files.items()}
    assert near["ours"] > near["stock"] - 0.5, near
    assert len(files["ours"]) < 1.15 * len(files["stock"])


@pytest.mark.parametrize("choices", [{}, {"format": "mp4", "codec": "h264"}], ids=["auto", "mp4"])
def test_save_video_copies_the_stream_and_adds_metadata(client: ComfyClient, choices: dict[str, str]) -> None:
    graph, workflow = VideoGraph(), {"nodes": [], "note": "as the browser sends it"}
    made = graph.decode(graph.latent(3))
    probe, save = graph.add("TestVideoProbe", video=made)[0], graph.save(made, **choices)
    run = client.run(graph.prompt, workflow=workflow)
    assert run.ok, run.error
    report, data = run.report(probe), saved(client, run, save)
    assert report["class"] == "VideoFromFile"
    assert report["packets"] == video.packets(data)
    assert len(report["packets"]) == 9
    written = video.metadata(data)
    assert json.loads(written["prompt"]) == graph.prompt
    assert json.loads(written["workflow"]) == workflow
    assert video.decode(data) == video.Video(width=WIDTH, height=HEIGHT, frames=9, fps=16.0)


OTHERS = {
    "mkv": {"format": "mkv", "format.codec": "auto"},
    "webm": {"format": "webm", "format.codec": "av1"},
    "mp4 with AV1": {"format": "mp4", "format.codec": "av1"},
}


@pytest.mark.parametrize("choice", OTHERS)
def test_other_containers_and_codecs(client: ComfyClient, choice: str) -> None:
    """Where the host offers them it encodes again, from our picture."""
    if "DYNAMIC" not in json.dumps(client.object_info("SaveVideo")):
        pytest.skip("this ComfyUI saves MP4 with H.264 alone")
    graph = VideoGraph()
    made = graph.decode(graph.latent(3), crf=5)
    first, second = graph.save(made), graph.save(made, **OTHERS[choice])
    run = finished(client, graph)
    ours, theirs = saved(client, run, first), saved(client, run, second)
    assert video.decode(theirs) == video.decode(ours)
    before, after = video.images(ours), video.images(theirs)
    assert psnr(after, before) > NEAR
    assert abs(after.mean((0, 1, 2)) - before.mean((0, 1, 2))).max() < 4, "the colours must stay"


def test_other_nodes_take_the_video(client: ComfyClient) -> None:
    graph = VideoGraph()
    made = graph.decode(graph.latent(3), fps=24.0)
    parts = graph.add("GetVideoComponents", video=made)
    probe = graph.add("TestImageProbe", image=parts)[0]
    again = graph.save(graph.add("CreateVideo", images=parts, fps=[parts[0], 2]))
    run = finished(client, graph)
    assert run.report(probe)["shape"] == [9, HEIGHT, WIDTH, 3]
    assert video.decode(saved(client, run, again)).fps == 24.0


def test_sound(client: ComfyClient) -> None:
    graph = VideoGraph()
    audio = graph.add("EmptyAudio", duration=3.0, sample_rate=44100, channels=2)
    save = graph.save(graph.decode(graph.latent(3), audio=audio))
    data = saved(client, finished(client, graph), save)
    assert video.decode(data).frames == 9
    assert video.sound_seconds(data) == pytest.approx(9 / 16, abs=0.06)


def test_progress_counts_frames_decoded_and_encoded(client: ComfyClient) -> None:
    graph = VideoGraph()
    made = graph.decode(graph.latent(3))
    graph.save(made)
    progress = finished(client, graph).progress(made[0])
    assert progress == sorted(progress)
    assert progress[-1] == (18, 18)


def test_other_vaes_run_themselves(client: ComfyClient, host: ComfyProcess) -> None:
    """Four channels: the alpha has no place in H.264."""
    graph = VideoGraph()
    latent, vae = graph.latent(2), graph.vae(models.VAE_ALPHA)
    images = graph.add("TurboVAEDecode", samples=latent, vae=vae)
    exact = graph.add("SaveImage", images=images, filename_prefix="video_node/alpha")[0]
    save = graph.save(graph.decode(latent, vae, crf=5))
    run = finished(client, graph)
    assert psnr(video.images(saved(client, run, save)), pictures(client, run, exact)) > NEAR
    assert "TurboVAEDecodeVideo: the VAE's own decoder, because it decodes 4 channels, not 3" in host.log()


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ({"height": 63, "channels": 3}, "MP4: sides must be even, got 64x63"),
        ({"height": 64, "channels": 2}, "TurboVAEDecodeVideo: the VAE must decode to RGB images, got [2, 64, 64, 2]"),
    ],
)
def test_what_no_video_can_be_made_of(client: ComfyClient, size: dict[str, int], message: str) -> None:
    graph = VideoGraph()
    vae = graph.add("TestImageVAE", frames=2, width=64, **size)
    graph.save(graph.decode(graph.latent(1), vae))
    run = client.run(graph.prompt)
    assert run.ending == "execution_error"
    assert message in run.error


def test_interrupt_while_encoding(client: ComfyClient) -> None:
    """The frames are there at once, and so large that encoding them takes seconds."""
    graph = VideoGraph()
    vae = graph.add("TestImageVAE", frames=60, height=720, width=1280, channels=3)
    made = graph.decode(graph.latent(1), vae, crf=1)
    graph.save(made)
    times: dict[str, float] = {}

    def on_event(event: dict[str, Any]) -> None:
        if event["type"] == "progress" and "asked" not in times and event["data"]["value"] > 4:
            times["asked"] = time.monotonic()
            client.interrupt()
        if event["type"] == "execution_interrupted":
            times["stopped"] = time.monotonic()

    run = client.run(graph.prompt, on_event=on_event)
    assert run.ending == "execution_interrupted"
    assert run.progress(made[0])[-1][0] < 120
    assert times["stopped"] - times["asked"] < STOPS_WITHIN
    after = VideoGraph()
    after.save(after.decode(after.latent(2)))
    finished(client, after)
