"""Bad input: a message with the remedy, a living host, and the next prompt makes the same latents as before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from host import bad_files, models
from host.client import ComfyClient, PromptRefused
from host.graphs import HEIGHT, LENGTH, WIDTH, TinyGraph, finished
from host.server import ComfyProcess
from host.workflow import Link, output

Build = Callable[[TinyGraph], Link]


def _i2v(graph: TinyGraph, conditioning: Link | None = None, latent: Link | None = None, **settings: Any) -> Link:
    made, empty = graph.stock_i2v(graph.text())
    high, low = graph.load(models.I2V_HIGH), graph.load(models.I2V_LOW)
    return graph.i2v(high, low, conditioning or made, latent or empty, **settings)


def _t2v_in_i2v_slot(graph: TinyGraph) -> Link:
    conditioning, latent = graph.stock_i2v(graph.text())
    return graph.i2v(graph.load(models.I2V_HIGH), graph.load(models.T2V), conditioning, latent)


def _image(graph: TinyGraph, *, images: int = 1, **size: int) -> Link:
    """The latent of a TurboImageToVideo whose size is spoiled."""
    usual = {"width": WIDTH, "height": HEIGHT, "length": LENGTH}
    made = graph.add(
        "TurboImageToVideo", conditioning=graph.text(), vae=graph.vae(), resolution="custom", aspect="adaptive",
        image=graph.add("TestImage", seed=5, width=64, height=64, batch=images), batch_size=1, **(usual | size),
    )  # fmt: skip
    return output(made, 1)


def _latent(graph: TinyGraph, **shape: int) -> Link:
    usual = {"seed": 9, "channels": 16, "frames": 3, "height": 12, "width": 20, "batch": 1}
    return graph.add("TestLatent", **(usual | shape))


# name: (graph up to a LATENT, what the message must say)
RUNTIME: dict[str, tuple[Build, tuple[str, ...]]] = {
    "t2v file in an i2v slot": (_t2v_in_i2v_slot, ("I2V", "T2V", "TurboT2VSampler")),
    "i2v file in the t2v sampler": (lambda g: g.t2v(g.load(models.I2V_HIGH)), ("T2V", "I2V", "TurboI2VSampler")),
    "i2v without an image": (lambda g: _i2v(g, conditioning=g.text()), ("image", "TurboImageToVideo")),
    "text of another encoder": (lambda g: g.t2v(g.load(), g.text(width=768)), ("4096", "768", "umT5")),
    "text of two dimensions": (lambda g: g.t2v(g.load(), g.text(fault="two_dims")), ("conditioning", "(512, 4096)")),
    "empty conditioning": (lambda g: g.t2v(g.load(), g.text(fault="empty_list")), ("conditioning",)),
    "NaN in the text": (lambda g: g.t2v(g.load(), g.text(fault="nan")), ("NaN",)),
    "NaN in the text, int8": (lambda g: g.t2v(g.load(models.T2V_QUANT), g.text(fault="nan")), ("NaN",)),
    "latent of 4 channels": (lambda g: g.t2v(g.load(), latent=_latent(g, channels=4)), ("[batch, 16,", "(1, 4,")),
    "latent of another length": (
        lambda g: _i2v(g, latent=_latent(g, seed=0, frames=5)),
        ("same length and size", "(3, 12, 20) and (5, 12, 20)", "connect the latent"),
    ),
    "latent of another size": (
        lambda g: _i2v(g, latent=_latent(g, seed=0, height=16)),
        ("same length and size", "(3, 12, 20) and (3, 16, 20)", "connect the latent"),
    ),
    "frames not 4n+1": (lambda g: _image(g, length=10), ("4n+1", "10", "9 or 13")),
    "width not divisible by 16": (lambda g: _image(g, width=100), ("divisible by 16", "100", "96")),
    "height not divisible by 16": (lambda g: _image(g, height=90), ("divisible by 16", "90", "96")),
    "two images": (lambda g: _image(g, images=2), ("one image", "ImageFromBatch")),
    "sagesla on the CPU": (lambda g: g.t2v(g.load(attention="sagesla")), ("sagesla", "sla")),
    "fp8 on the CPU": (lambda g: g.t2v(g.load(precision="fp8")), ("fp8", "cpu", "channelwise")),
    "fp8 of a quantized file": (
        lambda g: g.t2v(g.load(models.T2V_QUANT, precision="fp8")),
        ("fp8", "unquantized", "channelwise"),
    ),
    "sla without proj_l": (lambda g: g.t2v(g.load(models.T2V_DENSE_QUANT, attention="sla")), ("proj_l", "dense")),
}
# name: (graph up to a LATENT, what the refusal of POST /prompt must say)
REFUSED: dict[str, tuple[Build, tuple[str, ...]]] = {
    "missing file": (lambda g: g.t2v(g.load("gone.pth")), ("gone.pth", "models/diffusion_models", "put it there")),
    "no steps": (lambda g: g.t2v(g.load(), steps=0), ("steps", "min of 1")),
    "too many steps": (lambda g: g.t2v(g.load(), steps=5), ("steps", "max of 4")),
    "too many steps, i2v": (lambda g: _i2v(g, steps=8), ("steps", "max of 4")),
    "sigma_max of zero": (lambda g: g.t2v(g.load(), sigma_max=0.0), ("sigma_max", "min of")),
    "boundary above 1": (lambda g: _i2v(g, boundary=2.0), ("boundary", "max of")),
    "topk of zero": (lambda g: g.t2v(g.load(topk=0.0)), ("topk", "min of")),
    "topk above 1": (lambda g: g.t2v(g.load(topk=1.5)), ("topk", "max of 1")),
    "unknown attention": (lambda g: g.t2v(g.load(attention="flash")), ("attention", "flash", "dense")),
    "unknown precision": (lambda g: g.t2v(g.load(precision="fp4")), ("precision", "fp4", "bf16")),
    "unknown sampler": (lambda g: _i2v(g, sampler="euler"), ("sampler", "euler", "sde")),
    "seed below zero": (lambda g: g.t2v(g.load(), seed=-1), ("seed", "min of 0")),
}


@pytest.fixture(scope="module")
def bad_folder(models_dir: Path) -> Path:
    folder = models_dir / "diffusion_models"
    bad_files.write(folder)
    return folder


@pytest.fixture
def survives(client: ComfyClient, host: ComfyProcess) -> Any:
    """A good prompt gives the same latents before and after the test."""
    graph = TinyGraph()
    probe = graph.probe(graph.t2v(graph.load(models.T2V_QUANT), seed=61, steps=1))

    def hash_of_good() -> str:
        client.free()
        return finished(client, graph).report(probe)["sha256"]

    before = hash_of_good()
    yield
    assert hash_of_good() == before


def _assert_says(message: str, wanted: tuple[str, ...]) -> None:
    lacking = [part for part in wanted if part not in message]
    assert not lacking, f"the message must name {lacking}: {message}"


@pytest.mark.parametrize("name", bad_files.MESSAGES)
@pytest.mark.usefixtures("survives")
def test_bad_file(client: ComfyClient, bad_folder: Path, name: str) -> None:
    graph = TinyGraph()
    graph.probe(graph.t2v(graph.load(name), steps=1))
    run = client.run(graph.prompt)
    assert run.ending == "execution_error"
    _assert_says(run.error, (name, *bad_files.MESSAGES[name]))
    assert not bad_files.unsafe_marker(bad_folder).exists()


@pytest.mark.parametrize("name", RUNTIME)
@pytest.mark.usefixtures("survives")
def test_bad_graph(client: ComfyClient, name: str) -> None:
    build, wanted = RUNTIME[name]
    graph = TinyGraph()
    graph.probe(build(graph))
    run = client.run(graph.prompt)
    assert run.ending == "execution_error", "a wrong video must not be made in silence"
    _assert_says(run.error, wanted)


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.usefixtures("survives")
def test_refused_before_running(client: ComfyClient, name: str) -> None:
    build, wanted = REFUSED[name]
    graph = TinyGraph()
    graph.probe(build(graph))
    with pytest.raises(PromptRefused) as refusal:
        client.queue(graph.prompt)
    _assert_says(str(refusal.value), wanted)


def test_swapped_experts_are_warned_about(client: ComfyClient, host: ComfyProcess) -> None:
    graph = TinyGraph()
    conditioning, latent = graph.stock_i2v(graph.text())
    low, high = graph.load(models.I2V_LOW), graph.load(models.I2V_HIGH)
    graph.probe(graph.i2v(low, high, conditioning, latent, seed=77))
    start = len(host.log())
    finished(client, graph)
    said = host.log()[start:]
    assert "swap the two models" in said
    assert said.count("swap the two models") <= 2


def test_enough_cases() -> None:
    assert len(bad_files.MESSAGES) + len(RUNTIME) + len(REFUSED) >= 25
