"""What a video was made of and with, as its file and the manifest of a batch carry it."""

from __future__ import annotations

import hashlib
from pathlib import PureWindowsPath
from typing import Any

from .expert import NetworkSettings
from .model_choice import Choice
from .request import Request


def parameters(request: Request, choice: Choice, settings: NetworkSettings) -> dict[str, Any]:
    """Every setting with the value that it had, also where the default was taken; JSON types alone."""
    told: dict[str, Any] = {
        "software": "TurboWan",
        "model": choice.name,
        # By the rules of Windows, which has either separator: a server's names have its own.
        "files": [PureWindowsPath(name).name for name in (*choice.networks, choice.vae, choice.text_encoder)],
        "prompt": request.prompt,
        "seed": request.seed,
        "steps": request.steps,
        "size": "x".join(map(str, request.size)),
        "frames": request.frames,
        "sigma_max": request.first_sigma,
        "sampler": request.chosen_sampler,
        "noise": request.noise,
        "attention": settings.attention,
        "topk": settings.topk,
        "precision": settings.precision,
    }
    if request.image is not None:
        content = hashlib.sha256(request.image.read_bytes()).hexdigest()
        told |= {"image": request.image.name, "image_sha256": content, "boundary": request.boundary}
    return told
