"""Where the doctor is called, as the running host knows it."""

from __future__ import annotations

from pathlib import Path

import comfy.model_management
import comfyui_version
import folder_paths

from ..turbo_core.doctor.finding import Surroundings


def surroundings() -> Surroundings:
    return Surroundings(
        base=Path(folder_paths.base_path),
        comfyui=comfyui_version.__version__,
        device=str(comfy.model_management.get_torch_device()),
        folders={
            folder: tuple(Path(path) for path in folder_paths.get_folder_paths(folder))
            for folder in ("diffusion_models", "text_encoders", "vae")
        },
    )
