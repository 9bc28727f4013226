"""`turbowan download` against an imitation of the hub: whole, broken, resumed, refused."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock
from hub import Hub

from turbowan.turbo_core import catalogue, cli
from turbowan.turbo_core import download as downloading
from turbowan.turbo_core.catalogue import HubFile
from turbowan.turbo_core.download import download
from turbowan.turbo_core.errors import DownloadError, SettingsError

RELEASE = catalogue.release("t2v-1.3b")
NETWORK, ENCODER, VAE = RELEASE.files()
CHUNK = 10_000


def content(name: str, size: int = 300_000) -> bytes:
    return (name.encode() * (size // len(name) + 1))[:size]


@pytest.fixture(autouse=True)
def small_and_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's client writes pieces of 10 MB, and sleeps a second before it tries again."""
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", CHUNK)
    monkeypatch.setattr("huggingface_hub.file_download.time", SimpleNamespace(sleep=lambda seconds: None))


@pytest.fixture
def hub() -> Iterator[Hub]:
    files = {(file.repository, file.path): content(file.name) for file in catalogue.all_files()}
    with Hub(files=files) as running:
        yield running


def fetch(hub: Hub, to: Path, files: Sequence[HubFile] = (NETWORK, ENCODER, VAE), *, force: bool = False) -> list[str]:
    said: list[str] = []
    paths = download(files, to=to, endpoint=hub.url, report=said.append, force=force)
    assert [path.read_bytes() for path in paths] == [hub.files[file.repository, file.path] for file in files]
    return said


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_files_go_to_their_folders(hub: Hub, tmp_path: Path) -> None:
    said = fetch(hub, tmp_path)
    assert everything(tmp_path) == {f"{file.folder}/{file.name}" for file in RELEASE.files()}
    assert [line.endswith("0.00 GB, verified") for line in said] == [True] * 3


def test_a_second_run_transfers_nothing(hub: Hub, tmp_path: Path) -> None:
    fetch(hub, tmp_path)
    hub.ranges.clear()
    said = fetch(hub, tmp_path)
    assert hub.ranges == []
    assert [line.endswith("already there, verified") for line in said] == [True] * 3


def test_a_broken_connection_is_taken_up_within_a_run(hub: Hub, tmp_path: Path) -> None:
    hub.pieces = [100_000, 70_000]
    fetch(hub, tmp_path, [NETWORK])
    assert hub.ranges == [0, 100_000, 170_000]


def test_a_broken_run_is_taken_up_by_the_next(hub: Hub, tmp_path: Path) -> None:
    hub.pieces, hub.broken_for_good = [100_000], True
    with pytest.raises(DownloadError, match=r"the hub must answer, .* run the same command again"):
        fetch(hub, tmp_path, [NETWORK])
    partial = next(path for path in (tmp_path / NETWORK.folder).iterdir() if path.suffix == ".partial")
    assert partial.stat().st_size == 100_000
    hub.broken_for_good = False
    hub.ranges.clear()
    fetch(hub, tmp_path, [NETWORK])
    assert hub.ranges == [100_000]
    assert everything(tmp_path) == {f"{NETWORK.folder}/{NETWORK.name}"}


def test_a_proxy_that_knows_no_ranges_starts_again(hub: Hub, tmp_path: Path) -> None:
    hub.pieces, hub.broken_for_good = [100_000], True
    with pytest.raises(DownloadError):
        fetch(hub, tmp_path, [NETWORK])
    hub.broken_for_good, hub.whole_only = False, True
    fetch(hub, tmp_path, [NETWORK])
    assert everything(tmp_path) == {f"{NETWORK.folder}/{NETWORK.name}"}


def test_a_new_version_does_not_go_on_with_the_old_ones_piece(hub: Hub, tmp_path: Path) -> None:
    hub.pieces, hub.broken_for_good = [100_000], True
    with pytest.raises(DownloadError):
        fetch(hub, tmp_path, [NETWORK])
    hub.broken_for_good = False
    hub.files[NETWORK.repository, NETWORK.path] = content("the new version")
    hub.ranges.clear()
    fetch(hub, tmp_path, [NETWORK])
    assert hub.ranges == [0]


def test_a_wrong_checksum_leaves_nothing(hub: Hub, tmp_path: Path) -> None:
    hub.promised[NETWORK.repository, NETWORK.path] = "1" * 64
    with pytest.raises(DownloadError, match=rf"sha256 of {NETWORK.name} must be 1111.* came [0-9a-f]{{64}}"):
        fetch(hub, tmp_path, [NETWORK])
    assert everything(tmp_path) == set()


def test_another_file_of_that_name_stays_unless_forced(hub: Hub, tmp_path: Path) -> None:
    place = tmp_path / VAE.folder / VAE.name
    place.parent.mkdir()
    place.write_bytes(b"mine")
    with pytest.raises(DownloadError, match=r"must be the hub's file.*--force"):
        fetch(hub, tmp_path, [VAE])
    assert place.read_bytes() == b"mine"
    fetch(hub, tmp_path, [VAE], force=True)


