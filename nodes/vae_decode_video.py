"""TurboVAEDecodeVideo: a video latent becomes a VIDEO."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from .choices import CATEGORY

if TYPE_CHECKING:
    from comfy.sd import VAE


class TurboVAEDecodeVideo(io.ComfyNode):
    """TurboVAEDecode, CreateVideo and SaveVideo's encoding in one: the frames are encoded while they are decoded."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TurboVAEDecodeVideo",
            display_name="TurboWan VAE Decode to Video",
            category=CATEGORY,
            description="Decodes a Wan 2.1 latent and encodes its frames as H.264 meanwhile. Takes any other VAE too.",
            inputs=[
                io.Latent.Input("samples", tooltip="A sampler's latent."),
                io.Vae.Input("vae", tooltip="The Wan 2.1 VAE (wan_2.1_vae.safetensors)."),
                io.Float.Input(
                    "fps", default=16.0, min=1.0, max=120.0, step=1.0, tooltip="Frames a second; the models made 16."
                ),
                io.Int.Input(
                    "crf",
                    default=23,
                    min=1,
                    max=51,
                    tooltip="Quality: less is better and larger. 23 is what SaveVideo takes.",
                ),
                io.Audio.Input("audio", optional=True, tooltip="Sound for the video; cut where the frames end."),
            ],
            outputs=[io.Video.Output(tooltip="For SaveVideo, which writes it as it is.")],
        )

    @classmethod
    def execute(
        cls, samples: dict[str, Any], vae: VAE, fps: float, crf: int, audio: dict[str, Any] | None = None
    ) -> io.NodeOutput:
        from ._decode_video import decode_to_video

        latent = samples["samples"]
        if latent.is_nested:
            latent = latent.unbind()[0]
        return io.NodeOutput(decode_to_video(vae, latent, fps=fps, crf=crf, audio=audio))
