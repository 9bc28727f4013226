"""TurboT2VSampler: text to video in 1 to 4 steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from .choices import CATEGORY, MAX_SEED, NOISE_ORDERS

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher


class TurboT2VSampler(io.ComfyNode):
    """The same as SamplerCustomAdvanced with TurboSamplerSelect (sde) and TurboScheduler, in one node."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TurboT2VSampler",
            display_name="TurboWan T2V Sampler",
            category=CATEGORY,
            description="Samples a text-to-video model in 1 to 4 steps. No CFG and no negative prompt.",
            inputs=[
                io.Model.Input("model", tooltip="A T2V model from TurboLoader."),
                io.Conditioning.Input("conditioning", tooltip="The prompt, encoded with umT5-XXL."),
                io.Latent.Input("latent", tooltip="An empty latent (EmptyHunyuanLatentVideo) sets size and length."),
                seed_input(),
                steps_input(),
                sigma_max_input(80.0, "80 for text to video."),
                noise_input(),
            ],
            outputs=[
                io.Latent.Output(tooltip="The video as a latent, for TurboVAEDecodeVideo, TurboVAEDecode or VAEDecode.")
            ],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        conditioning: list[Any],
        latent: dict[str, Any],
        seed: int,
        steps: int,
        sigma_max: float,
        noise: str,
    ) -> io.NodeOutput:
        from ._sampling import Stage, require_family, sample, sigmas

        name = "TurboT2VSampler"
        require_family(model, "t2v", name, "use TurboI2VSampler with both I2V experts")
        stage = Stage(model=model, times=sigmas(steps, sigma_max))
        return io.NodeOutput(
            sample([stage], conditioning, latent, seed=seed, stochastic=True, noise_order=noise, where=name)
        )


def seed_input() -> io.Int.Input:
    return io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=MAX_SEED,
        control_after_generate=True,
        tooltip="The same seed gives the same video.",
    )


def steps_input() -> io.Int.Input:
    return io.Int.Input("steps", default=4, min=1, max=4, tooltip="4 for quality; fewer are faster and rougher.")


def sigma_max_input(default: float, usual: str) -> io.Float.Input:
    return io.Float.Input(
        "sigma_max",
        default=default,
        min=15.0,
        max=2000.0,
        step=1.0,
        round=0.01,
        tooltip=f"Noise level of the first step. {usual}",
    )


def noise_input() -> io.Combo.Input:
    return io.Combo.Input(
        "noise",
        options=NOISE_ORDERS,
        default="comfy",
        tooltip="comfy: drawn on the CPU, as other ComfyUI samplers do; a seed gives one video on any GPU. "
        "upstream: TurboDiffusion's own order on the GPU, to repeat its videos by seed.",
    )
