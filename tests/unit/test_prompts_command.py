"""`turbowan prompts`: a book of what the text encoder says."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_umt5
import torch
from safetensors.torch import save_file

from turbowan.turbo_core import cli
from turbowan.turbo_core.prompt_book import open_book
from turbowan.turbo_core.text_encoder import TextEncoder


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    path = tmp_path / "umt5.safetensors"
    save_file(tiny_umt5.tiny_umt5_tensors(), path)
    return path


def test_a_book_holds_what_the_encoder_says(tmp_path: Path, encoder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "prompts.txt", tmp_path / "book.safetensors"
    source.write_text("a red ball\n\n  a blue square  \na red ball\n", encoding="utf-8")
    assert cli.main(["prompts", str(out), "a star", "--from", str(source), "--encoder", str(encoder)]) == 0
    assert "book.safetensors: 3 prompts" in capsys.readouterr().out
    book = open_book(out)
    assert book.texts == ["a star", "a red ball", "a blue square"]
    (states,) = TextEncoder.open(encoder).encode(["a blue square"], torch.device("cpu"))
    ((kept, extras),) = book.get("a blue square")
    torch.testing.assert_close(kept, states)  # one prompt alone, and among longer ones
    assert kept.shape == (1, 512, 64)
    assert extras == {"pooled_output": None}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tmp}/b.safetensors"], "there must be one prompt or more"),
        (["{tmp}/b.safetensors", "a \udcff"], "the prompt must be Unicode text"),
        (["{tmp}/b.pth", "a ball"], "must end in .safetensors"),
        (["{tmp}/umt5.safetensors", "a ball"], "must not exist, it does"),
        (["{tmp}/none/b.safetensors", "a ball"], "none must exist, it does not"),
        (["{tmp}/b.safetensors", "--from", "{tmp}/none.txt"], "none.txt must exist"),
        (["{tmp}/b.safetensors", "--from", "{tmp}/umt5.safetensors"], "must be UTF-8 text"),
    ],
)
def test_refusals(
    tmp_path: Path, encoder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    assert cli.main(["prompts", *arguments, "--encoder", str(encoder)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("turbowan: prompts: ")
    assert message in error
    assert {path.name for path in tmp_path.iterdir()} == {"umt5.safetensors"}


def test_a_device_that_is_none(tmp_path: Path, encoder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "b.safetensors"
    assert cli.main(["prompts", str(out), "a ball", "--encoder", str(encoder), "--device", "fast"]) == 1
    assert "device: must be cpu, cuda or cuda:N, got 'fast'" in capsys.readouterr().err


def test_the_usual_encoder_is_found(tmp_path: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMFYUI_DIR", str(tmp_path))
    out = tmp_path / "book.safetensors"
    place = tmp_path / "models" / "text_encoders" / "umt5_xxl_fp8_e4m3fn_scaled.safetensors"
    place.parent.mkdir(parents=True)
    encoder.rename(place)
    assert cli.main(["prompts", str(out), "a ball"]) == 0
    assert open_book(out).texts == ["a ball"]


def test_no_encoder_names_the_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COMFYUI_DIR", str(tmp_path))
    assert cli.main(["prompts", str(tmp_path / "book.safetensors"), "a ball"]) == 1
    assert "`turbowan download text-encoder`" in capsys.readouterr().err