@pytest.mark.parametrize(
    ("refusal", "message"),
    [
        ((403, "GatedRepo"), r"accepted its terms; accept them at .*HF_TOKEN"),
        ((404, "RepoNotFound"), r"the repository TurboDiffusion/\S+ must exist and be open to you"),
        ((503, ""), r"the hub must answer, .*503"),
    ],
)
def test_refusals_say_what_to_do(hub: Hub, tmp_path: Path, refusal: tuple[int, str], message: str) -> None:
    hub.refusals[NETWORK.repository] = refusal
    with pytest.raises(DownloadError, match=message):
        fetch(hub, tmp_path)
    assert everything(tmp_path) == set()


def test_a_file_that_the_hub_lacks(hub: Hub, tmp_path: Path) -> None:
    del hub.files[ENCODER.repository, ENCODER.path]
    with pytest.raises(DownloadError, match=rf"must hold {ENCODER.path}, it does not"):
        fetch(hub, tmp_path)
    assert everything(tmp_path) == set()


def test_a_file_without_checksum_is_refused(hub: Hub, tmp_path: Path) -> None:
    hub.no_checksum.add((VAE.repository, VAE.path))
    with pytest.raises(DownloadError, match=r"must report a sha256 of wan_2.1_vae"):
        fetch(hub, tmp_path, [VAE])


def test_no_hub_at_all(tmp_path: Path) -> None:
    with Hub() as gone:
        url = gone.url
    with pytest.raises(DownloadError, match=r"the hub must answer, .*HTTPS_PROXY"):
        download([VAE], to=tmp_path, endpoint=url)


def test_the_disk_is_looked_at_first(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=downloading.RESERVE_BYTES + 899_999))
    with pytest.raises(DownloadError, match=r"must have 0.0 GB free.*--to DIR"):
        fetch(hub, tmp_path)
    assert hub.ranges == []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=downloading.RESERVE_BYTES + 900_000))
    fetch(hub, tmp_path)


def test_two_downloads_of_one_file_do_not_mix(hub: Hub, tmp_path: Path) -> None:
    (job,) = downloading.plan([VAE], to=tmp_path, endpoint=hub.url)
    job.target.parent.mkdir()
    with FileLock(f"{job.partial}.lock"), pytest.raises(DownloadError, match=r"another process is at it"):
        fetch(hub, tmp_path, [VAE])


def test_the_command(hub: Hub, tmp_path: Path) -> None:
    """As a user runs it, with HF_ENDPOINT."""
    done = _command(hub, "t2v-1.3b", "--unquantized", "--network-only", "--to", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert everything(tmp_path) == {"diffusion_models/TurboWan2.1-T2V-1.3B-480P.pth"}
    assert "verified" in done.stdout
    assert "%" not in done.stderr  # no bar in a log


def test_a_part_alone(hub: Hub, tmp_path: Path) -> None:
    done = _command(hub, "vae", "--to", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert everything(tmp_path) == {f"vae/{VAE.name}"}
    refused = _command(hub, "vae", "--unquantized", "--to", str(tmp_path))
    assert refused.returncode == 1
    assert "--unquantized and --network-only must come with a model, got vae; leave them out" in refused.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX terminals")
def test_progress_on_a_terminal(hub: Hub, tmp_path: Path) -> None:
    import fcntl
    import struct
    import termios

    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    command = [sys.executable, "-m", "turbowan", "download", "t2v-1.3b", "--to", str(tmp_path)]
    environment = os.environ | {"HF_ENDPOINT": hub.url}
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=theirs, timeout=60, env=environment, check=False)
    os.close(theirs)
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert done.returncode == 0, shown
    assert f"{NETWORK.name}: 100%" in shown
    assert "verifying" in shown


def test_the_command_offline(hub: Hub, tmp_path: Path) -> None:
    done = _command(hub, "t2v-1.3b", "--to", str(tmp_path), HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    assert done.stderr.startswith("turbowan: download: the hub must be reachable, HF_HUB_OFFLINE is set")
    assert done.stderr.count("\n") == 1


def _command(hub: Hub, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "turbowan", "download", *arguments]
    environment = os.environ | {"HF_ENDPOINT": hub.url} | environment
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_keeps_what_came(hub: Hub, tmp_path: Path) -> None:
    hub.files[NETWORK.repository, NETWORK.path] = content(NETWORK.name, 25_000_000)
    hub.stalls_after = 15_000_000
    command = [sys.executable, "-m", "turbowan", "download", "t2v-1.3b", "--to", str(tmp_path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"HF_ENDPOINT": hub.url})
    deadline = time.monotonic() + 60
    while not any(path.stat().st_size for path in tmp_path.rglob(".*.partial")):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error.rstrip().endswith("interrupted; what came is kept; run the same command again to go on")


def test_list_names_models_and_what_is_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / VAE.folder / VAE.name
    place.parent.mkdir()
    place.touch()
    assert cli.main(["download", "--list", "--to", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    for name, entry in catalogue.RELEASES.items():
        assert f"{name}: {entry.title}" in out
    assert f"vae/{VAE.name} (vae): {place}" in out
    assert f"{NETWORK.folder}/{NETWORK.name}: not here" in out


def test_no_model_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["download"]) == 1
    assert "model must be one of t2v-1.3b" in capsys.readouterr().err
    with pytest.raises(SettingsError):
        catalogue.release("x")
