"""The pipeline on a GPU: near the CPU's result, and the same whether weights are there or lent layer by layer."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_models
import torch
from PIL import Image
from tiny_models import TinyModels
from tolerances import FRAMES_BF16, SAME_MATHS_FP32, SAMPLING_BF16, relative_error

from turbowan.turbo_core.expert import Expert, NetworkSettings, working_bytes
from turbowan.turbo_core.pipeline import ModelFiles, Pipeline
from turbowan.turbo_core.request import Request

pytest.importorskip("transformers")
pytestmark = pytest.mark.gpu

CPU, GPU = torch.device("cpu"), torch.device("cuda")
SIZE, FRAMES = (160, 96), 9


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    return tiny_models.write(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module", params=["t2v", "i2v"])
def case(request: pytest.FixtureRequest, models: TinyModels, tmp_path_factory: pytest.TempPathFactory):
    """Files and a request of each family."""
    if request.param == "t2v":
        files = ModelFiles(network=models.t2v, vae=models.vae, text_encoder=models.text_encoder)
        return files, Request(prompt="a red ball", size=SIZE, frames=FRAMES, seed=3)
    picture: Path = tmp_path_factory.mktemp("images") / "first.png"
    Image.radial_gradient("L").resize((90, 60)).convert("RGB").save(picture)
    files = ModelFiles(network=models.high, low=models.low, vae=models.vae, text_encoder=models.text_encoder)
    return files, Request(prompt="a red ball", size=SIZE, frames=FRAMES, seed=3, image=picture)


def on(device: torch.device, files: ModelFiles) -> Pipeline:
    """All key blocks are kept: which of them are is decided by scores that differ in the last bits."""
    return Pipeline(files, NetworkSettings(topk=1.0), device)


def test_it_is_near_the_cpu(case) -> None:
    files, request = case
    cpu, gpu = on(CPU, files), on(GPU, files)
    (text,) = cpu.encode([request.prompt])
    assert relative_error(gpu.encode([request.prompt])[0], text) < SAME_MATHS_FP32
    latent = gpu.sample(request, text)
    assert torch.equal(gpu.sample(request, text), latent)
    assert relative_error(latent, cpu.sample(request, text)) < SAMPLING_BF16
    ours: list[torch.Tensor] = []
    theirs: list[torch.Tensor] = []
    gpu.decode(latent, lambda piece: ours.append(piece.cpu()))
    cpu.decode(latent.cpu(), theirs.append)
    assert 255 * (torch.cat(ours, dim=1) - torch.cat(theirs, dim=1)).abs().mean() < FRAMES_BF16


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_weights_that_stay_behind_change_nothing(case, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    files, request = case
    whole, partly = on(GPU, files), on(GPU, files)
    (text,) = whole.encode([request.prompt])
    latent = whole.sample(request, text)
    bring = Expert.bring

    def bring_less(self: Expert, free_bytes: int, tokens: int) -> None:
        bring(self, working_bytes(self.network.config, tokens) + int(share * self.nbytes), tokens)

    monkeypatch.setattr(Expert, "bring", bring_less)
    assert torch.equal(partly.sample(request, text), latent)
    for built in partly._experts.values():
        weights = [*built.network.parameters(), *built.network.buffers()]
        assert any(weight.device.type == "cpu" for weight in weights)
