"""TurboScheduler and TurboSamplerSelect: the parts for SamplerCustom and SamplerCustomAdvanced."""

from __future__ import annotations

from comfy_api.latest import io

from .choices import CATEGORY, SAMPLERS
from .t2v_sampler import sigma_max_input, steps_input


class TurboScheduler(io.ComfyNode):
    """rCM's times as SIGMAS."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TurboScheduler",
            display_name="TurboWan Scheduler",
            category=CATEGORY,
            description="The times that the distilled models were trained for.",
            inputs=[
                steps_input(),
                sigma_max_input(80.0, "80 for text to video, 200 for image to video."),
            ],
            outputs=[io.Sigmas.Output(tooltip="For SamplerCustom and SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls, steps: int, sigma_max: float) -> io.NodeOutput:
        from ._sampling import sigmas

        return io.NodeOutput(sigmas(steps, sigma_max))


class TurboSamplerSelect(io.ComfyNode):
    """rCM's step as a SAMPLER."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TurboSamplerSelect",
            display_name="TurboWan Sampler Select",
            category=CATEGORY,
            description="rCM's sampler with an fp64 state, for any Wan flow model.",
            inputs=[
                io.Combo.Input(
                    "sampler",
                    options=SAMPLERS,
                    default="sde",
                    tooltip="sde: fresh noise each step; for text to video. ode: no fresh noise; for image to video.",
                ),
            ],
            outputs=[io.Sampler.Output(tooltip="For SamplerCustom and SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls, sampler: str) -> io.NodeOutput:
        from ._sampling import sampler_object

        return io.NodeOutput(sampler_object(stochastic=sampler == "sde"))
