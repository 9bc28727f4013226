"""The doctor on model files: what they are, what is damaged, and what is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny
import tiny_umt5
import torch
from findings import NOWHERE, levels, only
from safetensors.torch import save_file

from turbowan.turbo_core import demo_bundle
from turbowan.turbo_core.doctor import files
from turbowan.turbo_core.doctor.finding import Finding, Surroundings


def in_folders(tmp_path: Path) -> Surroundings:
    folders = {folder: (tmp_path / folder,) for folder in ("diffusion_models", "text_encoders", "vae")}
    for (folder,) in folders.values():
        folder.mkdir(exist_ok=True)
    return Surroundings(folders=folders)


def test_networks_are_recognised(tmp_path: Path) -> None:
    surroundings = in_folders(tmp_path)
    dits = tmp_path / "diffusion_models"
    tiny.save_pth(dits / "sub" / "x.pth", tiny.tiny_tensors(text_dim=64, quantized=True, num_layers=1))
    save_file({"double_blocks.0.img_attn.qkv.weight": torch.zeros(2, 2)}, dits / "flux.safetensors")
    (dits / "old.ckpt").write_bytes(b"\x80\x02pickle")
    (dits / "notes.txt").write_text("nothing")
    (dits / "cut.pth").write_bytes((dits / "sub" / "x.pth").read_bytes()[:5000])
    (dits / "page.safetensors").write_text("<!DOCTYPE html><html>")
    damaged, page, known, others = files.networks(surroundings)
    assert (damaged.level, page.level) == ("warn", "warn")
    assert "cut.pth must be complete" in damaged.said
    assert "page.safetensors must be a model, came a web page" in page.said
    assert "x.pth: Wan T2V (dim 256, 1 blocks), block-int8, SLA-trained" in known.said
    assert others.said == "2 more files are for other loaders"


@pytest.mark.parametrize(
    ("folder", "look"),
    [("diffusion_models", files.networks), ("text_encoders", files.text_encoders), ("vae", files.vaes)],
)
def test_links_that_lead_nowhere_or_in_a_circle(
    tmp_path: Path, folder: str, look: Callable[[Surroundings], Iterator[Finding]]
) -> None:
    surroundings = in_folders(tmp_path)
    before = list(look(surroundings))
    (tmp_path / folder / "gone.safetensors").symlink_to("nowhere")
    (tmp_path / folder / "again").symlink_to(tmp_path / folder)
    gone, *others = look(surroundings)
    assert (gone.level, "gone.safetensors: No such file" in gone.said) == ("warn", True)
    assert others == before


def test_no_network(tmp_path: Path) -> None:
    found = only(files.networks(in_folders(tmp_path)))
    assert found.level == "warn"
    assert "`turbowan download t2v-1.3b`" in found.remedy


@pytest.mark.parametrize(
    ("names", "lacking"),
    [
        (["a-high.pth"], "low-noise"),
        (["a-low.pth"], "high-noise"),
        (["a.pth"], "other"),
        (["a-high.pth", "b-high.pth"], "low-noise"),
        (["a-high.pth", "a-low.pth"], None),
        (["a.pth", "b.pth"], None),
        (["a-high.pth", "b.pth"], None),
    ],
)
def test_a_missing_expert(tmp_path: Path, names: list[str], lacking: str | None) -> None:
    surroundings = in_folders(tmp_path)
    tensors = tiny.tiny_tensors(in_dim=36, text_dim=64, num_layers=1, ffn_dim=128)
    for name in names:
        tiny.save_pth(tmp_path / "diffusion_models" / name, tensors)
    found = list(files.networks(surroundings))
    assert levels(found) == ["ok"] * len(names) + (["error"] if lacking else [])
    if lacking:
        assert f"lacks its {lacking} expert" in found[-1].said
        assert "turbowan download i2v-a14b" in found[-1].remedy


def test_text_encoders_and_vaes(tmp_path: Path) -> None:
    surroundings = in_folders(tmp_path)
    for probe, part, name in ((files.text_encoders, "text-encoder", "umt5_xxl"), (files.vaes, "vae", "wan_2.1_vae")):
        found = only(probe(surroundings))
        assert found.level == "warn"
        assert f"`turbowan download {part}` brings {name}" in found.remedy
    save_file(tiny_umt5.tiny_umt5_tensors(), tmp_path / "text_encoders" / "umt5.safetensors")
    save_file({"text_model.x": torch.zeros(2)}, tmp_path / "text_encoders" / "clip_l.safetensors")
    save_file(tiny.tiny_vae_tensors(), tmp_path / "vae" / "wan.safetensors")
    save_file({"decoder.conv_in.weight": torch.zeros(2)}, tmp_path / "vae" / "ae.safetensors")
    assert "umt5.safetensors: umT5 encoder (dim 64, 2 blocks)" in only(files.text_encoders(surroundings)).said
    assert "wan.safetensors: Wan 2.1 VAE (width 8)" in only(files.vaes(surroundings)).said


def test_the_demo_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(demo_bundle, "FOLDER", tmp_path / "bundle")
    assert only(files.demo(NOWHERE)).level == "ok"  # not part of the installation
    (tmp_path / "bundle").mkdir()
    assert only(files.demo(NOWHERE)).level == "warn"
    for file in demo_bundle.FILES:
        (tmp_path / "bundle" / file).parent.mkdir(exist_ok=True)
        (tmp_path / "bundle" / file).touch()
    assert "is complete" in only(files.demo(NOWHERE)).said
