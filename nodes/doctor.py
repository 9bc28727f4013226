"""TurboDoctor: what this machine can and cannot do, with a remedy for each finding."""

from __future__ import annotations

import time

from comfy_api.latest import io, ui

from .choices import CATEGORY


class TurboDoctor(io.ComfyNode):
    """The same as `turbowan doctor`, seen from inside ComfyUI."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TurboDoctor",
            display_name="TurboWan Doctor",
            category=CATEGORY,
            description="Looks at GPU, driver, torch, Triton, the kernels and the model files. Every finding that is "
            "not ok comes with its remedy.",
            inputs=[],
            hidden=[io.Hidden.unique_id],
            outputs=[io.String.Output(display_name="report", tooltip="The findings, a line each.")],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls) -> float:
        """Looks anew each time."""
        return time.time()

    @classmethod
    def execute(cls) -> io.NodeOutput:
        from ..turbo_core.doctor.report import as_text, examine
        from ._host import show_on_node
        from ._surroundings import surroundings

        report = as_text(examine(surroundings()))
        show_on_node(report, cls.hidden.unique_id)
        return io.NodeOutput(report, ui=ui.PreviewText(report))
