"""Folders that the pack adds to ComfyUI's: the demo model's files, and prompt books."""

from __future__ import annotations

from pathlib import Path

from ..turbo_core import demo_bundle

PROMPT_BOOKS = demo_bundle.PROMPTS.parent.name  # a folder name in models, as in extra_model_paths.yaml
BUNDLE_FOLDERS = ("diffusion_models", "vae", PROMPT_BOOKS)  # no text_encoders: ComfyUI takes umT5-XXL alone


def register() -> None:
    """Tell ComfyUI where to look, after its own folders; what is absent is left out."""
    import folder_paths

    folder_paths.add_model_folder_path(PROMPT_BOOKS, str(Path(folder_paths.models_dir) / PROMPT_BOOKS))
    for folder in BUNDLE_FOLDERS:
        if (demo_bundle.FOLDER / folder).is_dir():
            folder_paths.add_model_folder_path(folder, str(demo_bundle.FOLDER / folder))
