"""Fixtures of the host tests: one ComfyUI process per version and session.

``TURBOWAN_HOSTS`` (comma-separated checkouts) chooses the versions; otherwise it is the one at ``COMFYUI_DIR`` or
``~/comfy/ComfyUI``. ``TURBOWAN_HOST_PYTHON`` names an interpreter that can run it, instead of the environment that
``make_venv`` makes. Without a checkout or an interpreter the tests skip and the summary says how many.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from host import make_venv
from host.client import ComfyClient
from host.models import write_models
from host.server import ComfyProcess

FLAGS = ("--preview-method", "latent2rgb")


def _checkouts() -> list[Path | None]:
    named = [Path(path).expanduser() for path in os.environ.get("TURBOWAN_HOSTS", "").split(",") if path]
    return named or [make_venv.comfyui_dir()]


def _version(checkout: Path | None) -> str:
    if checkout is None:
        return "none"
    if not (checkout / "comfyui_version.py").is_file():
        return "missing"
    return re.search(r'"([\d.]+)"', (checkout / "comfyui_version.py").read_text())[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "host" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.host)


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("models")
    write_models(models)
    return models


@pytest.fixture(scope="session", params=_checkouts(), ids=_version)
def checkout(request: pytest.FixtureRequest) -> Path:
    if request.param is None:
        pytest.skip("no ComfyUI checkout at COMFYUI_DIR or ~/comfy/ComfyUI")
    if not (request.param / "main.py").is_file():
        pytest.fail(f"TURBOWAN_HOSTS: {request.param} must be a ComfyUI checkout, it has no main.py")
    return request.param


@pytest.fixture(scope="session")
def host_python(checkout: Path) -> Path:
    given = os.environ.get("TURBOWAN_HOST_PYTHON")
    if given:
        return Path(given)
    python = make_venv.venv_python(make_venv.comfyui_dir() or checkout)
    if python is None:
        pytest.skip("no environment for ComfyUI: run `python tests/host/make_venv.py`")
    lacking = make_venv.unmet(python, checkout)
    assert not lacking, f"{checkout} lacks {lacking}: run `python tests/host/make_venv.py` with TURBOWAN_HOSTS set"
    return python


@pytest.fixture(scope="session")
def host(
    checkout: Path, host_python: Path, models_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ComfyProcess]:
    base = tmp_path_factory.mktemp(f"comfyui-{_version(checkout)}")
    (base / "models").symlink_to(models_dir, target_is_directory=True)
    with ComfyProcess(checkout, host_python, base, flags=FLAGS) as process:
        yield process


@pytest.fixture
def client(host: ComfyProcess) -> Iterator[ComfyClient]:
    """A client of the running host; the host and its worker thread must outlive every test."""
    _assert_healthy(host)
    yield ComfyClient(host.url)
    _assert_healthy(host)


def _assert_healthy(host: ComfyProcess) -> None:
    log = host.log()
    assert host.alive(), f"ComfyUI must survive; its log ends:\n{log[-4000:]}"
    assert "Exception in thread" not in log, f"ComfyUI's worker must survive; its log ends:\n{log[-4000:]}"
