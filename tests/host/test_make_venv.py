"""What the environment's maker says where it cannot work."""

from __future__ import annotations

from pathlib import Path

import pytest
from host import make_venv


def test_a_missing_checkout_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "main.py").touch()
    monkeypatch.setenv("COMFYUI_DIR", str(tmp_path))
    monkeypatch.setenv("TURBOWAN_HOSTS", str(tmp_path / "gone"))
    with pytest.raises(SystemExit, match=rf"TURBOWAN_HOSTS must name ComfyUI checkouts, {tmp_path / 'gone'} has no"):
        make_venv.main()


def test_no_checkout_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COMFYUI_DIR", str(tmp_path))
    with pytest.raises(SystemExit, match="a ComfyUI checkout must exist at COMFYUI_DIR"):
        make_venv.main()
