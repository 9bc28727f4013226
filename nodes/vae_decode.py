"""TurboVAEDecode: a video latent becomes images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from .choices import CATEGORY

if TYPE_CHECKING:
    from comfy.sd import VAE


class TurboVAEDecode(io.ComfyNode):
    """Our decoder on the host's Wan 2.1 VAE; any other VAE decodes itself."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TurboVAEDecode",
            display_name="TurboWan VAE Decode",
            category=CATEGORY,
            description="Decodes a Wan 2.1 latent piece by piece in bounded memory. Takes any other VAE as well.",
            inputs=[
                io.Latent.Input("samples", tooltip="A sampler's latent."),
                io.Vae.Input("vae", tooltip="The Wan 2.1 VAE (wan_2.1_vae.safetensors)."),
            ],
            outputs=[io.Image.Output(tooltip="The frames, for CreateVideo.")],
        )

    @classmethod
    def execute(cls, samples: dict[str, Any], vae: VAE) -> io.NodeOutput:
        from ._decode import decode

        latent = samples["samples"]
        if latent.is_nested:
            latent = latent.unbind()[0]
        return io.NodeOutput(decode(vae, latent))
