"""``turbowan generate --server`` and ``batch --server`` on a real ComfyUI: what is queued, what comes, cancelling."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from host import models, video
from host.client import ComfyClient
from host.graphs import HEIGHT, LENGTH, WIDTH, TinyGraph
from host.server import ComfyProcess
from host.workflow import nodes_of
from PIL import Image

from turbowan.turbo_core import cli, comfy_client, server_maker
from turbowan.turbo_core.catalogue import RELEASES, TEXT_ENCODER
from turbowan.turbo_core.errors import ServerError
from turbowan.turbo_core.model_choice import Named, choose
from turbowan.turbo_core.server_files import locate_on_server

SMALL = ["--size", f"{WIDTH}x{HEIGHT}", "--frames", str(LENGTH), "--vae", models.VAE, "--topk", "0.4"]
T2V = ["--model", models.T2V_QUANT, *SMALL]
I2V = ["--model", models.I2V_HIGH_QUANT, "--low", models.I2V_LOW_QUANT, *SMALL]


def without_encoder(workflow: dict[str, Any]) -> dict[str, Any]:
    """The shipped workflow with a conditioning by the text's length, because no tiny umT5 loads in ComfyUI."""
    out = {}
    for node, data in workflow.items():
        if data["class_type"] == "CLIPTextEncode":
            inputs = {"seed": 1, "tokens": 512, "width": 4096, "batch": 1, "words": 40, "fault": "none"}
            out[node] = {"class_type": "TestConditioning", "inputs": inputs}
        elif data["class_type"] != "CLIPLoader":
            out[node] = data
    return out


