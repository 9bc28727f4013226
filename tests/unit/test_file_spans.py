"""Where mapped tensors lie in their file: every span must hold exactly its tensor's bytes, or there must be none."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import save_file
from torch import Tensor

from turbowan.turbo_core import checkpoint
from turbowan.turbo_core.file_spans import archive_spans, span_of
from turbowan.turbo_core.weight_file import open_weights


def bytes_of(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def stored(path: Path, tensors: dict[str, Tensor]) -> None:
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)


@pytest.mark.parametrize("quantized", [False, True], ids=["dense", "int8"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_every_tensor_of_a_checkpoint_is_found_in_its_file(tmp_path: Path, suffix: str, quantized: bool) -> None:
    path = tmp_path / f"model{suffix}"
    stored(path, tiny.tiny_tensors(text_dim=64, num_layers=1, quantized=quantized))
    source = checkpoint.read(path)
    content = path.read_bytes()
    for name, tensor in source.tensors.items():
        span = span_of(tensor, source.spans)
        assert span is not None, name
        assert content[span.offset : span.offset + span.size] == bytes_of(tensor), name


def test_nested_training_files_have_spans(tmp_path: Path) -> None:
    path = tmp_path / "training.pth"
    torch.save({"state_dict": {"a": torch.arange(300)}, "steps": [torch.ones(5), 3]}, path)
    file = open_weights(path)
    span = span_of(file.content["state_dict"]["a"], file.spans)
    assert path.read_bytes()[span.offset : span.offset + span.size] == bytes_of(torch.arange(300))


def test_views_and_copies_have_no_span(tmp_path: Path) -> None:
    path = tmp_path / "views.pth"
    whole = torch.randn(8, 8)
    torch.save({"whole": whole, "row": whole[1], "turned": torch.randn(4, 6).T}, path)
    file = open_weights(path)
    assert span_of(file.content["whole"], file.spans) is not None
    for tensor in (file.content["row"], file.content["turned"], file.content["whole"].clone()):
        assert span_of(tensor, file.spans) is None


def test_a_file_without_tensors_has_no_spans(tmp_path: Path) -> None:
    path = tmp_path / "empty.pth"
    torch.save({"a": 1, "b": torch.empty(0)}, path)
    assert open_weights(path).spans == {}


def test_legacy_pickles_are_not_mapped(tmp_path: Path) -> None:
    path = tmp_path / "legacy.pth"
    torch.save({"a": torch.ones(3)}, path, _use_new_zipfile_serialization=False)
    assert open_weights(path).spans == {}


def test_storages_that_do_not_lie_as_the_archive_says_have_no_spans(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({"a": torch.ones(64), "b": torch.zeros(64)}, path)
    assert archive_spans(path, {"a": torch.ones(64), "b": torch.zeros(64)}) == {}  # in memory, not mapped
    content = torch.load(path, mmap=True)
    assert archive_spans(path, {"a": content["a"]}) == {}  # one of two storages
    packed = tmp_path / "packed.pth"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for record in source.infolist():
            target.writestr(record.filename, source.read(record))
    assert archive_spans(packed, content) == {}
