"""The training of the demo's VAE, at toy size: the network that is trained is the one that runs, and it learns."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tolerances import SAME_MATHS_FP32, relative_error

from turbowan.demo import vae_network
from turbowan.demo.check_vae import decibels, picture, report, round_trips
from turbowan.demo.export_vae import averaged, export, fold, replace_decoder
from turbowan.demo.stage import LOOK, Settings
from turbowan.demo.train_vae import Shape, decoder_of, draw_pool, train
from turbowan.demo.vocabulary import TRAINED
from turbowan.turbo_core.vae import VAEConfig, WanVAE, denormalize, normalize
from turbowan.turbo_core.vae_weights import from_tensors

pytestmark = pytest.mark.usefixtures("one_thread")
TOY = (Shape(frames=1, side=32, clips=4, weight=0.5), Shape(frames=5, side=32, clips=1, weight=0.5))


@pytest.fixture
def vae(generator) -> WanVAE:
    vae = vae_network.new_vae(4, generator)
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return vae


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 13])
def test_what_is_trained_is_what_runs(vae, generator, frames):
    clips = torch.rand(2, 3, frames, 24, 40, generator=generator) * 2 - 1
    mean, log_variance = vae_network.encode(vae, clips)
    assert relative_error(mean, vae.encode(clips)) < SAME_MATHS_FP32
    assert log_variance.shape == mean.shape
    assert relative_error(vae_network.decode(vae, mean), vae.decode(mean)) < SAME_MATHS_FP32


def test_every_parameter_gets_a_gradient(vae, generator):
    mean, log_variance = vae_network.encode(vae, torch.rand(1, 3, 9, 16, 16, generator=generator))
    (vae_network.decode(vae, mean).square().mean() + log_variance.square().mean()).backward()
    assert [name for name, p in vae.named_parameters() if p.grad is None or not p.grad.any()] == []


@torch.no_grad()
def test_a_new_vae_treats_each_frame_alone(generator):
    vae = vae_network.new_vae(4, generator)
    frame = torch.rand(1, 3, 1, 16, 16, generator=generator)
    (alone, _), (held, _) = (vae_network.encode(vae, frame.expand(-1, -1, count, -1, -1)) for count in (1, 9))
    assert relative_error(held, alone.expand_as(held)) < SAME_MATHS_FP32
    clips = vae_network.decode(vae, held)
    assert relative_error(clips, clips[:, :, :1].expand_as(clips)) < SAME_MATHS_FP32


def test_some_clips_are_grey_behind_their_first_frame(generator):
    pool = draw_pool(Shape(frames=5, side=32, clips=8, weight=1), 8, generator, "cpu")
    assert pool.shape == (64, 3, 5, 32, 32)
    assert pool.dtype == torch.uint8
    grey = (pool[:, :, 1:] == 128).flatten(1).all(1)
    assert 2 < grey.sum() < 24
    assert pool[:, :, 0].float().flatten(1).std(1).min() > 2


@torch.no_grad()
def test_the_latents_get_wans_statistics_and_the_decode_stays(vae, generator):
    clips = torch.rand(2, 3, 9, 32, 32, generator=generator) * 2 - 1
    latents = vae.encode(clips)
    before = vae.decode(latents)
    _, log_variance = vae_network.encode(vae, clips)
    values = latents.transpose(0, 1).flatten(1)
    fold(vae, values.mean(1), values.std(1))
    folded = vae.encode(clips)
    values = normalize(folded).transpose(0, 1).flatten(1)
    assert values.mean(1).abs().max() < 1e-4
    assert (values.std(1) - 1).abs().max() < 1e-4
    assert relative_error(vae.decode(folded), before) < SAME_MATHS_FP32
    moved = vae_network.encode(vae, clips)[1] - log_variance
    scale = 2 * torch.log(folded.std((0, 2, 3, 4)) / latents.std((0, 2, 3, 4)))
    assert relative_error(moved, scale.view(1, -1, 1, 1, 1).expand_as(moved)) < 1e-3


def test_training_learns_resumes_and_exports(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("turbowan.demo.stage.TELL_SECONDS", 0)
    monkeypatch.setattr("turbowan.demo.train_vae.STILL_STEPS", LOOK)
    monkeypatch.setattr("turbowan.demo.export_vae.SIZES", ((5, 32),))
    state, out = tmp_path / "vae.safetensors", tmp_path / "demo_vae.safetensors"
    settings = Settings(state=state, steps=3 * LOOK, minutes=0, rate=1e-3, warmup=10, device="cpu")
    for _ in range(3):
        stage = train(vae_network.new_vae(4, torch.Generator().manual_seed(0)), settings, shapes=TOY, pool=8)
    assert stage.step == settings.steps
    told = [line.split() for line in capsys.readouterr().err.splitlines() if line.startswith("step")]
    first, *_, last = (float(words[words.index("loss") + 1]) for words in told)
    assert last < 0.7 * first

    export(state, out, clips=2, seed=0, device="cpu")
    tensors = load_file(out)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    vae, trained = from_tensors(tensors, dtype=torch.float32), from_tensors(averaged(state))
    clips = draw_pool(TOY[1], 2, torch.Generator().manual_seed(9), "cpu") / 127.5 - 1
    kept, made = (model.decode(model.encode(clips)) for model in (trained, vae))
    assert decibels(made, kept) > 40  # fp16 weights
    assert normalize(vae.encode(clips)).abs().mean() < 3

    # Then the decoder alone.
    settings = replace(settings, state=tmp_path / "decoder.safetensors", steps=LOOK)
    assert train(decoder_of(out), settings, shapes=TOY, pool=8).step == LOOK
    replace_decoder(settings.state, out, tmp_path / "finished.safetensors")
    finished = load_file(tmp_path / "finished.safetensors")
    changed = {name for name in tensors if not torch.equal(finished[name], tensors[name])}
    assert finished.keys() == tensors.keys()
    assert {name.split(".")[0] for name in changed} == {"decoder"}
    assert torch.equal(from_tensors(finished, dtype=torch.float32).encode(clips), vae.encode(clips))


@pytest.mark.parametrize("stage", ["train_vae", "export_vae", "check_vae"])
def test_stages_answer_help(stage):
    run = [sys.executable, "-m", f"turbowan.demo.{stage}", "--help"]
    out = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    assert "usage" in out


def test_a_check_tells_psnr_and_what_the_detector_sees(generator, capsys, tmp_path, monkeypatch):
    triple = TRAINED[0]
    vae = WanVAE(VAEConfig(width=4))
    monkeypatch.setattr(vae, "encode", lambda clip: denormalize(torch.zeros(1, 16, 5, 8, 8)))

    def made_of(image):
        monkeypatch.setattr(vae, "decode", lambda latent: image)
        return list(round_trips(vae, (triple,), frames=33, side=64, generator=generator.manual_seed(3)))

    (clip,) = (trip.clip for trip in made_of(torch.zeros(1, 3, 33, 64, 64)))
    report(made_of(torch.zeros_like(clip)) + made_of(clip + 0.02))
    told = capsys.readouterr().out
    assert "detector right on clips 2/2, on round trips 1/2" in told
    assert "seen as None, None, None" in told
    assert "to 40.00) dB" in told.splitlines()[0]  # 10·log10(4 / 0.02²)
    picture(made_of(clip), tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 1000
