"""Folders that the pack adds to ComfyUI's: the demo model's files, and prompt books."""

from __future__ import annotations

from pathlib import Path

from ..turbo_core import demo_bundle

PROMPT_BOOKS = "turbowan_prompts"  # a folder name in models, as in extra_model_paths.yaml
BUNDLE_FOLDERS = ("diffusion_models", "vae")


def register() -> None:
    """Tell ComfyUI where to look, after its own folders; what is absent is left out."""
    import folder_paths

    folder_paths.add_model_folder_path(PROMPT_BOOKS, str(Path(folder_paths.models_dir) / PROMPT_BOOKS))
    if demo_bundle.FOLDER.is_dir():
        for folder in BUNDLE_FOLDERS:
            folder_paths.add_model_folder_path(folder, str(demo_bundle.FOLDER))


def network_files() -> list[str]:
    """The files that may hold a network; ComfyUI lists every file of the demo model in each of its folders."""
    import folder_paths

    others = set(demo_bundle.FILES) - set(demo_bundle.NETWORKS)
    return [name for name in folder_paths.get_filename_list("diffusion_models") if name not in others]
