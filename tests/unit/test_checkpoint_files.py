"""Files that cannot be read: each is told apart, with what to do about it, and nothing in them is executed."""

from __future__ import annotations

import functools
import json
import os
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import save_file
from torch import Tensor

from turbowan.turbo_core import checkpoint, weight_file
from turbowan.turbo_core.errors import CheckpointError, UnsupportedModelError

AGAIN = "download it again"
executed: list[str] = []


def run_me(what: str) -> Tensor:
    executed.append(what)
    return torch.zeros(1)


class Malicious:
    def __reduce__(self) -> tuple[Callable[[str], Tensor], tuple[str]]:
        return run_me, ("pwned",)


@functools.cache
def weights() -> dict[str, Tensor]:
    return tiny.tiny_tensors(text_dim=64, num_layers=1)


def write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def cut(path: Path, keep: float) -> None:
    os.truncate(path, int(path.stat().st_size * keep))


def half_pth(path: Path) -> None:
    torch.save(weights(), path)
    cut(path, 0.5)


def half_legacy(path: Path) -> None:
    torch.save(weights(), path, _use_new_zipfile_serialization=False)
    cut(path, 0.5)


def half_safetensors(path: Path) -> None:
    save_file(weights(), path)
    cut(path, 0.5)


def header_only(path: Path) -> None:
    save_file(weights(), path)
    os.truncate(path, 100)


def set_header_bytes(path: Path, length: int) -> None:
    """The same safetensors file with its header padded to this length."""
    data = path.read_bytes()
    end = 8 + struct.unpack("<Q", data[:8])[0]
    header = data[8:end].rstrip()
    assert len(header) <= length
    write(path, struct.pack("<Q", length) + header.ljust(length) + data[end:])


def cut_header(path: Path, length: int) -> None:
    save_file(weights(), path)
    set_header_bytes(path, length)
    os.truncate(path, 100)


def broken_header(path: Path) -> None:
    write(path, struct.pack("<Q", 20) + b"{" + b"x" * 100)


