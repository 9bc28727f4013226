"""Bytes of a file on a device: the right ones in the right order, whatever the sizes of spans, chunks and ring."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from turbowan.turbo_core import file_reading
from turbowan.turbo_core.errors import CheckpointError
from turbowan.turbo_core.file_spans import FileSpan
from turbowan.turbo_core.weight_file import open_weights

SIZES = [1, 999, 1000, 1001, 20_000, 7, 3_500]


@pytest.fixture(params=[(1000, 3), (64, 16), (1 << 20, 2)], ids=["chunks", "small-chunks", "one-chunk"], autouse=True)
def ring(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    chunk, buffers = request.param
    monkeypatch.setattr(file_reading, "CHUNK", chunk)
    monkeypatch.setattr(file_reading, "BUFFERS", buffers)


@pytest.fixture
def content(generator: torch.Generator) -> bytes:
    return torch.randint(0, 256, (30_000,), dtype=torch.uint8, generator=generator).numpy().tobytes()


def spans_of(path: Path) -> list[FileSpan]:
    """Of every size, not in the file's order, with gaps and overlaps."""
    return [FileSpan(path, (7919 * number) % (30_000 - size), size) for number, size in enumerate(SIZES)]


@pytest.mark.parametrize("where", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_every_span_arrives_in_order(tmp_path: Path, content: bytes, where: str) -> None:
    paths = [tmp_path / "first", tmp_path / "second"]
    paths[0].write_bytes(content)
    paths[1].write_bytes(content[::-1])
    spans = spans_of(paths[0]) + spans_of(paths[1])
    read = list(file_reading.read(spans, torch.device(where)))
    assert len(read) == len(spans)
    for span, data in zip(spans, read, strict=True):
        assert (data.device.type, data.dtype) == (where, torch.uint8)
        expected = content if span.path == paths[0] else content[::-1]
        assert data.cpu().numpy().tobytes() == expected[span.offset : span.offset + span.size]


def test_tensors_of_a_checkpoint_and_others_arrive_as_they_are(tmp_path: Path) -> None:
    """Views and tensors that lie in no file are copied."""
    path = tmp_path / "model.pth"
    torch.save({"a": torch.randn(60, 70), "b": torch.arange(900, dtype=torch.int8), "c": torch.randn(8, 8).T}, path)
    file = open_weights(path)
    tensors = [*file.content.values(), file.content["a"][3], torch.randn(5)]
    mapped = file_reading.MappedFile(path, file.spans)
    arrived = list(mapped.to_device(tensors, torch.device("cpu")))
    for tensor, copy in zip(tensors, arrived, strict=True):
        assert torch.equal(tensor, copy)
        assert tensor.dtype == copy.dtype
    assert [copy.data_ptr() != tensor.data_ptr() for tensor, copy in zip(tensors, arrived, strict=True)] == [
        True, True, False, False, False
    ]  # fmt: skip


def test_another_file_of_that_name_is_not_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, other = tmp_path / "model.pth", tmp_path / "other.pth"
    torch.save({"a": torch.ones(900)}, path)
    torch.save({"a": torch.zeros(900)}, other)
    file = open_weights(path)
    mapped = file_reading.MappedFile(path, file.spans)
    other.replace(path)
    (arrived,) = mapped.to_device([file.content["a"]], torch.device("cpu"))
    assert torch.equal(arrived, torch.ones(900))
    assert "model.pth was changed since it was opened" in caplog.text


def test_nothing_asked_nothing_read() -> None:
    assert list(file_reading.read([], torch.device("cpu"))) == []


def test_a_file_that_became_shorter_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(content[:25_000])
    with pytest.raises(CheckpointError, match=r"model\.pth must keep its bytes up to 30000 .* it ends at 25000"):
        list(file_reading.read([FileSpan(path, 0, 10_000), FileSpan(path, 10_000, 20_000)], torch.device("cpu")))


def test_a_file_that_is_gone_is_the_systems_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list(file_reading.read([FileSpan(tmp_path / "gone", 0, 10)], torch.device("cpu")))


def test_a_reader_that_is_left_ends_its_threads(tmp_path: Path, content: bytes) -> None:
    """As at an interruption."""
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    reading = file_reading.read(spans_of(path), torch.device("cpu"))
    next(reading)
    reading.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("turbowan-read")]