@pytest.fixture
def server(host: ComfyProcess, client: ComfyClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The host's URL; the working folder is empty."""
    encoders = host.models / "text_encoders"
    encoders.mkdir(exist_ok=True)
    (encoders / TEXT_ENCODER.name).touch()
    shipped = server_maker._shipped
    monkeypatch.setattr(server_maker, "_shipped", lambda request: without_encoder(shipped(request)))
    monkeypatch.chdir(tmp_path)
    return host.url


def queued(client: ComfyClient) -> dict[str, Any]:
    """The workflow that the host ran last."""
    entries = client.get("/history?max_items=1")
    return next(iter(entries.values()))["prompt"][2]


def test_text_to_video(server: str, client: ComfyClient, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "generate",
        "a ball (red)",
        "--server",
        server,
        *T2V,
        "--seed",
        "41",
        "--steps",
        "2",
        "--sigma-max",
        "90",
    ]
    assert cli.main(command) == 0
    out, bars = capsys.readouterr()
    assert out.startswith(f"out.mp4: {WIDTH}x{HEIGHT}, {LENGTH} frames")
    for stage in ("sampling", "frames", "download"):
        assert stage in bars
    assert video.decode(Path("out.mp4").read_bytes()) == video.Video(
        width=WIDTH, height=HEIGHT, frames=LENGTH, fps=16.0
    )
    ran = queued(client)
    sampler = ran[nodes_of(ran, "TurboT2VSampler")[0]]["inputs"]
    assert (sampler["seed"], sampler["steps"], sampler["sigma_max"], sampler["noise"]) == (41, 2, 90.0, "comfy")
    loader = ran[nodes_of(ran, "TurboLoader")[0]]["inputs"]
    assert loader == {"file": models.T2V_QUANT, "attention": "auto", "topk": 0.4, "precision": "auto"}
    assert [path.name for path in Path().iterdir()] == ["out.mp4"]


def test_image_to_video(server: str, client: ComfyClient) -> None:
    Image.radial_gradient("L").resize((300, 200)).convert("RGB").save("größer.png")
    command = ["generate", "it moves", "-o", "i.mp4", "--image", "größer.png", "--server", server, *I2V]
    assert cli.main([*command, "--sampler", "sde", "--boundary", "0.5"]) == 0
    assert video.decode(Path("i.mp4").read_bytes()).frames == LENGTH
    ran = queued(client)
    sampler = ran[nodes_of(ran, "TurboI2VSampler")[0]]["inputs"]
    assert (sampler["sampler"], sampler["boundary"], sampler["sigma_max"]) == ("sde", 0.5, 200.0)
    assert ran[sampler["model_high"][0]]["inputs"]["file"] == models.I2V_HIGH_QUANT
    assert ran[sampler["model_low"][0]]["inputs"]["file"] == models.I2V_LOW_QUANT
    start = ran[nodes_of(ran, "TurboImageToVideo")[0]]["inputs"]
    assert (start["resolution"], start["width"], start["height"], start["length"]) == ("custom", WIDTH, HEIGHT, LENGTH)


def test_batch(server: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": "a"}, {"prompt": "b", "seed": 3}, {"prompt": "bad", "steps": 9}]
    Path("p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert cli.main(["batch", "p.jsonl", "-o", "out", "--server", server, *T2V, "--steps", "1"]) == 3
    told = [json.loads(line) for line in Path("out/manifest.jsonl").read_text().splitlines()]
    assert ["error" in entry for entry in told] == [False, False, True]
    assert "steps: must be 1 to 4" in told[2]["error"]
    assert all(video.decode((Path("out") / entry["file"]).read_bytes()).frames == LENGTH for entry in told[:2])
    capsys.readouterr()
    assert cli.main(["batch", "p.jsonl", "-o", "out", "--server", server, *T2V, "--steps", "1"]) == 3
    assert "3 videos, 2 of them there already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "absent.pth"], "must have absent.pth for TurboLoader, it has "),
        ([], "run `turbowan download t2v-1.3b` there"),
        (["--model", models.T2V_QUANT, "--vae", "absent.safetensors"], "absent.safetensors for VAELoader"),
        ([*T2V, "--sampler", "ode"], "TurboT2VSampler on the server samples with sde"),
        ([*T2V, "--size", "90x90"], "server: width and height must be divisible by 16"),
        (
            ["--model", models.I2V_HIGH_QUANT, *SMALL],
            "server: TurboT2VSampler stopped: TurboT2VSampler: the model must be T2V",
        ),
    ],
)
def test_refusals(server: str, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert cli.main(["generate", "a", "--server", server, *arguments]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("turbowan: ")
    assert message in error
    assert list(Path().iterdir()) == []


@pytest.fixture
def released(host: ComfyProcess) -> Iterator[Path]:
    """A folder among the host's networks, for files of releases."""
    folder = host.models / "diffusion_models" / "released"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


def test_a_release_is_found_under_either_name(
    server: str, client: ComfyClient, host: ComfyProcess, released: Path
) -> None:
    """In whatever precision and folder the server has it; the batch's manifest tells which."""
    release = RELEASES["t2v-1.3b"]
    command = ["batch", "p.txt", "-o", "out", "--server", server, *SMALL, "--steps", "1"]
    Path("p.txt").write_text("a ball")
    for (file,), tiny in ((release.unquantized, models.T2V), (release.quantized, models.T2V_QUANT)):
        (released / file.name).write_bytes((host.models / "diffusion_models" / tiny).read_bytes())
        assert cli.main(command) == 0
        ran = queued(client)
        assert ran[nodes_of(ran, "TurboLoader")[0]]["inputs"]["file"] == f"released/{file.name}"
        told = json.loads(Path("out/manifest.jsonl").read_text().splitlines()[-1])
        assert told["parameters"]["files"][0] == file.name


def test_a_pair_is_of_one_kind(server: str, host: ComfyProcess, released: Path) -> None:
    release, ours = RELEASES["i2v-a14b"], comfy_client.ComfyClient(server)
    choice = choose("i2v-a14b", Named(vae=models.VAE), image=True, server=True)
    (high, low), (other_high, other_low) = (
        [file.name for file in files] for files in (release.quantized, release.unquantized)
    )
    for name in (other_high, low):
        (released / name).touch()
    with pytest.raises(ServerError) as refused:
        locate_on_server(ours, choice)
    assert f"must have {high} and {low} or {other_high} and {other_low} for TurboLoader" in str(refused.value)
    assert f"it has released/{low}, released/{other_high}, " in str(refused.value)
    assert "run `turbowan download i2v-a14b` there" in str(refused.value)
    (released / other_low).touch()
    assert locate_on_server(ours, choice).networks == (f"released/{other_high}", f"released/{other_low}")
    (released / high).touch()
    assert locate_on_server(ours, choice).networks == (f"released/{high}", f"released/{low}")


def test_another_text_encoder_serves(server: str, host: ComfyProcess) -> None:
    encoders = host.models / "text_encoders"
    usual, other = encoders / TEXT_ENCODER.name, encoders / "umt5_xxl_fp16.safetensors"
    choice = choose(models.T2V, Named(vae=models.VAE), image=False, server=True)
    usual.rename(other)
    try:
        assert locate_on_server(comfy_client.ComfyClient(server), choice).text_encoder == other.name
    finally:
        other.rename(usual)
    assert locate_on_server(comfy_client.ComfyClient(server), choice).text_encoder == usual.name
    usual.unlink()
    with pytest.raises(
        ServerError, match=f"{usual.name} or {other.name} or .* for CLIPLoader.* run `turbowan download"
    ):
        locate_on_server(comfy_client.ComfyClient(server), choice)


def test_missing_nodes_are_named(
    server: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    node = comfy_client.ComfyClient.node
    monkeypatch.setattr(
        comfy_client.ComfyClient, "node", lambda self, kind: None if kind == "TurboLoader" else node(self, kind)
    )
    assert cli.main(["generate", "a", "--server", server, *T2V]) == 1
    assert "must have the node TurboLoader, it has not; install TurboWan" in capsys.readouterr().err


def deep(frames: int) -> TinyGraph:
    """A prompt that takes a while."""
    graph = TinyGraph()
    graph.probe(graph.t2v(graph.load(models.T2V_DEEP), latent=graph.empty(length=frames), steps=4, seed=frames))
    return graph


def test_ctrl_c_stops_the_running_prompt_alone(server: str, client: ComfyClient) -> None:
    ours = comfy_client.ComfyClient(server)
    waiting = ComfyClient(server)
    others: list[str] = []

    def stop(node: str, done: int, total: int) -> None:
        if not others:
            others.append(waiting.queue(deep(5).prompt))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ours.run(deep(33).prompt, stop)
    ours._follow(ours._connect(), others[0], lambda *_: None)
    assert client.history(others[0])["status"]["status_str"] == "success"
    entries = list(client.get("/history?max_items=2").values())
    assert sorted(entry["status"]["status_str"] for entry in entries) == ["error", "success"]


def test_ctrl_c_takes_a_waiting_prompt_from_the_queue(
    server: str, client: ComfyClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = client.queue(deep(21).prompt)
    ours = comfy_client.ComfyClient(server)
    follow = comfy_client.ComfyClient._follow

    def stop(self: comfy_client.ComfyClient, socket: Any, prompt_id: str, progress: Any) -> None:
        socket.close()
        raise KeyboardInterrupt

    monkeypatch.setattr(comfy_client.ComfyClient, "_follow", stop)
    with pytest.raises(KeyboardInterrupt):
        ours.run(deep(25).prompt, lambda *_: None)
    assert client.get("/queue")["queue_pending"] == []
    follow(ours, ours._connect(), running, lambda *_: None)
    assert client.history(running)["status"]["status_str"] == "success"


def test_a_broken_connection_is_made_again(server: str) -> None:
    ours = comfy_client.ComfyClient(server)
    connect, sockets = ours._connect, []

    def connecting() -> Any:
        sockets.append(connect())
        return sockets[-1]

    def cut(node: str, done: int, total: int) -> None:
        if len(sockets) < 3:
            sockets[-1].shutdown()

    ours._connect = connecting
    outputs = ours.run(deep(9).prompt, cut)
    assert outputs
    assert len(sockets) == 3
