"""Folders that the pack adds to ComfyUI's: the demo model's files, and prompt books."""

from __future__ import annotations

from pathlib import Path

PROMPT_BOOKS = "turbowan_prompts"  # a folder name in models, as in extra_model_paths.yaml
BUNDLE = Path(__file__).parents[1] / "demo" / "bundle"
BUNDLE_FOLDERS = ("diffusion_models", "vae")
BUNDLE_BOOK = BUNDLE / "prompts.safetensors"


def register() -> None:
    """Tell ComfyUI where to look, after its own folders; what is absent is left out."""
    import folder_paths

    folder_paths.add_model_folder_path(PROMPT_BOOKS, str(Path(folder_paths.models_dir) / PROMPT_BOOKS))
    if BUNDLE.is_dir():
        for folder in BUNDLE_FOLDERS:
            folder_paths.add_model_folder_path(folder, str(BUNDLE))
