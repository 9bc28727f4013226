"""A training stage of the demo: in pieces as in one, from files of either kind, and what it refuses."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tolerances import relative_error
from torch import nn

from turbowan.demo import stage as stage_module
from turbowan.demo.stage import LOOK, Settings, Stage

pytestmark = pytest.mark.usefixtures("one_thread")
MOMENTS_IN_BF16 = 2e-3


@pytest.fixture
def settings(tmp_path) -> Settings:
    return Settings(state=tmp_path / "state.safetensors", steps=3 * LOOK, minutes=9, rate=1e-2, warmup=5, device="cpu")


def trained(settings) -> tuple[Stage, list[float]]:
    """One call's training of a line to the identity, and its losses."""
    model = nn.Linear(4, 4)
    with torch.no_grad():
        model.weight.fill_(0.1)
        model.bias.fill_(0.1)
    stage, losses = Stage(model, settings), []

    def losses_of(generator):
        x = torch.randn(32, 4, generator=generator)
        loss = (model(x) - x).square().mean()
        losses.append(loss.item())
        return {"loss": loss}

    stage.finished = stage.run(losses_of)
    return stage, losses


def test_a_stage_in_pieces_is_the_stage_in_one(settings, tmp_path):
    whole, losses = trained(settings)
    pieces, seen = replace(settings, state=tmp_path / "pieces.safetensors", minutes=0), []
    for finished in (False, False, True):
        stage, more = trained(pieces)
        assert stage.finished == finished
        assert len(more) == LOOK
        seen += more
    assert losses[-1] < 0.5 * losses[0]
    assert seen == pytest.approx(losses, rel=0.02)
    assert relative_error(stage.averaged()["weight"], whole.averaged()["weight"]) < MOMENTS_IN_BF16


def test_a_kill_leaves_what_was_saved_last(settings, monkeypatch):
    monkeypatch.setattr(stage_module, "SAVE_SECONDS", 0)
    model = nn.Linear(4, 4)
    stage, steps = Stage(model, settings), iter(range(LOOK + 5))

    def losses_of(generator):
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return {"loss": model(torch.randn(2, 4, generator=generator)).square().mean()}

    with pytest.raises(KeyboardInterrupt):
        stage.run(losses_of)
    assert Stage(nn.Linear(4, 4), settings).step == LOOK


def test_a_finished_stage_does_nothing_more(settings):
    trained(settings)
    before = settings.state.read_bytes()
    stage, losses = trained(settings)
    assert stage.finished
    assert losses == []
    assert settings.state.read_bytes() == before


def test_a_slim_file_holds_the_averages_alone_and_goes_on_from_them(settings):
    slim = replace(settings, slim=True, minutes=0)
    _, losses = trained(slim)
    kept = load_file(slim.state)
    assert set(kept) == {"average.weight", "average.bias"}
    assert {tensor.dtype for tensor in kept.values()} == {torch.bfloat16}
    _, more = trained(slim)
    assert more[0] < losses[0]


def test_the_averages_take_the_weights_place(settings):
    stage, _ = trained(replace(settings, minutes=0))
    assert not torch.equal(stage.model.weight, stage.averaged()["weight"])
    stage.use_average()
    assert torch.equal(stage.model.weight, stage.averaged()["weight"])


def test_only_what_requires_gradients_is_trained_and_kept(settings):
    model = nn.Linear(4, 4)
    model.bias.requires_grad_(False)
    bias = model.bias.clone()
    stage = Stage(model, settings)
    stage.run(lambda generator: {"loss": (model(torch.randn(8, 4, generator=generator)) - 1).square().mean()})
    assert torch.equal(model.bias, bias)
    assert {name.split(".", 1)[1] for name in load_file(settings.state)} == {"weight"}


def test_another_models_file_is_refused_with_a_remedy(settings):
    trained(settings)
    with pytest.raises(ValueError, match=r"average of every trained parameter.*none of \['0.weight.*--state"):
        Stage(nn.Sequential(nn.Linear(4, 4)), settings)


def test_a_kill_while_writing_leaves_the_last_file(settings, monkeypatch):
    stage, _ = trained(replace(settings, minutes=0))
    before = settings.state.read_bytes()

    def killed(tensors, path, metadata):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("turbowan.demo.stage.save_file", killed)
    with pytest.raises(KeyboardInterrupt):
        stage.save()
    assert settings.state.read_bytes() == before
