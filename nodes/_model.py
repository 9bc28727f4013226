"""A TurboWan network as a ComfyUI model: the host's calling convention around the core's forward.

The host hands over noise, text and whatever its conditioning nodes left; everything a user can get wrong there is
refused here, before the first step, in words that name the node to use.
"""

from __future__ import annotations

from typing import Any

import comfy.ldm.common_dit
import comfy.model_base
import comfy.patcher_extension
import comfy.supported_models
import torch
from torch import Tensor

from ..turbo_core import rcm
from ..turbo_core.channelwise import WeightNoise
from ..turbo_core.checkpoint import TURBODIFFUSION
from ..turbo_core.config import T2V_CHANNELS, WanConfig
from ..turbo_core.errors import ConditioningError, LatentError, NonFiniteError, SettingsError
from ..turbo_core.finite import all_finite
from ..turbo_core.layers import ROW_LINEARS, Linear, TorchOperations
from ..turbo_core.model import TurboWan
from ._file_weights import FileWeights
from ._hooks import ComfyHooks, Options, rope_options
from ._operations import progress_bar, throw_if_interrupted
from ._prepared import Prepared

UMT5_XXL = 4096  # the width of its states
OTHER_TEXT = "use the prompts that came with this model (TurboPromptCache without clip), or its own text encoder"
SAVED_PREFIX = "model.diffusion_model."  # what the host puts before the names of a saved network


class HostedTurboWan(TurboWan):
    """`TurboWan` called as ComfyUI calls native Wan, with its wrappers, patches and paddings."""

    def __init__(
        self,
        *,
        config: WanConfig,
        dtype: torch.dtype,
        device: torch.device | None,
        operations: type[TorchOperations],
        image_model: str,
    ) -> None:
        super().__init__(config, operations=operations, device=device, dtype=dtype)
        self.dtype = dtype
        self.image_model = image_model
        self._compiled_for: set[tuple[object, ...]] = set()
        # Native Wan's attributes that other nodes read.
        self.patch_size, self.dim, self.num_heads = config.patch_size, config.dim, config.num_heads
        self.in_dim, self.out_dim, self.num_layers = config.in_dim, config.out_dim, config.num_layers

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        context: Tensor,
        clip_fea: Tensor | None = None,
        time_dim_concat: Tensor | None = None,
        transformer_options: Options | None = None,
        **conditions: Any,
    ) -> Tensor:
        """Native Wan's signature; wrappers (EasyCache) expect transformer_options as the last positional argument."""
        options = {} if transformer_options is None else transformer_options
        wrappers = comfy.patcher_extension.get_all_wrappers(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, options)
        executor = comfy.patcher_extension.WrapperExecutor.new_class_executor(self._forward, self, wrappers)
        return executor.execute(x, timestep, context, clip_fea, time_dim_concat, options, **conditions)

    def _forward(
        self,
        x: Tensor,
        timestep: Tensor,
        context: Tensor,
        clip_fea: Tensor | None = None,
        time_dim_concat: Tensor | None = None,
        transformer_options: Options | None = None,
        **conditions: Any,
    ) -> Tensor:
        options = {} if transformer_options is None else transformer_options
        if conditions.get("context_latents") is not None:
            raise ConditioningError(
                f"{self.config.name}: conditioning must be text and a start image, got reference latents "
                "(context_latents); load the model with Load Diffusion Model to use them"
            )
        frames, height, width = x.shape[2:]
        x = comfy.ldm.common_dit.pad_to_patch_size(x, self.patch_size)
        if time_dim_concat is not None:
            x = torch.cat((x, comfy.ldm.common_dit.pad_to_patch_size(time_dim_concat, self.patch_size)), dim=2)
        self._compile_ahead(x, timestep.flatten(), context)
        out = TurboWan.forward(
            self, x, timestep.flatten(), context, hooks=ComfyHooks(options), rope=rope_options(options)
        )
        if not torch.isfinite(out).all():  # here and not in our samplers alone: any sampler may drive this model
            raise NonFiniteError(
                f"{self.config.name}: the network must give finite values, got NaN or infinity at timestep "
                f"{timestep.flatten()[0].item():g}; try attention 'sla' or precision 'bf16', and check LoRA "
                "strengths and the model file"
            )
        return out[:, :, :frames, :height, :width]

    def _compile_ahead(self, x: Tensor, timestep: Tensor, context: Tensor) -> None:
        """Once for each kind of input: compile what is not compiled yet, with progress, before a step waits for it."""
        kind = (x.shape, x.dtype, x.device, context.shape, self.attention)
        if kind in self._compiled_for:
            return
        self.compile_ahead(x, timestep, context.to(x.dtype), progress=progress_bar(), interrupted=throw_if_interrupted)
        self._compiled_for.add(kind)


