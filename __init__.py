"""TurboWan: TurboDiffusion's few-step Wan video models for ComfyUI (and on their own as ``turbowan``)."""

from __future__ import annotations

import typing

if typing.TYPE_CHECKING:
    from comfy_api.latest import ComfyExtension  # noqa: TID251

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> ComfyExtension:
    """ComfyUI calls this when it loads custom nodes; nothing of the host is imported before."""
    from .nodes import TurboWanExtension

    return TurboWanExtension()
