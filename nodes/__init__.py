"""ComfyUI nodes. Only `comfy_api` is imported here: torch work starts when a node first runs."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .doctor import TurboDoctor
from .folders import register
from .i2v_sampler import TurboI2VSampler
from .image_to_video import TurboImageToVideo
from .loader import TurboLoader
from .prompt_cache import TurboPromptCache
from .sampling_parts import TurboSamplerSelect, TurboScheduler
from .t2v_sampler import TurboT2VSampler
from .vae_decode import TurboVAEDecode
from .vae_decode_video import TurboVAEDecodeVideo

__all__ = ["TurboWanExtension"]


class TurboWanExtension(ComfyExtension):
    """The pack as ComfyUI sees it."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        register()  # not in on_load, which ComfyUI 0.8.0 does not call
        return [
            TurboLoader,
            TurboT2VSampler,
            TurboI2VSampler,
            TurboImageToVideo,
            TurboVAEDecode,
            TurboVAEDecodeVideo,
            TurboPromptCache,
            TurboScheduler,
            TurboSamplerSelect,
            TurboDoctor,
        ]
