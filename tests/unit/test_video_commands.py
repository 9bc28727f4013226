"""``turbowan generate`` and ``batch`` as a user runs them, on tiny random models."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_models
import torch
from PIL import Image
from tiny_models import TinyModels

from turbowan.turbo_core import cli, demo_bundle
from turbowan.turbo_core.pipeline import Pipeline
from turbowan.turbo_core.video_file import read_comment

pytest.importorskip("transformers")
av = pytest.importorskip("av")
pytestmark = pytest.mark.usefixtures("one_thread")

PROMPTS = ["a red ball", "two circles", "a green star", "a blue square", "it spins"]
SMALL = ["--size", "64x48", "--frames", "5", "--steps", "1"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    return tiny_models.write(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def demo(models: TinyModels, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The tiny models as the demo bundle; the working folder."""
    monkeypatch.setattr(demo_bundle, "FOLDER", models.t2v.parents[1])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files(models: TinyModels) -> list[str]:
    return ["--model", str(models.t2v), "--vae", str(models.vae), "--text-encoder", str(models.text_encoder)]


def shown(path: Path) -> tuple[int, int, int, float]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        count = sum(1 for _ in container.decode(stream))
        return stream.width, stream.height, count, float(stream.average_rate)


def run(program: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *program],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
        check=False,
    )


