"""Encoded prompts on disk: bit for bit, bounded, whole or not at all, and keyed by what made them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from turbowan.turbo_core import prompt_cache
from turbowan.turbo_core.errors import CheckpointError, ConditioningError
from turbowan.turbo_core.prompt_book import open_book, write_book
from turbowan.turbo_core.prompt_cache import PromptCache
from turbowan.turbo_core.prompt_entry import Conditioning, NotPlainError, pack, require_finite, unpack
from turbowan.turbo_core.prompt_key import host_settings, prompt_key

GENEROUS = 10**9


def conditioning(seed: int = 0, words: int = 5, dim: int = 8) -> Conditioning:
    states = torch.zeros(1, 32, dim)
    states[:, :words] = torch.randn(1, words, dim, generator=torch.Generator().manual_seed(seed))
    return [[states, {"pooled_output": None}]]


def assert_same(a: Any, b: Any) -> None:
    """Equal in type, structure and every bit."""
    assert type(a) is type(b)
    if isinstance(a, Tensor):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for name in a:
            assert_same(a[name], b[name])
    else:
        assert a == b or (a != a and b != b)


def rich() -> Conditioning:
    """Everything that a conditioning may hold, and zeros where trimming could go wrong."""
    minus_zero = torch.zeros(1, 6, 4)
    minus_zero[:, 3] = -0.0
    ragged = torch.zeros(2, 6, 4, dtype=torch.bfloat16)
    ragged[0, 1], ragged[1, 4] = 1, 2
    shared = torch.randn(1, 6, 4, generator=torch.Generator().manual_seed(1)).half()
    extras = {
        "pooled_output": torch.randn(1, 4, generator=torch.Generator().manual_seed(2)),
        "attention_mask": torch.tensor([[1, 1, 0, 0]]),
        "flags": torch.tensor([True, False]),
        "scalar": torch.tensor(3.5, dtype=torch.float64),
        "empty": torch.zeros(1, 0, 4),
        "view": shared[:, ::2, ::2],
        "nested": {"pair": (1, 2.5, None, "ä\n"), "list": [shared, [float("inf"), float("nan"), 0.1]]},
        "start_percent": 0.0,
        "strange": {"tensor": "0", "rows": 3, "dict": {"list": [1]}},
    }
    return [[minus_zero, extras], [ragged, {}], [shared, {"same": shared}], [torch.zeros(1, 6, 4), {}]]


def test_everything_comes_back_bit_for_bit(tmp_path: Path) -> None:
    assert_same(unpack(pack(rich())), rich())
    cache = PromptCache(folder=tmp_path / "new", limit=GENEROUS)
    cache.put("k", "text", rich())
    assert_same(cache.get("k"), rich())


def test_padding_takes_no_room(tmp_path: Path) -> None:
    cache = PromptCache(folder=tmp_path, limit=GENEROUS)
    cache.put("k", "text", [[torch.nn.functional.pad(torch.ones(1, 40, 4096), (0, 0, 0, 472)), {}]])
    assert cache.size() < 1.05 * 40 * 4096 * 4


@pytest.mark.parametrize(
    ("value", "got"),
    [
        (object(), "object"),
        (torch.nn.Linear(1, 1), "Linear"),
        ({1: 2}, "dict"),
        ({1}, "set"),
        (torch.zeros(2).to_sparse(), "sparse"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path: Path, value: Any, got: str) -> None:
    cache = PromptCache(folder=tmp_path, limit=GENEROUS)
    with pytest.raises(NotPlainError, match=r"tensors and plain values to be kept.*encode this prompt anew") as refused:
        cache.put("k", "text", [[torch.zeros(1, 2, 2), {"hooks": value}]])
    assert got in refused.value.found
    assert refused.value.found.endswith(" in conditioning[0][1].hooks")
    assert list(tmp_path.iterdir()) == []


def test_an_overflown_encoding_is_refused() -> None:
    require_finite(conditioning(), "here")
    with pytest.raises(ConditioningError, match=r"here: .*--fp32-text-enc"):
        require_finite([[torch.full((1, 2, 2), float("nan")), {}]], "here")
    with pytest.raises(ConditioningError, match="must be finite"):
        require_finite([*conditioning(), [torch.full((1, 2, 2), float("nan")).to(torch.float8_e4m3fn), {}]], "here")


def test_what_only_another_pack_knows_is_not_judged() -> None:
    require_finite([["no tensor", {}], [torch.ones(1, 2, dtype=torch.int64)], [torch.ones(2).to_sparse(), {}]], "here")


def test_unknown_key(tmp_path: Path) -> None:
    assert PromptCache(folder=tmp_path / "none", limit=GENEROUS).get("k") is None


@pytest.mark.parametrize("failure", [PermissionError(13, "Permission denied"), OSError(5, "Input/output error")])
def test_an_unreadable_entry_counts_as_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: OSError) -> None:
    cache = PromptCache(folder=tmp_path, limit=GENEROUS)
    cache.put("k", "text", conditioning())

    def refuse(path: Path) -> bytes:
        raise failure

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert cache.get("k") is None
    assert cache.path("k").exists()


@pytest.mark.parametrize("damage", ["torn", "flipped", "zeros", "empty", "other key", "text"])
def test_a_damaged_entry_is_removed_and_remade(tmp_path: Path, damage: str) -> None:
    cache = PromptCache(folder=tmp_path, limit=GENEROUS)
    cache.put("k", "text", conditioning())
    path = cache.path("k")
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[-7] ^= 4
    elif damage == "zeros":
        content[-64:] = bytes(64)
    elif damage == "other key":
        cache.put("j", "another", conditioning(1))
        content = bytearray(cache.path("j").read_bytes())
    else:
        content = {"torn": content[:-20], "empty": bytearray(), "text": bytearray(b"hello there")}[damage]
    path.write_bytes(content)
    assert cache.get("k") is None
    assert not path.exists()
    cache.put("k", "text", conditioning())
    assert_same(cache.get("k"), conditioning())


def test_every_torn_length_is_noticed(tmp_path: Path) -> None:
    cache = PromptCache(folder=tmp_path, limit=GENEROUS)
    cache.put("k", "text", conditioning(words=1, dim=2))
    whole = cache.path("k").read_bytes()
    for length in range(0, len(whole), 3):
        cache.path("k").write_bytes(whole[:length])
        assert cache.get("k") is None


def test_the_least_recently_used_leave(tmp_path: Path) -> None:
    cache = PromptCache(folder=tmp_path, limit=GENEROUS)
    for index, key in enumerate("abcd"):
        cache.put(key, key, conditioning(index))
        os.utime(cache.path(key), (1000 + index, 1000 + index))
    assert cache.get("a") is not None  # used now, and so the newest
    small = PromptCache(folder=tmp_path, limit=3 * cache.path("a").stat().st_size)
    small.put("e", "e", conditioning(9))
    assert {path.stem for path in tmp_path.iterdir()} == {"a", "d", "e"}
    assert small.size() <= small.limit


def test_the_newest_stays_though_it_is_too_large(tmp_path: Path) -> None:
    cache = PromptCache(folder=tmp_path, limit=1)
    cache.put("a", "a", conditioning())
    cache.put("b", "b", conditioning(1))
    assert cache.get("a") is None
    assert_same(cache.get("b"), conditioning(1))


def test_abandoned_pieces_are_swept(tmp_path: Path) -> None:
    cache = PromptCache(folder=tmp_path, limit=GENEROUS)
    old, young = tmp_path / "x.1.partial", tmp_path / "y.1.partial"
    for piece in (old, young):
        piece.touch()
    os.utime(old, (1000, 1000))
    cache.put("k", "text", conditioning())
    assert not old.exists()
    assert young.exists()


def test_a_full_disk_leaves_no_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prompt_cache.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        PromptCache(folder=tmp_path, limit=GENEROUS).put("k", "text", conditioning())
    assert list(tmp_path.iterdir()) == []


def test_many_writers_and_readers(tmp_path: Path) -> None:
    """Whoever reads meanwhile gets a whole entry or none; the limit makes entries come and go."""
    probe = PromptCache(folder=tmp_path / "probe", limit=GENEROUS)
    probe.put("k", "text", conditioning())
    cache = PromptCache(folder=tmp_path / "shared", limit=3 * probe.size())
    wanted = {str(seed): conditioning(seed) for seed in range(6)}
    wrong: list[str] = []

    def work(offset: int) -> None:
        for turn in range(30):
            key = str((turn + offset) % 6)
            try:
                found = cache.get(key)
                if found is None:
                    cache.put(key, key, wanted[key])
                else:
                    assert_same(found, wanted[key])
            except Exception as error:  # noqa: BLE001 - a thread's failure must reach the test
                wrong.append(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert list(cache.folder.glob("*.partial")) == []


def test_another_process_reads_it(tmp_path: Path) -> None:
    PromptCache(folder=tmp_path, limit=GENEROUS).put("k", "text", conditioning(3))
    script = (
        "import sys, pathlib; from turbowan.turbo_core.prompt_cache import PromptCache; "
        "print(PromptCache(folder=pathlib.Path(sys.argv[1]), limit=1).get('k')[0][0].sum().item())"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert float(done.stdout) == conditioning(3)[0][0].sum().item()


# Keys.

GRAPH: dict[str, dict[str, Any]] = {
    "1": {"class_type": "CLIPLoader", "inputs": {"clip_name": "umt5.safetensors", "type": "wan"}},
    "2": {"class_type": "LoraLoader", "inputs": {"clip": ["1", 0], "strength": 1.0}},
    "3": {"class_type": "Unrelated", "inputs": {"x": 1}},
}


def key(
    graph: dict[str, Any] = GRAPH, text: str = "a", stamps: dict[str, Any] | None = None, clip: Any = ("2", 0)
) -> str:
    return prompt_key(text, clip, graph.__getitem__, lambda value: (stamps or {}).get(value, ()))


def changed(node: str, **inputs: Any) -> dict[str, Any]:
    return GRAPH | {node: GRAPH[node] | {"inputs": GRAPH[node]["inputs"] | inputs}}


def test_the_key_follows_text_graph_and_files() -> None:
    keys = [
        key(),
        key(text="b"),
        key(changed("1", clip_name="other.safetensors")),
        key(changed("1", type="sd3")),
        key(changed("2", strength=0.5)),
        key(GRAPH | {"1": GRAPH["1"] | {"class_type": "CLIPLoaderGGUF"}}),
        key(stamps={"umt5.safetensors": ("text_encoders", 11, 1)}),
        key(stamps={"umt5.safetensors": ("text_encoders", 11, 2)}),
        key(stamps={"umt5.safetensors": ("text_encoders", 12, 1)}),
        key(clip=("2", 1)),
        key(clip=("1", 0)),
        prompt_key("a", ("2", 0), GRAPH.__getitem__, lambda value: (), ["fp32_text_enc"]),
    ]
    assert len(set(keys)) == len(keys)


def test_the_key_follows_the_host() -> None:
    class Feature(Enum):
        A = "fp16_accumulation"
        B = "cublas_ops"

    options = {"port": 8188, "fast": set(), "fp32_text_enc": False, "bf16_text_enc": False, "force_fp16": False}
    hosts = [
        host_settings("0.33.0", "cuda", options),
        host_settings("0.33.1", "cuda", options),
        host_settings("0.33.0", "cpu", options),
        host_settings("0.33.0", "cuda", options | {"fp32_text_enc": True}),
        host_settings("0.33.0", "cuda", options | {"bf16_text_enc": True}),
        host_settings("0.33.0", "cuda", options | {"force_fp16": True}),
        host_settings("0.33.0", "cuda", options | {"fast": {Feature.A}}),
        host_settings("0.33.0", "cuda", options | {"fast": {Feature.A, Feature.B}}),
    ]
    keys = [prompt_key("a", ("2", 0), GRAPH.__getitem__, lambda value: (), host) for host in hosts]
    assert len(set(keys)) == len(keys)
    assert host_settings("0.33.0", "cuda", options | {"port": 1, "listen": "0.0.0.0"}) == hosts[0]
    assert host_settings("0.33.0", "cuda", options | {"fast": {Feature.B, Feature.A}}) == hosts[-1]


def test_the_key_ignores_what_does_not_feed_the_encoder() -> None:
    assert key(changed("3", x=2)) == key()
    renamed = {
        "a": GRAPH["1"],
        "b": {**GRAPH["2"], "inputs": {"strength": 1.0, "clip": ["a", 0]}, "_meta": {"title": "x"}},
    }
    assert key(renamed, clip=("b", 0)) == key()


def test_a_diamond_is_walked_once() -> None:
    graph = {"0": {"class_type": "A", "inputs": {"x": 0}}}
    for level in range(1, 60):
        link = [str(level - 1), 0]
        graph[str(level)] = {"class_type": "Merge", "inputs": {"a": link, "b": link}}
    assert len(key(graph, clip=("59", 0))) == 64


# Books.


def test_a_book_finds_its_prompts_by_text(tmp_path: Path) -> None:
    prompts = {"a red ball": conditioning(0), " a blue cube\n": rich(), "ein Würfel": conditioning(2)}
    write_book(tmp_path / "book.safetensors", prompts)
    book = open_book(tmp_path / "book.safetensors")
    assert book.texts == ["a red ball", "a blue cube", "ein Würfel"]
    assert_same(book.get("a blue cube"), rich())
    assert_same(book.get(" ein Würfel "), conditioning(2))
    assert book.get("a green ball") is None
    assert book.close_to("a red bal")[0] == "a red ball"
    assert [path.name for path in tmp_path.iterdir()] == ["book.safetensors"]


@pytest.mark.parametrize("kind", ["text", "weights", "absent"])
def test_what_is_no_book(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "book.safetensors"
    if kind == "text":
        path.write_text("hello")
    elif kind == "weights":
        PromptCache(folder=tmp_path, limit=GENEROUS).put("book", "text", conditioning())
    with pytest.raises(CheckpointError, match=r"book.safetensors must be a prompt book"):
        open_book(path)


def test_a_damaged_book(tmp_path: Path) -> None:
    path = tmp_path / "book.safetensors"
    write_book(path, {"a": conditioning()})
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"'a' as it was written"):
        open_book(path).get("a")
