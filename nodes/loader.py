"""TurboLoader: a checkpoint file becomes a MODEL."""

from __future__ import annotations

from comfy_api.latest import io

from .choices import ATTENTIONS, CATEGORY, PRECISIONS


class TurboLoader(io.ComfyNode):
    """Recognises the model from its tensors; the file's name does not matter."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        import folder_paths

        return io.Schema(
            node_id="TurboLoader",
            display_name="TurboWan Load Model",
            category=CATEGORY,
            description="Loads a TurboDiffusion checkpoint (quantized or not) or a native Wan file as a MODEL.",
            inputs=[
                io.Combo.Input(
                    "file",
                    options=folder_paths.get_filename_list("diffusion_models"),
                    tooltip="A .pth or .safetensors file in models/diffusion_models.",
                ),
                io.Combo.Input(
                    "attention",
                    options=ATTENTIONS,
                    default="auto",
                    tooltip="auto: sparse-linear attention (SLA) if the file was trained with it, else dense. "
                    "sagesla: SLA with int8 scores (Triton, RTX 30 or newer). dense: all keys, without SLA's "
                    "linear branch, so for files without one; the slowest. "
                    "sageattention: dense, by that package where it is installed and works.",
                ),
                io.Float.Input(
                    "topk",
                    default=0.1,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    round=0.001,
                    tooltip="Share of key blocks that SLA keeps. 0.1 as trained; 0.15 gives more detail, slower. "
                    "No effect on dense attention.",
                ),
                io.Combo.Input(
                    "precision",
                    options=PRECISIONS,
                    default="auto",
                    tooltip="auto: as the file has it. int8: quantize an unquantized file (halves its memory). "
                    "channelwise: int8 with one scale per output channel, a little less exact: this node and the log "
                    "say how much. fp8: half the memory of unquantized files, noisier than int8; RTX 40 or newer. "
                    "bf16: dense weights from a quantized file. exact: TurboDiffusion's own arithmetic, for quantized "
                    "files.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[io.Model.Output(tooltip="A MODEL for TurboWan's and ComfyUI's own samplers and LoRA loaders.")],
        )

    @classmethod
    def validate_inputs(cls, file: str | None = None) -> bool | str:
        import folder_paths

        if file is None or folder_paths.get_full_path("diffusion_models", file) is not None:
            return True
        return (
            f"file: {file!r} must be in models/diffusion_models, it is not there; "
            "put it there and press R, or choose another file"
        )

    @classmethod
    def fingerprint_inputs(
        cls, file: str | None, attention: str | None, topk: float | None, precision: str | None
    ) -> str:
        """A file that was replaced is loaded again. The host gives None for an input that comes from another node."""
        import os

        import folder_paths

        if file is None:
            return "linked"
        path = folder_paths.get_full_path("diffusion_models", file)
        if path is None:
            return "missing"
        status = os.stat(path)
        return f"{status.st_mtime_ns}:{status.st_size}"

    @classmethod
    def execute(cls, file: str, attention: str, topk: float, precision: str) -> io.NodeOutput:
        from ._host import LoadSettings, load_model, model_path, show_on_node

        settings = LoadSettings(attention=attention, topk=topk, precision=precision)
        model = load_model(model_path(file), settings)
        if model.model.weight_noise is not None:
            show_on_node(f"{precision}: {model.model.weight_noise}", cls.hidden.unique_id)
        return io.NodeOutput(model)
