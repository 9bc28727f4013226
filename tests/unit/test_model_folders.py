"""Where model files are looked for and put, without ComfyUI."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from turbowan.turbo_core import model_folders
from turbowan.turbo_core.errors import SettingsError


@pytest.fixture
def comfy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A ComfyUI with the pack linked into its custom_nodes; the command was started through that link."""
    base = tmp_path / "ComfyUI"
    for folder in ("custom_nodes", "models/vae", "models/diffusion_models", "models/unet"):
        (base / folder).mkdir(parents=True)
    (base / "custom_nodes" / "turbowan").symlink_to(model_folders.PACK)
    monkeypatch.delenv("COMFYUI_DIR", raising=False)
    monkeypatch.setattr(sys, "argv", [str(base / "custom_nodes" / "turbowan")])
    monkeypatch.chdir(tmp_path)
    return base


def test_the_pack_in_custom_nodes_knows_its_comfyui(comfy: Path) -> None:
    assert model_folders.base_folder() == comfy
    assert model_folders.target_folder("vae") == comfy / "models" / "vae"


def test_a_main_file_counts_as_its_folder(comfy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(comfy / "custom_nodes" / "turbowan" / "__main__.py")])
    assert model_folders.base_folder() == comfy


def test_comfyui_dir_and_the_current_folder(comfy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/turbowan"])
    assert model_folders.base_folder() is None
    monkeypatch.chdir(comfy)
    assert model_folders.base_folder() == comfy
    monkeypatch.setenv("COMFYUI_DIR", str(tmp_path / "other"))
    assert model_folders.base_folder() == tmp_path / "other"


def test_without_comfyui_files_are_the_users_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("COMFYUI_DIR", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "data"))
    monkeypatch.setattr(sys, "argv", ["turbowan"])
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "data" / "turbowan" / "models" / "vae"
    assert model_folders.target_folder("vae") == own
    assert model_folders.target_folder("vae", tmp_path) == tmp_path / "vae"
    assert model_folders.find("x.safetensors", "vae") is None
    own.mkdir(parents=True)
    (own / "x.safetensors").touch()
    assert model_folders.find("x.safetensors", "vae") == own / "x.safetensors"


def test_older_folder_names_and_extra_paths_are_searched(comfy: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    (shared / "dits").mkdir(parents=True)
    (shared / "dits" / "a.pth").touch()
    (comfy / "models" / "unet" / "b.pth").touch()
    (comfy / "extra_model_paths.yaml").write_text(
        f"mine:\n  base_path: {shared}\n  diffusion_models: |\n    dits\n    absent\n"
    )
    assert model_folders.search_folders("diffusion_models") == (
        comfy / "models" / "diffusion_models",
        comfy / "models" / "unet",
        shared / "dits",
    )
    assert model_folders.find("a.pth", "diffusion_models") == shared / "dits" / "a.pth"
    assert model_folders.find("b.pth", "diffusion_models") == comfy / "models" / "unet" / "b.pth"


def test_a_broken_paths_file_is_named(comfy: Path) -> None:
    (comfy / "extra_model_paths.yaml").write_text("a: [")
    with pytest.raises(SettingsError, match=r"extra_model_paths.yaml: must be YAML"):
        model_folders.search_folders("vae")
