"""The catalogue names the released files as they are called, and the shipped workflows name files of the catalogue."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import turbowan
from turbowan.turbo_core import catalogue
from turbowan.turbo_core.errors import SettingsError

WORKFLOWS = Path(turbowan.__file__).parent / "workflows" / "api"
FILE_INPUTS = ("file", "clip_name", "vae_name")


def test_a_pair_of_experts_has_both_files_in_their_order() -> None:
    release = catalogue.release("i2v-a14b")
    assert [file.name for file in release.network()] == [
        "TurboWan2.2-I2V-A14B-high-720P-quant.pth",
        "TurboWan2.2-I2V-A14B-low-720P-quant.pth",
    ]
    assert [file.name for file in release.network(quantized=False)] == [
        "TurboWan2.2-I2V-A14B-high-720P.pth",
        "TurboWan2.2-I2V-A14B-low-720P.pth",
    ]
    assert {file.repository for file in release.network()} == {"TurboDiffusion/TurboWan2.2-I2V-A14B-720P"}


@pytest.mark.parametrize("name", catalogue.RELEASES)
@pytest.mark.parametrize("quantized", [True, False])
def test_every_release_brings_its_text_encoder_and_vae(name: str, quantized: bool) -> None:
    files = catalogue.release(name).files(quantized=quantized)
    assert [file.folder for file in files[-2:]] == ["text_encoders", "vae"]
    assert all(file.name.endswith("-quant.pth") is quantized for file in files[:-2])


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(SettingsError, match=r"model: must be one of t2v-1.3b, .*, got 't2v-5b'"):
        catalogue.release("t2v-5b")


@pytest.mark.parametrize(
    ("file", "command"),
    [
        ("TurboWan2.1-T2V-14B-720P-quant.pth", "turbowan download t2v-14b-720p"),
        ("TurboWan2.1-T2V-14B-720P.pth", "turbowan download t2v-14b-720p --unquantized"),
        ("wan_2.1_vae.safetensors", "turbowan download vae"),
        ("umt5_xxl_fp8_e4m3fn_scaled.safetensors", "turbowan download text-encoder"),
        ("mine.safetensors", None),
    ],
)
def test_command_for_a_file(file: str, command: str | None) -> None:
    assert catalogue.command_for(file) == command


@pytest.mark.parametrize(
    "path", [WORKFLOWS / "TurboWan_T2V.json", WORKFLOWS / "TurboWan_I2V.json"], ids=lambda p: p.stem
)
def test_workflows_name_files_of_the_catalogue(path: Path) -> None:
    nodes = json.loads(path.read_text()).values()
    named = [node["inputs"][key] for node in nodes for key in FILE_INPUTS if key in node["inputs"]]
    assert len(named) >= 3
    assert [name for name in named if catalogue.known_file(name) is None] == []
