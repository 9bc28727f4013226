"""TurboImageToVideo: a start image becomes conditioning for an image-to-video model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from .choices import ADAPTIVE, CATEGORY, CUSTOM, MAX_SIDE, SIZES

if TYPE_CHECKING:
    from comfy.sd import VAE
    from torch import Tensor


class TurboImageToVideo(io.ComfyNode):
    """TurboDiffusion's preprocessing; stock samplers read its conditioning too."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TurboImageToVideo",
            display_name="TurboWan Image to Video",
            category=CATEGORY,
            description="Sizes the video after the image, encodes the image and makes the empty latent.",
            inputs=[
                io.Conditioning.Input("conditioning", tooltip="The prompt, encoded with umT5-XXL."),
                io.Vae.Input("vae", tooltip="The Wan 2.1 VAE."),
                io.Image.Input("image", tooltip="The first frame. It is stretched to the video's size."),
                io.Combo.Input(
                    "resolution",
                    options=[*SIZES, CUSTOM],
                    default="720p",
                    tooltip="The video's area, or custom to set width and height below.",
                ),
                io.Combo.Input(
                    "aspect",
                    options=[ADAPTIVE, *SIZES["720p"]],
                    default=ADAPTIVE,
                    tooltip="adaptive: the image's own shape at the resolution's 16:9 area. No effect on custom.",
                ),
                _side_input("width", 1280),
                _side_input("height", 720),
                io.Int.Input(
                    "length",
                    default=81,
                    min=1,
                    max=1025,
                    step=4,
                    tooltip="Frames, 4n+1. 81 are 5 seconds at 16 fps, as the models were trained.",
                ),
                io.Int.Input("batch_size", default=1, min=1, max=64, tooltip="Videos made at once."),
            ],
            outputs=[
                io.Conditioning.Output(display_name="conditioning", tooltip="Text and image."),
                io.Latent.Output(display_name="latent", tooltip="An empty latent of the video's size and length."),
            ],
        )

    @classmethod
    def execute(
        cls,
        conditioning: list[Any],
        vae: VAE,
        image: Tensor,
        resolution: str,
        aspect: str,
        width: int,
        height: int,
        length: int,
        batch_size: int,
    ) -> io.NodeOutput:
        from ._start_image import attach, empty_latent, video_size

        size = video_size(resolution, aspect, (width, height), image)
        return io.NodeOutput(attach(conditioning, vae, image, size, length), empty_latent(size, length, batch_size))


def _side_input(name: str, default: int) -> io.Int.Input:
    return io.Int.Input(
        name, default=default, min=16, max=MAX_SIDE, step=16, tooltip="Used with resolution custom; divisible by 16."
    )
