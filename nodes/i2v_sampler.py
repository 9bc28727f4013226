"""TurboI2VSampler: image to video with two experts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from .choices import CATEGORY, SAMPLERS
from .t2v_sampler import noise_input, seed_input, sigma_max_input, steps_input

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher


class TurboI2VSampler(io.ComfyNode):
    """The high-noise expert takes the steps that start at t ≥ boundary, the low-noise expert the rest."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TurboI2VSampler",
            display_name="TurboWan I2V Sampler",
            category=CATEGORY,
            description="Samples a pair of image-to-video experts in 1 to 4 steps. The low-noise expert is loaded "
            "onto the GPU when its turn comes; with 1 or 2 steps it is not needed at all.",
            inputs=[
                io.Model.Input("model_high", tooltip="The high-noise I2V expert."),
                io.Model.Input("model_low", tooltip="The low-noise I2V expert."),
                io.Conditioning.Input("conditioning", tooltip="From TurboImageToVideo or WanImageToVideo (positive)."),
                io.Latent.Input("latent", tooltip="The latent of the node that made the conditioning."),
                seed_input(),
                steps_input(),
                sigma_max_input(200.0, "200 for image to video."),
                io.Float.Input(
                    "boundary",
                    default=0.9,
                    min=0.01,
                    max=0.99,
                    step=0.01,
                    round=0.001,
                    tooltip="Time t at which the experts change. 0.9 as trained: 4 steps are 2 high + 2 low.",
                ),
                io.Combo.Input(
                    "sampler",
                    options=SAMPLERS,
                    default="ode",
                    tooltip="ode: no fresh noise, sharper. sde: fresh noise each step, more robust.",
                ),
                noise_input(),
            ],
            outputs=[
                io.Latent.Output(tooltip="The video as a latent, for TurboVAEDecodeVideo, TurboVAEDecode or VAEDecode.")
            ],
        )

    @classmethod
    def execute(
        cls,
        model_high: ModelPatcher,
        model_low: ModelPatcher,
        conditioning: list[Any],
        latent: dict[str, Any],
        seed: int,
        steps: int,
        sigma_max: float,
        boundary: float,
        sampler: str,
        noise: str,
    ) -> io.NodeOutput:
        from ._sampling import expert_stages, sample

        name = "TurboI2VSampler"
        stages = expert_stages(model_high, model_low, steps, sigma_max, boundary, name)
        stochastic = sampler == "sde"
        return io.NodeOutput(
            sample(stages, conditioning, latent, seed=seed, stochastic=stochastic, noise_order=noise, where=name)
        )