def unknown_dtype(path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F3", "shape": [1], "data_offsets": [0, 1]}}).encode()
    write(path, struct.pack("<Q", len(header)) + header + b"\0")


def plain_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("TurboWan.pth", "x")


def unsafe_legacy(path: Path) -> None:
    write(path, pickle.dumps(Malicious(), protocol=2))


def wrong_pickle(path: Path) -> None:
    write(path, b"\x80\x02" + b"\xff" * 400)


HTML = b"<!DOCTYPE html>\n<html><head><title>Access restricted</title></head></html>"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 14500000000\n"

CASES: list[tuple[str, str, Callable[[Path], object], tuple[str, ...]]] = [
    ("missing", "a.pth", lambda path: None, ("must exist", "models/diffusion_models")),
    ("folder", "a.pth", lambda path: path.mkdir(), ("came a folder", "inside")),
    ("dead link", "a.pth", lambda path: path.symlink_to("gone.pth"), ("gone.pth, which does not exist", "mend")),
    ("empty", "a.pth", lambda path: write(path, b""), ("empty file", AGAIN)),
    ("zeros", "a.safetensors", lambda path: write(path, bytes(4096)), ("zeros (an unfinished", AGAIN)),
    ("text", "a.pth", lambda path: write(path, b"not a model at all"), ("starts with the bytes", AGAIN)),
    ("html", "a.pth", lambda path: write(path, HTML), ("a web page", "download button")),
    ("html in capitals", "a.safetensors", lambda path: write(path, b" \n<HTML>no"), ("a web page",)),
    ("lfs pointer", "a.safetensors", lambda path: write(path, LFS), ("git-LFS pointer", "git lfs pull")),
    ("json", "a.safetensors", lambda path: write(path, b'{"error": "Not found"}'), ("JSON text", "model file itself")),
    ("json, { in 9th place", "a.pth", lambda path: write(path, b'{"data":{"error": 404}}'), ("JSON text",)),
    ("gguf by content", "a.pth", lambda path: write(path, b"GGUF" + bytes(50)), ("came GGUF", "ComfyUI-GGUF")),
    ("gguf by name", "a.gguf", lambda path: write(path, b"?" * 50), ("came GGUF", "Unet Loader (GGUF)")),
    ("half a pth", "a.pth", half_pth, ("the end of its archive is missing", AGAIN)),
    ("half an old pth", "a.pth", half_legacy, ("must be a complete PyTorch file", AGAIN)),
    ("half a safetensors", "a.safetensors", half_safetensors, ("must be a complete safetensors file", AGAIN)),
    ("header cut", "a.safetensors", header_only, ("inside its header", AGAIN)),
    ("header cut, like a pickle", "a.safetensors", lambda path: cut_header(path, 0x5080), ("inside its header", AGAIN)),
    ("header cut, like JSON", "a.safetensors", lambda path: cut_header(path, 0x7B20), ("inside its header", AGAIN)),
    ("header broken", "a.safetensors", broken_header, ("must be a complete safetensors file", AGAIN)),
    ("unknown dtype", "a.safetensors", unknown_dtype, ("must be a complete safetensors file",)),
    ("some zip", "a.pth", plain_zip, ("must be saved by PyTorch", "TurboWan.pth", "unpack it")),
    ("unsafe", "a.pth", lambda path: torch.save({"a": Malicious()}, path), ("run_me", "never loaded", "original")),
    ("unsafe, old", "a.ckpt", unsafe_legacy, ("run_me", "could run code", ".safetensors")),
    ("whole module", "a.pth", lambda path: torch.save(torch.nn.Linear(2, 2), path), ("Linear", "never loaded")),
    ("garbled pickle", "a.pth", wrong_pickle, ("came a pickle with something else", "never loaded")),
    ("one tensor", "a.pth", lambda path: torch.save(torch.zeros(3), path), ("a dict of tensors, came Tensor",)),
    ("a list", "a.pth", lambda path: torch.save([torch.zeros(3)], path), ("came list", "state dict")),
    ("no tensors", "a.pth", lambda path: torch.save({"epoch": 3}, path), ("none came", "epoch")),
    ("empty dict", "a.pth", lambda path: torch.save({}, path), ("none came", "choose")),
    ("twice", "a.pth", lambda path: torch.save(doubled(), path), ("comes twice", "save the model again")),
]


def doubled() -> dict[str, Tensor]:
    tensors = weights()
    return tensors | {"blocks.0._orig_mod.ffn.0.bias": tensors["blocks.0.ffn.0.bias"]}


@pytest.mark.parametrize(("name", "make", "parts"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_unreadable_file(tmp_path: Path, name: str, make: Callable[[Path], object], parts: tuple[str, ...]) -> None:
    path = tmp_path / name
    make(path)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.read(path)
    message = str(caught.value)
    assert message.startswith("checkpoint: ")
    assert name in message
    assert "; " in message
    assert "\n" not in message
    for part in parts:
        assert part in message
    assert isinstance(caught.value, UnsupportedModelError) == ("GGUF" in message)
    assert executed == []


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX pipes and permissions")
def test_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="must be a regular file"):
        checkpoint.read(tmp_path / "a.pth")


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root reads everything")
def test_unreadable_permissions(tmp_path: Path) -> None:
    path = tiny.save_pth(tmp_path / "a.pth", weights())
    path.chmod(0)
    with pytest.raises(CheckpointError, match="must be readable, came Permission denied; check"):
        checkpoint.read(path)


def test_the_same_process_reads_a_good_file_afterwards(tmp_path: Path) -> None:
    half_pth(tmp_path / "bad.pth")
    with pytest.raises(CheckpointError):
        checkpoint.read(tmp_path / "bad.pth")
    good = tiny.save_pth(tmp_path / "bad.pth", weights())
    assert checkpoint.read(good).config.num_layers == 1


@functools.cache
def i2v_weights() -> dict[str, Tensor]:
    return tiny.tiny_tensors(text_dim=64, num_layers=1, in_dim=36)


@pytest.mark.parametrize("name", ["a.safetensors", "a.sft"])
def test_every_header_length_is_safetensors(tmp_path: Path, name: str) -> None:
    """The low byte of the header length may be 0x80 (a pickle's first byte) or a space."""
    path = tmp_path / name
    first_bytes = set()
    for step in range(32):
        save_file(i2v_weights(), path, metadata={"expert": "high", "pad": "x" * 8 * step})
        first_bytes.add(path.read_bytes()[0])
        read = checkpoint.read(path)
        assert read.expert == "high", step
        assert read.layout.startswith("safetensors"), step
    assert first_bytes == set(range(0, 256, 8))


@pytest.mark.parametrize("length", [0x5B20, 0x7B20, 0x3C20, 0x5B5B, 0x7B7B, 0x5B0A, 0x5080])
@pytest.mark.parametrize("name", ["a.safetensors", "a.bin"])
def test_header_length_that_looks_like_text(tmp_path: Path, name: str, length: int) -> None:
    path = tmp_path / name
    save_file(i2v_weights(), path, metadata={"expert": "low"})
    set_header_bytes(path, length)
    read = checkpoint.read(path)
    assert read.expert == "low"
    assert read.layout.startswith("safetensors")


OUT_OF_MEMORY = [
    RuntimeError("unable to mmap 28600000000 bytes from file </models/a>: Cannot allocate memory (12)\nat x.cpp"),
    RuntimeError("Couldn't open file mapping: <a>, error code: <1455>"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 28600000000 bytes."),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 28600000000 bytes."),
    OSError(12, "Cannot allocate memory"),
    OSError("Die Auslagerungsdatei ist zu klein, um diesen Vorgang durchzuführen. (os error 1455)"),
    MemoryError("Cannot allocate memory (os error 12)"),
    MemoryError(),
    pickle.UnpicklingError("Weights only load failed. …\n DefaultCPUAllocator: not enough memory: you tried"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=[f"{type(e).__name__} {i}" for i, e in enumerate(OUT_OF_MEMORY)])
@pytest.mark.parametrize("save", ["safetensors", "zip", "legacy"])
def test_no_memory_to_map_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save: str, error: Exception
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    path = tmp_path / "a.model"
    if save == "safetensors":
        if isinstance(error, pickle.UnpicklingError):
            pytest.skip("safetensors never unpickles")
        save_file(weights(), path)
        monkeypatch.setattr(weight_file, "safe_open", fail)
    else:
        torch.save(weights(), path, _use_new_zipfile_serialization=save == "zip")
        monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(CheckpointError, match="could not map the file") as caught:
        checkpoint.read(path)
    message = str(caught.value)
    assert message.startswith("checkpoint: a.model must")
    assert "; free RAM" in message
    assert "page file" in message
    assert AGAIN not in message
    assert "\n" not in message


@pytest.mark.parametrize("error", [OSError(19, "No such device"), RuntimeError("unable to mmap: No such device (19)")])
def test_file_system_that_cannot_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    save_file(weights(), tmp_path / "a.safetensors")
    monkeypatch.setattr(weight_file, "safe_open", fail)
    with pytest.raises(CheckpointError, match=r"must be readable, mapping it failed \(.*No such device.*; copy it"):
        checkpoint.read(tmp_path / "a.safetensors")
