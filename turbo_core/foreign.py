"""Weight files that are not ours to run, recognised by their key names and dtypes, with who takes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .config import I2V_CHANNELS, LATENT_CHANNELS, T2V_CHANNELS
from .errors import UnsupportedModelError

STOCK_LOADER = "load it with ComfyUI's node “Load Diffusion Model”"
OURS = "the file from https://huggingface.co/TurboDiffusion belongs here"
FLOAT8 = frozenset(
    getattr(torch, name)
    for name in ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu")
    if hasattr(torch, name)
)


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """A kind of file: any key that contains one of ``marks`` gives it away."""

    marks: tuple[str, ...]
    what: str
    remedy: str


# In the key names of a Wan transformer, yet no checkpoint of one.
ADAPTERS = (
    Foreign(
        marks=(".lora_A.", ".lora_B.", ".lora_up.", ".lora_down.", ".lokr_w", ".hada_w", ".diff_b"),
        what="a LoRA",
        remedy="put it in models/loras and apply it with “LoraLoaderModelOnly” to this node's MODEL",
    ),
    Foreign(
        marks=("condition_embedder.", ".attn1.to_q.", ".attn1.add_k_proj."),
        what="a model in diffusers layout",
        remedy="take the single-file version in native key names (of TurboDiffusion or Comfy-Org)",
    ),
)

# Not a diffusion transformer.
OTHER_FILES = (
    Foreign(
        marks=("SelfAttention.q.", "shared.weight", "token_embedding.weight", "text_model.", "embed_tokens."),
        what="a text encoder",
        remedy="put it in models/text_encoders and load it with “Load CLIP” (type wan)",
    ),
    Foreign(
        marks=("vision_model.", "visual.transformer."),
        what="a CLIP vision model",
        remedy="load it with “Load CLIP Vision”; TurboDiffusion's models need none",
    ),
    Foreign(
        marks=("decoder.head.", "decoder.conv_in.", "decoder.conv1.", "decoder.up_blocks."),
        what="a VAE",
        remedy="put it in models/vae and load it with “Load VAE”",
    ),
)

# Wan transformers with parts that TurboDiffusion's models have not.
VARIANTS = (
    Foreign(
        marks=(".scale_weight", "scaled_fp8", ".comfy_quant"),
        what="weights quantized by ComfyUI (fp8_scaled, nvfp4, …)",
        remedy=STOCK_LOADER,
    ),
    Foreign(
        marks=(".absmax", ".quant_map", ".qweight"),
        what="weights quantized by bitsandbytes or Nunchaku",
        remedy="load it with the pack it was made for",
    ),
    Foreign(marks=("vace_blocks.", "vace_patch_embedding."), what="Wan VACE", remedy=STOCK_LOADER),
    Foreign(
        marks=("img_emb.", ".k_img.", ".v_img."),
        what="a Wan2.1 I2V or FLF2V model with image embeddings (img_emb)",
        remedy=STOCK_LOADER,
    ),
    Foreign(marks=("control_adapter.",), what="a Wan camera-control model", remedy=STOCK_LOADER),
    Foreign(marks=("ref_conv.",), what="a Wan Fun-Control model", remedy=STOCK_LOADER),
    Foreign(marks=("casual_audio_encoder.", "audio_injector."), what="Wan S2V", remedy=STOCK_LOADER),
    Foreign(marks=("face_adapter.", "motion_encoder."), what="Wan Animate", remedy=STOCK_LOADER),
    Foreign(marks=("audio_proj.",), what="a Wan audio model (HuMo, MultiTalk)", remedy=STOCK_LOADER),
    Foreign(
        marks=("patch_embedding_pose.", "patch_embedding_mask.", "patch_embedding_global."),
        what="a Wan pose or dance model (SCAIL, WanDancer)",
        remedy=STOCK_LOADER,
    ),
)

CHANNEL_VARIANTS: dict[tuple[int, int], str] = {  # (in, out)
    (48, 48): "Wan2.2 TI2V 5B",
    (48, 16): "a Wan2.1 Fun-Control model",
    (52, 16): "a Wan2.2 Fun-Control model",
    (32, 16): "a Wan control or camera model",
    (20, 16): "a Wan variant with a mask",
}


def refuse_adapters(names: Iterable[str], where: str) -> None:
    _refuse_marked(names, ADAPTERS, where)


def refuse_not_wan(names: Mapping[str, Tensor], where: str) -> None:
    """For a file without a Wan transformer's keys: always raises, saying what it is where that is known."""
    if not any(name.startswith("model.diffusion_model.") for name in names):
        _refuse_marked(names, OTHER_FILES, where)
    some = ", ".join(list(names)[:4])
    raise UnsupportedModelError(
        f"checkpoint: {where} must be a Wan video model, came another model (keys: {some}, …); {OURS}"
    )


def refuse_unknown_prefix(names: Iterable[str], where: str, known: Iterable[str]) -> None:
    for name in names:
        if name.endswith(".head.modulation"):
            prefixes = ", ".join(f"“{prefix}”" for prefix in known if prefix)
            raise UnsupportedModelError(
                f"checkpoint: {where} must name its tensors like Wan, at most with a prefix of {prefixes}; "
                f"came “{name.removesuffix('head.modulation')}”; save the inner network's state dict"
            )


def refuse_variants(tensors: Mapping[str, Tensor], where: str) -> None:
    """For a Wan transformer in native names: raises if it has parts or dtypes that need another loader."""
    _refuse_marked(tensors, VARIANTS, where)
    fp8 = next((name for name, tensor in tensors.items() if tensor.dtype in FLOAT8), None)
    if fp8 is not None:
        _refuse(where, f"fp8 weights ({fp8} is {tensors[fp8].dtype})", STOCK_LOADER)


def refuse_channels(in_dim: int, out_dim: int, where: str) -> None:
    if in_dim in (T2V_CHANNELS, I2V_CHANNELS) and out_dim == LATENT_CHANNELS:
        return
    what = CHANNEL_VARIANTS.get((in_dim, out_dim), "another Wan variant")
    _refuse(where, f"{what} ({in_dim} channels in, {out_dim} out)", STOCK_LOADER)


def _refuse_marked(names: Iterable[str], kinds: Iterable[Foreign], where: str) -> None:
    dotted = [f".{name}" for name in names]
    for kind in kinds:
        marks = tuple(mark if mark.startswith(".") else f".{mark}" for mark in kind.marks)
        if any(mark in name for name in dotted for mark in marks):
            _refuse(where, kind.what, kind.remedy)


def _refuse(where: str, what: str, remedy: str) -> None:
    raise UnsupportedModelError(
        f"checkpoint: {where} must be a T2V or A14B I2V Wan model in bf16, fp16, fp32 or TurboDiffusion's "
        f"int8, came {what}; {remedy}"
    )