class TurboWanBase(comfy.model_base.WAN21):
    """The host's model object.

    Attributes:
        config: what the network is.
        expert: "high" or "low" where the file says which expert of a pair it is.
        rounds_timestep: TurboDiffusion networks were trained on timesteps rounded to bf16; other Wan files were not.
        file_weights: the large weights in their file; whoever makes the model sets them.
        weight_noise: what rounding the weights cost while they were loaded, where that was measured.
        prepared: how the host's streaming last readied the model; see `_patcher`.
    """

    file_weights: FileWeights

    def __init__(
        self,
        model_config: TurboWanSupported,
        model_type: comfy.model_base.ModelType = comfy.model_base.ModelType.FLOW,
        device: torch.device | None = None,
    ) -> None:
        super(comfy.model_base.WAN21, self).__init__(model_config, model_type, device=device, unet_model=HostedTurboWan)
        self.config: WanConfig = model_config.unet_config["config"]
        self.image_to_video = self.config.family == "i2v"
        self.expert: str | None = None
        self.rounds_timestep = False
        self.weight_noise: WeightNoise | None = None
        self.prepared: Prepared | None = None

    def process_timestep(self, timestep: Tensor, **conditions: Any) -> Tensor:
        return rcm.round_timestep(timestep) if self.rounds_timestep else timestep

    def state_dict_for_saving(self, *tensors: Any, **named_tensors: Any) -> dict[str, Any]:
        """The host's file with a mark that native names cannot carry; its arguments differ by version."""
        _refuse_row_codes(self.diffusion_model)
        saved = super().state_dict_for_saving(*tensors, **named_tensors)
        saved[SAVED_PREFIX + TURBODIFFUSION] = torch.tensor([self.rounds_timestep], dtype=torch.uint8)
        return saved

    def process_latent_in(self, latent: Tensor) -> Tensor:
        self._check_latent(latent)  # the host scales a latent before it asks for conditions
        return super().process_latent_in(latent)

    def extra_conds(self, **conditions: Any) -> dict[str, Any]:
        self._check_latent(conditions["noise"])
        self._check_text(conditions.get("cross_attn"))
        return super().extra_conds(**conditions)

    def concat_cond(self, **conditions: Any) -> Tensor | None:
        self._check_image(conditions["noise"], conditions.get("concat_latent_image"), conditions.get("prompt_type"))
        return super().concat_cond(**conditions)

    def _check_latent(self, noise: Tensor) -> None:
        if noise.ndim != 5 or noise.shape[1] != T2V_CHANNELS:
            raise LatentError(
                f"{self.config.name}: the latent must be [batch, {T2V_CHANNELS}, frames, height, width], got "
                f"{tuple(noise.shape)}; use EmptyHunyuanLatentVideo, TurboImageToVideo or a Wan 2.1 VAE's latent"
            )

    def _check_text(self, text: Tensor | None) -> None:
        if text is None or text.ndim != 3 or text.shape[-1] != self.config.text_dim:
            got = "none" if text is None else str(tuple(text.shape))
            umt5 = self.config.text_dim == UMT5_XXL
            raise ConditioningError(
                f"{self.config.name}: text conditioning must be [1, tokens, {self.config.text_dim}], got {got}; "
                + ("encode the prompt with umT5-XXL (Load CLIP with type 'wan')" if umt5 else OTHER_TEXT)
            )
        if not all_finite(text):
            raise ConditioningError(
                f"{self.config.name}: text conditioning must be finite, got NaN or infinity; use another umT5-XXL "
                "file, or start ComfyUI with --fp32-text-enc"
            )

    def _check_image(self, noise: Tensor, image: Tensor | None, prompt_type: str | None) -> None:
        if self.config.family == "t2v":
            if image is not None:
                raise ConditioningError(
                    f"{self.config.name}: a text-to-video model takes no image, got image conditioning; load a "
                    "Wan2.2 I2V pair of experts, or connect the text conditioning alone"
                )
            return
        if image is None:
            if prompt_type == "negative":
                return
            raise ConditioningError(
                f"{self.config.name}: an image-to-video model needs an image, got text alone; connect the "
                "conditioning of TurboImageToVideo or WanImageToVideo"
            )
        if image.shape[2:] != noise.shape[2:]:
            raise ConditioningError(
                f"{self.config.name}: image conditioning and latent must have the same length and size, got "
                f"{tuple(image.shape[2:])} and {tuple(noise.shape[2:])} (frames, height, width); connect the latent of "
                "the node that made the conditioning"
            )


class TurboWanSupported(comfy.supported_models.WAN21_T2V):
    """The host's description of the model family; `unet_config` holds `HostedTurboWan`'s arguments."""

    supported_inference_dtypes = (torch.bfloat16, torch.float16, torch.float32)

    def __init__(self, config: WanConfig) -> None:
        super().__init__({"image_model": "wan2.1", "config": config})
        self.memory_usage_factor = config.dim / 2222

    def get_model(self, state_dict: dict, prefix: str = "", device: torch.device | None = None) -> TurboWanBase:
        return TurboWanBase(self, device=device)


def _refuse_row_codes(network: TurboWan) -> None:
    """Codes with a scale per output channel are made for a GPU from a file, and no reader takes them from one."""
    if any(isinstance(module, Linear) and module.codes_format in ROW_LINEARS for module in network.modules()):
        raise SettingsError(
            "saving: the model must keep its file's precision, got weights rounded to one scale per output channel "
            "(channelwise or fp8); set TurboLoader's precision to auto, save, and choose it for the saved file"
        )
