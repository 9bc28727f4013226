"""A file of prompts: how lines are read, what a run leaves, and what the next one makes of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from turbowan.turbo_core import batch
from turbowan.turbo_core.batch import MANIFEST, Job, Line
from turbowan.turbo_core.commands.batch import _READERS
from turbowan.turbo_core.errors import LatentError, ServerGoneError, SettingsError
from turbowan.turbo_core.request import Request


class FakeMaker:
    """Writes the prompt as the video; fails as prompts ask for."""

    def __init__(self) -> None:
        self.prepared: list[list[str]] = []
        self.made: list[str] = []

    def check(self, request: Request) -> None: ...

    def prepare(self, requests: Sequence[Request]) -> None:
        self.prepared.append([request.prompt for request in requests])

    def make(self, request: Request, output: Path) -> None:
        failure = {
            "bad size": LatentError, "full disk": OSError, "bug": RuntimeError, "stop": KeyboardInterrupt,
            "server gone": ServerGoneError,
        }  # fmt: skip
        if request.prompt in failure:
            raise failure[request.prompt](request.prompt)
        self.made.append(request.prompt)
        output.write_text(request.prompt)


def job(prompt: str, number: int = 1, **parameters: object) -> Job:
    line = Line(number=number, prompt=prompt)
    request = None if prompt == "no request" else Request(prompt=prompt, size=(64, 64))
    return Job(line=line, parameters={"prompt": prompt, **parameters}, request=request, problem="image: must exist")


def run(folder: Path, *prompts: str, maker: FakeMaker | None = None) -> tuple[FakeMaker, int]:
    maker = maker or FakeMaker()
    return maker, batch.run([job(prompt, n) for n, prompt in enumerate(prompts, 1)], folder, maker, lambda _: None)


def entries(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / MANIFEST).read_text().splitlines()]


def test_a_run_and_the_next(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "out"
    maker, failed = run(folder, "a red ball", "two, CIRCLES!", "a red ball")
    assert (maker.made, failed) == (["a red ball", "two, CIRCLES!"], 0)
    told = entries(folder)
    assert [entry["line"] for entry in told] == [1, 2]
    for entry in told:
        content = (folder / entry["file"]).read_bytes()
        assert entry["sha256"] == hashlib.sha256(content).hexdigest()
        assert entry["parameters"]["prompt"] == entry["prompt"] == content.decode()
        assert entry["seconds"] >= 0
    assert told[1]["file"].startswith("two-circles-")
    assert run(folder, "two, CIRCLES!", "a red ball", "a third")[0].made == ["a third"]
    (folder / told[0]["file"]).unlink()
    assert run(folder, "a red ball", "a third")[0].made == ["a red ball"]


def test_other_parameters_are_another_video() -> None:
    files = {job("a", seed=0).file, job("a", seed=1).file, job("a").file}
    assert len(files) == 3
    assert job("日本").file.startswith("video-")
    assert len(job("word " * 100).file) < 70


@pytest.mark.parametrize("failing", ["bad size", "full disk", "no request"])
def test_a_failure_does_not_stop_the_rest(tmp_path: Path, failing: str) -> None:
    maker, failed = run(tmp_path, "a", failing, "b")
    assert (maker.made, failed) == (["a", "b"], 1)
    assert ["error" in entry for entry in entries(tmp_path)] == [False, True, False]
    again, failed = run(tmp_path, "a", failing, "b")
    assert (again.made, failed) == ([], 1)


@pytest.mark.parametrize("failing", ["bug", "server gone"])
def test_what_the_rest_would_share_does_stop_it(tmp_path: Path, failing: str) -> None:
    with pytest.raises((RuntimeError, ServerGoneError), match=failing):
        run(tmp_path, "a", failing, "b")
    assert [entry["prompt"] for entry in entries(tmp_path)] == ["a"]


def test_ctrl_c_says_how_far_it_came(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt, match="1 of 3 videos are complete; run the same command again"):
        run(tmp_path, "a", "stop", "b")


def test_prompts_are_prepared_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "AHEAD", 2)
    maker, _ = run(tmp_path, "a", "b", "no request", "c", "d")
    assert maker.prepared == [["a", "b"], ["c"], ["d"]]


def test_what_a_killed_run_left(tmp_path: Path) -> None:
    """A torn line is cut off, a half-written video is taken away, and a video without its line is made again."""
    run(tmp_path, "a", "b")
    manifest = tmp_path / MANIFEST
    manifest.write_bytes(manifest.read_bytes()[:-9])
    (tmp_path / ".c-0123456789.mp4.77.partial").touch()
    assert run(tmp_path, "a", "b")[0].made == ["b"]
    assert [entry["prompt"] for entry in entries(tmp_path)] == ["a", "b"]
    assert not list(tmp_path.glob(".*"))


def test_two_runs_cannot_share_a_folder(tmp_path: Path) -> None:
    with batch.manifest(tmp_path), pytest.raises(SettingsError, match="one run at a time"):
        run(tmp_path, "a")
    assert run(tmp_path, "a")[0].made == ["a"]


def test_text_lines(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("\ufeffa red ball\n\n  größer \n# no comment\n", encoding="utf-8")
    lines = batch.read_lines(tmp_path / "p.txt", _READERS)
    assert [(line.number, line.prompt) for line in lines] == [(1, "a red ball"), (3, "größer"), (4, "# no comment")]


def test_json_lines(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "seed": 7, "size": "64x48", "sigma_max": 80, "image": "x.png", "sampler": "ode"},
        {"prompt": "b"},
    ]
    (tmp_path / "p.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
    first, second = batch.read_lines(tmp_path / "p.jsonl", _READERS)
    assert first.settings == {
        "seed": 7, "size": (64, 48), "sigma_max": 80.0, "image": tmp_path / "x.png", "sampler": "ode"
    }  # fmt: skip
    assert (second.number, second.prompt, second.settings) == (3, "b", {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "a"}\n{"prompt"', "line 2 must be JSON"),
        ('{"prompt": "a \\ud800"}', "line 1: the prompt must be Unicode text, .*ud800' is none"),
        ('{"seed": 1}', 'must be an object with a "prompt"'),
        ('["a"]', 'must be an object with a "prompt"'),
        ('{"prompt": "a", "fps": 3}', "a setting must be one of seed, steps, .*, came 'fps'"),
        ('{"prompt": "a", "seed": "x"}', "seed came as 'x' .*another type"),
        ('{"prompt": "a", "seed": true}', "seed came as True"),
        ('{"prompt": "a", "size": "64"}', "size came as '64' .*WIDTHxHEIGHT"),
        ("", "must hold a prompt a line"),
    ],
)
def test_wrong_json_lines(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "p.jsonl").write_text(text)
    with pytest.raises(SettingsError, match=message):
        batch.read_lines(tmp_path / "p.jsonl", _READERS)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="must exist"):
        batch.read_lines(tmp_path / "none.txt", _READERS)
    (tmp_path / "latin.txt").write_bytes("größer".encode("latin-1"))
    with pytest.raises(SettingsError, match="must be UTF-8"):
        batch.read_lines(tmp_path / "latin.txt", _READERS)