def test_generate_as_a_process(models: TinyModels, tmp_path: Path) -> None:
    done = run(["-m", "turbowan", "generate", "a red ball", "-o", "red.mp4", *files(models), *SMALL], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("red.mp4: 64x48, 5 frames, in ")
    for stage in ("text encoder", "sampling", "frames"):
        assert stage in done.stderr
    assert "100%" in done.stderr
    assert shown(tmp_path / "red.mp4") == (64, 48, 5, 16.0)


def test_the_demo_model_is_the_default(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["generate", "a red ball", *SMALL, "--seed", "5", "--topk", "0.4"]) == 0
    assert shown(demo / "out.mp4") == (64, 48, 5, 16.0)
    told = read_comment(demo / "out.mp4")
    assert told["files"][0] == "TurboWanDemo-T2V-quant.pth"
    assert (told["prompt"], told["seed"], told["size"], told["sigma_max"]) == ("a red ball", 5, "64x48", 80.0)
    first = (demo / "out.mp4").read_bytes()
    assert cli.main(["generate", "a red ball", *SMALL]) == 1
    assert "out.mp4 must not exist, it does" in capsys.readouterr().err
    assert cli.main(["generate", "a red ball", *SMALL, "--seed", "5", "--topk", "0.4", "--force"]) == 0
    assert (demo / "out.mp4").read_bytes() == first
    capsys.readouterr()
    assert cli.main(["inspect", "out.mp4"]) == 0
    assert json.loads(capsys.readouterr().out) == told


def test_an_image_decides_model_and_shape(demo: Path) -> None:
    Image.radial_gradient("L").resize((90, 60)).convert("RGB").save(demo / "first.png")
    assert (
        cli.main(["generate", "it moves", "-o", "i.mp4", "--image", "first.png", "--frames", "5", "--steps", "3"]) == 0
    )
    assert shown(demo / "i.mp4") == (192, 128, 5, 16.0)  # 160·160 pixels at 3:2
    told = read_comment(demo / "i.mp4")
    assert told["files"][:2] == ["TurboWanDemo-I2V-high-quant.safetensors", "TurboWanDemo-I2V-low-quant.safetensors"]
    assert (told["image"], told["sampler"], told["sigma_max"]) == ("first.png", "ode", 200.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--noise", "brown"], "noise: must be one of comfy, upstream"),
        (["-o", "a.avi"], "generate: the output must end in .mp4"),
        (["-o", "none/a.mp4"], "generate: the folder none must exist"),
        (["--size", "60x48"], "width and height must be divisible by 16, got 60x48; use 64x48"),
        (["--image", "none.png"], "image: none.png must exist"),
        (["--image", "none.png", "--size", "64x48"], "image: none.png must exist"),
        (["--model", "t2v-14b-720p"], "run `turbowan download t2v-14b-720p`"),
        (["--model", "fast"], "model: must be demo, t2v-1.3b"),
        (["--device", "tpu"], "device: must be cpu, cuda or cuda:N, got 'tpu'"),
        (["--device", "cuda:9"], "device: cuda:9 must be there"),
        (["--attention", "fast"], "attention: must be auto"),
        (["--precision", "int3"], "precision: must be one of"),
        (["--seed", "-1"], "seed: must be 0 to"),
    ],
)
def test_refusals_are_one_line_and_leave_nothing(
    demo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(demo / "data"))
    assert cli.main(["generate", "a red ball", *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("turbowan: ")
    assert error.count("\n") == 1
    assert list(demo.iterdir()) == []


def test_a_prompt_in_another_encoding(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As Python takes a byte that is not UTF-8 from a terminal."""
    assert cli.main(["generate", "gr\udcf6n"]) == 1
    assert r"the prompt must be Unicode text, '\udcf6' is none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("failure", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "turbowan: interrupted; nothing was written"),
        (torch.cuda.OutOfMemoryError("VAE decode: ran out of memory on cuda:0"), 1, "turbowan: VAE decode: ran out"),
        (MemoryError(), 1, "turbowan: ran out of memory"),
    ],
)
def test_an_end_on_the_way_leaves_nothing(
    demo: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    failure: BaseException,
    code: int,
    message: str,
) -> None:
    decode = Pipeline.decode

    def half(self: Pipeline, latent: torch.Tensor, receive: Callable[[torch.Tensor], None]) -> None:
        def first(frames: torch.Tensor) -> None:
            receive(frames)
            raise failure

        decode(self, latent, first)

    monkeypatch.setattr(Pipeline, "decode", half)
    assert cli.main(["generate", "a red ball", *SMALL]) == code
    assert capsys.readouterr().err.splitlines()[-1].startswith(message)
    assert list(demo.iterdir()) == []


def test_batch_makes_resumes_and_tells(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": "a red ball"}, {"prompt": "two circles", "seed": 3}, {"prompt": "bad", "size": "60x48"}]
    (demo / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert cli.main(["batch", "p.jsonl", "-o", "out", *SMALL]) == 3
    told = [json.loads(line) for line in (demo / "out" / "manifest.jsonl").read_text().splitlines()]
    assert ["error" in entry for entry in told] == [False, False, True]
    for entry in told[:2]:
        video = demo / "out" / entry["file"]
        assert shown(video) == (64, 48, 5, 16.0)
        assert hashlib.sha256(video.read_bytes()).hexdigest() == entry["sha256"]
        assert read_comment(video) == entry["parameters"]
    (demo / "p.jsonl").write_text("\n".join(map(json.dumps, rows[:2])))
    capsys.readouterr()
    assert cli.main(["batch", "p.jsonl", "-o", "out", *SMALL]) == 0
    assert "2 videos, 2 of them there already" in capsys.readouterr().out
    assert len((demo / "out" / "manifest.jsonl").read_text().splitlines()) == 3


def test_batch_is_of_one_kind(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (demo / "p.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b", "image": "none.png"}\n')
    assert cli.main(["batch", "p.jsonl", "-o", "out"]) == 1
    assert "must have an image or none" in capsys.readouterr().err


@pytest.mark.parametrize("size", [{}, {"size": "64x48"}])
def test_batch_notes_an_image_that_is_not_there(demo: Path, size: dict[str, str]) -> None:
    (demo / "p.jsonl").write_text(json.dumps({"prompt": "b", "image": "none.png"} | size))
    assert cli.main(["batch", "p.jsonl", "-o", "out"]) == 3
    assert "image: none.png must exist" in json.loads((demo / "out" / "manifest.jsonl").read_text())["error"]


# The command line, which kills itself before the second video gets its name.
DIES = """
import os, signal, sys
from turbowan.turbo_core import cli, video_file

to_disk, written = video_file._to_disk, []

def to_disk_and_die(path):
    to_disk(path)
    written.append(path)
    if len(written) == 2:
        os.kill(os.getpid(), signal.SIGKILL)

video_file._to_disk = to_disk_and_die
sys.exit(cli.main())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_batch_goes_on_after_a_kill(models: TinyModels, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("\n".join(PROMPTS))
    arguments = ["batch", "p.txt", "-o", "out", *files(models), *SMALL]
    out, manifest = tmp_path / "out", tmp_path / "out" / "manifest.jsonl"
    killed = run(["-c", DIES, *arguments], tmp_path)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(list(out.glob(".*.partial"))) == 1
    (before,) = out.glob("*.mp4")
    written = before.stat().st_mtime_ns
    assert [json.loads(line)["file"] for line in manifest.read_text().splitlines()] == [before.name]
    done = run(["-m", "turbowan", *arguments], tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"{len(PROMPTS)} videos, 1 of them there already" in done.stdout
    assert before.stat().st_mtime_ns == written
    told = [json.loads(line) for line in manifest.read_text().splitlines()]
    assert [entry["prompt"] for entry in told] == PROMPTS
    assert {path.name for path in out.iterdir()} == {"manifest.jsonl", *(entry["file"] for entry in told)}
    for entry in told:
        assert shown(out / entry["file"]) == (64, 48, 5, 16.0)
        assert hashlib.sha256((out / entry["file"]).read_bytes()).hexdigest() == entry["sha256"]
