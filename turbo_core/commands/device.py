"""What ``--device`` names."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def device(name: str) -> torch.device:
    """SettingsError unless torch can compute there."""
    import torch

    from ..errors import SettingsError

    try:
        found = torch.device(name)
    except RuntimeError as error:
        raise SettingsError(f"device: must be cpu, cuda or cuda:N, got {name!r}; leave it out") from error
    if found.type not in ("cpu", "cuda"):
        raise SettingsError(f"device: must be cpu, cuda or cuda:N, got {name!r}; leave it out")
    if found.type == "cuda" and not (torch.cuda.is_available() and (found.index or 0) < torch.cuda.device_count()):
        raise SettingsError(
            f"device: {name} must be there, torch {torch.__version__} sees {torch.cuda.device_count()} GPUs; "
            "check the driver and torch's CUDA build, or leave it out"
        )
    return found
