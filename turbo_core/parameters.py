"""What a video was made of and with, as its file and the manifest of a batch carry it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from . import rcm
from .config import Family
from .expert import NetworkSettings
from .model_choice import Choice
from .pipeline import Request


def parameters(request: Request, choice: Choice, settings: NetworkSettings) -> dict[str, Any]:
    """Every setting with the value that it had, also where the default was taken; JSON types alone."""
    family = family_of(request)
    told: dict[str, Any] = {
        "software": "TurboWan",
        "model": choice.name,
        "files": [Path(name).name for name in (*choice.networks, choice.vae, choice.text_encoder)],
        "prompt": request.prompt,
        "seed": request.seed,
        "steps": request.steps,
        "size": "x".join(map(str, request.size)),
        "frames": request.frames,
        "sigma_max": request.sigma_max or (rcm.SIGMA_MAX_T2V if family == "t2v" else rcm.SIGMA_MAX_I2V),
        "sampler": request.sampler or ("sde" if family == "t2v" else "ode"),
        "noise": request.noise,
        "attention": settings.attention,
        "topk": settings.topk,
        "precision": settings.precision,
    }
    if request.image is not None:
        content = hashlib.sha256(request.image.read_bytes()).hexdigest()
        told |= {"image": request.image.name, "image_sha256": content, "boundary": request.boundary}
    return told


def family_of(request: Request) -> Family:
    """An image-to-video model makes the videos that begin with an image, and those alone."""
    return "t2v" if request.image is None else "i2v"
