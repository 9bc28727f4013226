"""From what a user names to files."""

from __future__ import annotations

from pathlib import Path

import pytest

from turbowan.turbo_core import demo_bundle
from turbowan.turbo_core.catalogue import RELEASES, TEXT_ENCODER, VAE
from turbowan.turbo_core.errors import SettingsError
from turbowan.turbo_core.model_choice import Named, choose, locate


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for folder in ("diffusion_models", "vae", "text_encoders"):
        (tmp_path / folder).mkdir()
    (tmp_path / "vae" / VAE.name).touch()
    (tmp_path / "text_encoders" / TEXT_ENCODER.name).touch()
    return tmp_path


def put(models: Path, *names: str) -> None:
    for name in names:
        (models / "diffusion_models" / name).touch()


def test_without_a_name_the_demo_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(demo_bundle, "FOLDER", tmp_path)
    text, image = (choose(None, Named(), image=image) for image in (False, True))
    assert (Path(text.network).name, text.low) == ("TurboWanDemo-T2V-quant.pth", None)
    assert Path(image.network).name == "TurboWanDemo-I2V-high-quant.safetensors"
    assert Path(image.low).name == "TurboWanDemo-I2V-low-quant.safetensors"
    with pytest.raises(SettingsError, match="the demo model must lie in .*take a copy of the repository"):
        locate(text, None)
    for file in (demo_bundle.T2V, demo_bundle.VAE, demo_bundle.TEXT_ENCODER):
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).touch()
    assert locate(text, None).files.network == tmp_path / demo_bundle.T2V


@pytest.mark.parametrize("name", RELEASES)
def test_releases_are_found_and_else_what_brings_them_is_named(models: Path, name: str) -> None:
    release = RELEASES[name]
    choice = choose(name, Named(), image=False)
    assert choice.networks == tuple(file.name for file in release.quantized)
    with pytest.raises(SettingsError) as refused:
        locate(choice, models)
    assert f"run `turbowan download {name} --to {models}`" in str(refused.value)
    assert release.quantized[0].name in str(refused.value)
    put(models, *(file.name for file in release.unquantized))
    assert Path(locate(choice, models).network).name == release.unquantized[0].name
    put(models, *(file.name for file in release.quantized))
    located = locate(choice, models)
    assert [Path(path).name for path in located.networks] == [file.name for file in release.quantized]
    assert located.files.vae == models / "vae" / VAE.name


def test_an_expert_of_ones_own_stays_beside_either_kind(models: Path) -> None:
    release = RELEASES["i2v-a14b"]
    choice = choose("i2v-a14b", Named(low="mine.pth"), image=True)
    assert choice.network_sets == tuple(
        (files[0].name, "mine.pth") for files in (release.quantized, release.unquantized)
    )
    put(models, release.unquantized[0].name, "mine.pth")
    assert [Path(path).name for path in locate(choice, models).networks] == [release.unquantized[0].name, "mine.pth"]


def test_a_command_is_named_only_for_what_it_brings(models: Path) -> None:
    """Of a release, a VAE of one's own is missing; of a model of one's own, a VAE that every release comes with."""
    put(models, RELEASES["t2v-14b-480p"].quantized[0].name, "mine.pth")
    with pytest.raises(SettingsError, match=r"missing: vae/mine.safetensors; give its path"):
        locate(choose("t2v-14b-480p", Named(vae="mine.safetensors"), image=False), models)
    (models / "vae" / VAE.name).unlink()
    for model in ("t2v-14b-480p", "mine.pth"):
        with pytest.raises(SettingsError, match=f"missing: vae/{VAE.name}; run `turbowan download vae --to"):
            locate(choose(model, Named(), image=False), models)


def test_sizes_follow_the_model() -> None:
    sizes = {name: choose(name, Named(), image=False).size for name in RELEASES}
    assert sizes == {
        "t2v-1.3b": (832, 480), "t2v-14b-480p": (832, 480), "t2v-14b-720p": (1280, 720), "i2v-a14b": (1280, 720)
    }  # fmt: skip


def test_files_by_path_or_by_name(models: Path, tmp_path: Path) -> None:
    put(models, "mine.pth", "low.pth")
    choice = choose("mine.pth", Named(low="low.pth"), image=True)
    assert locate(choice, models).networks == tuple(
        str(models / "diffusion_models" / f"{n}.pth") for n in ("mine", "low")
    )
    (tmp_path / "own_vae.safetensors").touch()
    named = Named(vae=str(tmp_path / "own_vae.safetensors"))
    choice = choose(str(models / "diffusion_models" / "mine.pth"), named, image=False)
    assert choice.name == "mine.pth"
    assert locate(choice, models).files.vae == tmp_path / "own_vae.safetensors"
    with pytest.raises(SettingsError, match=r"missing: diffusion_models/other.pth; give its path"):
        locate(choose("other.pth", Named(), image=False), models)


def test_another_precision_of_the_text_encoder_serves(models: Path) -> None:
    put(models, "mine.pth")
    (models / "text_encoders" / TEXT_ENCODER.name).rename(models / "text_encoders" / "umt5_xxl_fp16.safetensors")
    located = locate(choose("mine.pth", Named(), image=False), models)
    assert Path(located.text_encoder).name == "umt5_xxl_fp16.safetensors"


def test_unknown_names_and_servers() -> None:
    with pytest.raises(SettingsError, match="must be demo, t2v-1.3b, .* or a model file, got 't2v-2b'"):
        choose("t2v-2b", Named(), image=False)
    assert choose(None, Named(), image=False, server=True).name == "t2v-1.3b"
    assert choose(None, Named(), image=True, server=True).name == "i2v-a14b"
    with pytest.raises(SettingsError, match="demo runs here, not on a server"):
        choose("demo", Named(), image=False, server=True)
