"""Sound files with the wrong contents: other models, missing and surplus keys, damaged values."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import save_file
from torch import Tensor

from turbowan.turbo_core import checkpoint
from turbowan.turbo_core.errors import CheckpointError, UnsupportedModelError

Tensors = dict[str, Tensor]
STOCK = "Load Diffusion Model"
Q = "blocks.0.self_attn.q"
UMT5 = "encoder.block.0.layer.0.SelfAttention.q"


@functools.cache
def make(**settings: object) -> Tensors:
    """Shared between tests, which only ever build new dicts from it."""
    return tiny.tiny_tensors(text_dim=64, **settings)


def quant() -> Tensors:
    return make(quantized=True)


def native(**settings: object) -> Tensors:
    return tiny.native(make(**settings))


def zeros(*names: str) -> Tensors:
    return {name: torch.zeros(2, 2) for name in names}


def read(tmp_path: Path, tensors: Tensors, name: str = "model.safetensors") -> checkpoint.Checkpoint:
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, tmp_path / name)
    return checkpoint.read(tmp_path / name)


def fp8_scaled() -> Tensors:
    tensors = native()
    for name in [name for name in tensors if name.startswith("blocks.") and tensors[name].ndim == 2]:
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)
        tensors[name.removesuffix("weight") + "scale_weight"] = torch.ones(1)
    return tensors | {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}


def fp8_weight_scale() -> Tensors:
    weight = native()[f"{Q}.weight"].to(torch.float8_e4m3fn)
    return native() | {f"{Q}.weight": weight, f"{Q}.weight_scale": torch.ones(())}


def diffusers() -> Tensors:
    return zeros(
        "condition_embedder.time_embedder.linear_1.weight",
        "blocks.0.attn1.to_q.weight",
        "patch_embedding.weight",
        "proj_out.weight",
        "scale_shift_table",
    )


def lora() -> Tensors:
    return {name: tensor.contiguous() for name, tensor in tiny.tiny_lora(make(num_layers=1)).items()}


FOREIGN: list[tuple[str, Callable[[], Tensors], tuple[str, ...]]] = [
    ("fp8_scaled", fp8_scaled, ("fp8_scaled", STOCK)),
    ("fp8 with weight_scale", fp8_weight_scale, ("fp8 weights", "float8_e4m3fn", STOCK)),
    ("plain fp8", lambda: native() | {f"{Q}.weight": torch.zeros(256, 256).to(torch.float8_e5m2)}, ("fp8", STOCK)),
    ("comfy_quant", lambda: native() | {f"{Q}.comfy_quant": torch.zeros(9, dtype=torch.uint8)}, ("nvfp4", STOCK)),
    ("bitsandbytes", lambda: native() | {f"{Q}.weight.absmax": torch.zeros(9)}, ("bitsandbytes", "pack it was")),
    ("img_emb", lambda: native(in_dim=36) | zeros("img_emb.proj.0.bias"), ("Wan2.1 I2V", "img_emb", STOCK)),
    ("k_img", lambda: native(in_dim=36) | zeros("blocks.0.cross_attn.k_img.weight"), ("Wan2.1 I2V", STOCK)),
    ("VACE", lambda: native() | zeros("vace_blocks.0.self_attn.q.weight"), ("Wan VACE", STOCK)),
    ("camera", lambda: native(in_dim=36) | zeros("control_adapter.conv.weight"), ("camera-control", STOCK)),
    ("Fun-Control", lambda: native() | zeros("ref_conv.weight"), ("Fun-Control", STOCK)),
    ("S2V", lambda: native() | zeros("casual_audio_encoder.encoder.final_linear.weight"), ("S2V", STOCK)),
    ("Animate", lambda: native() | zeros("face_adapter.fuser_blocks.0.k_norm.weight"), ("Animate", STOCK)),
    ("HuMo", lambda: native() | zeros("audio_proj.audio_proj_glob_1.layer.bias"), ("audio model", STOCK)),
    ("SCAIL", lambda: native() | zeros("patch_embedding_pose.weight"), ("SCAIL", STOCK)),
    ("5B", lambda: native(in_dim=48) | {"head.head.weight": torch.zeros(192, 256)}, ("TI2V 5B", "48 out", STOCK)),
    ("Wan2.1 control", lambda: native(in_dim=48), ("Wan2.1 Fun-Control", "48 channels in", STOCK)),
    ("Wan2.2 control", lambda: native(in_dim=52), ("Wan2.2 Fun-Control", STOCK)),
    ("odd channels", lambda: native(in_dim=17), ("another Wan variant (17 channels in", STOCK)),
    ("other patch", lambda: native() | {"patch_embedding.weight": torch.zeros(256, 16, 2, 2, 2)}, ("16, 2, 2, 2]",)),
    ("odd width", lambda: native(dim=192, num_layers=1), ("multiple of 128, came 192",)),
    ("no width", lambda: make() | {"patch_embedding.weight": torch.zeros(0, 64)}, ("came 0",)),
    ("diffusers", diffusers, ("diffusers layout", "single-file version")),
    ("LoRA", lora, ("a LoRA", "models/loras", "LoraLoaderModelOnly")),
    ("LoRA, kohya names", lambda: zeros("lora_unet_blocks_0_self_attn_q.lora_down.weight"), ("a LoRA",)),
    ("VAE", tiny.tiny_vae_tensors, ("a VAE", "models/vae", "Load VAE")),
    ("umT5", lambda: zeros(f"{UMT5}.weight", "shared.weight"), ("text encoder", "models/text_encoders", "Load CLIP")),
    ("umT5 fp8_scaled", lambda: zeros(f"{UMT5}.scale_weight", "scaled_fp8"), ("text encoder", "Load CLIP")),
    ("umT5, Wan's own", lambda: zeros("token_embedding.weight", "blocks.0.attn.q.weight"), ("text encoder",)),
    ("CLIP vision", lambda: zeros("vision_model.post_layernorm.weight"), ("CLIP vision", "Load CLIP Vision")),
    ("Flux", lambda: zeros("double_blocks.0.img_attn.qkv.weight"), ("Wan video model, came another", "double_blocks")),
    ("SD", lambda: zeros("model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.decoder.conv_in.weight"),
     ("Wan video model, came another",)),
    ("unknown prefix", lambda: {f"student.{k}": v for k, v in make(num_layers=1).items()}, ("“student.”", "“net.”")),
]  # fmt: skip


@pytest.mark.parametrize(("tensors", "parts"), [case[1:] for case in FOREIGN], ids=[case[0] for case in FOREIGN])
def test_other_model(tmp_path: Path, tensors: Callable[[], Tensors], parts: tuple[str, ...]) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        read(tmp_path, tensors())
    check_message(str(caught.value), parts)


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "net."])
def test_other_model_behind_a_prefix(tmp_path: Path, prefix: str) -> None:
    with pytest.raises(UnsupportedModelError, match="VACE"):
        read(tmp_path, {prefix + name: tensor for name, tensor in (native() | zeros("vace_blocks.0.x")).items()})


def without(tensors: Tensors, *starts: str) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(starts)}


def filled(tensors: Tensors, name: str, value: float) -> Tensors:
    damaged = tensors[name].clone()
    damaged.view(-1)[-1] = value
    return tensors | {name: damaged}


def half_quantized() -> Tensors:
    layer = "blocks.1.ffn.0"
    return without(quant(), f"{layer}.int8_weight", f"{layer}.scale") | {f"{layer}.weight": torch.zeros(384, 256)}


PROJ_L = "self_attn.attn_op.local_attn.proj_l"
NAN, INF = float("nan"), float("inf")
DAMAGED: list[tuple[str, Callable[[], Tensors], tuple[str, ...]]] = [
    ("one key missing", lambda: without(make(), f"{Q}.bias"), (f"1 are missing: {Q}.bias", "incomplete")),
    ("no head", lambda: without(make(), "head."), ("head.modulation, head.head.weight", "incomplete")),
    ("no patch embedding", lambda: without(make(), "patch_embedding"), ("missing: patch_embedding.weight",)),
    ("no text embedding", lambda: without(make(), "text_embedding.2"), ("2 are missing: text_embedding.2.weight",)),
    ("a block missing", lambda: without(make(num_layers=3), "blocks.1."),
     ("29 are missing", "and 21 more", "(blocks 1 are missing entirely)")),
    ("first block missing", lambda: without(make(num_layers=3), "blocks.0."), ("blocks 0 are missing entirely",)),
    ("first block of a quantized file missing", lambda: without(quant(), "blocks.0."),
     ("missing: blocks.0.ffn.0.int8_weight", "incomplete")),
    ("nonsensical block", lambda: make() | zeros("blocks.999999999999.x"), ("are missing: blocks.2.modulation",)),
    ("no blocks", lambda: without(make(), "blocks."), ("missing: blocks.0.ffn.0.weight",)),
    ("proj_l in one block only", lambda: without(make(), f"blocks.1.{PROJ_L}"), ("blocks.1.self_attn.proj_l.weight",)),
    ("scale missing", lambda: without(quant(), f"{Q}.scale"), ("missing: blocks.0.self_attn.q.scale",)),
    ("partly quantized", half_quantized, ("partly quantized", "blocks.1.ffn.0.weight", "--int8")),
    ("an unknown key", lambda: make() | zeros("mystery.weight"), ("1 unknown keys came: mystery.weight", STOCK)),
    ("many unknown keys", lambda: make() | zeros(*(f"m{i}" for i in range(11))), ("11 unknown", "and 3 more")),
    ("dense and int8 at once", lambda: quant() | {f"{Q}.weight": torch.zeros(256, 256)}, (f"came: {Q}.weight",)),
    ("wrong shape", lambda: make() | {f"{Q}.weight": torch.zeros(256, 128)}, (f"{Q}.weight must be [256, 256], came",)),
    ("wrong width of one block", lambda: make() | {"blocks.1.modulation": torch.zeros(1, 6, 128)}, ("[1, 6, 256]",)),
    ("wrong rank", lambda: make() | {"head.modulation": torch.zeros(256)}, ("must have 3 dimensions", "[256]")),
    ("double precision", lambda: make() | {f"{Q}.bias": torch.zeros(256).double()}, ("came float64",)),
    ("codes as uint8", lambda: quant() | {f"{Q}.int8_weight": torch.zeros(256, 256, dtype=torch.uint8)},
     (f"{Q}.int8_weight must be int8, came uint8", "int8 of other tools")),
    ("codes as floats", lambda: quant() | {f"{Q}.int8_weight": torch.zeros(256, 256)}, ("came float32",)),
    ("scale in bf16", lambda: quant() | {f"{Q}.scale": torch.ones(2, 2).bfloat16()}, ("float32, came bfloat16",)),
    ("scale per row", lambda: quant() | {f"{Q}.scale": torch.ones(256, 1)}, ("must be [2, 2], came [256, 1]",)),
    ("scale of one value", lambda: quant() | {f"{Q}.scale": torch.ones(())}, ("came []", "convert --int8")),
    ("NaN in a scale", lambda: filled(quant(), f"{Q}.scale", NAN), (f"{Q}.scale", "1 of its 4 values are NaN")),
    ("infinity in a scale", lambda: filled(quant(), f"{Q}.scale", INF), ("NaN or infinite", "download")),
    ("zero scale", lambda: filled(quant(), f"{Q}.scale", 0.0), ("must be positive", "smallest value is 0")),
    ("negative scale", lambda: filled(quant(), f"{Q}.scale", -1.0), ("must be positive", "-1", "damaged")),
    ("NaN in a norm", lambda: filled(make(), "blocks.1.norm3.weight", NAN), ("blocks.1.norm3.weight", "damaged")),
    ("NaN in a q norm", lambda: filled(make(), "blocks.0.self_attn.norm_q.weight", NAN), ("norm_q.weight",)),
    ("infinity in a bias", lambda: filled(make(), f"{Q}.bias", INF), (f"{Q}.bias", "download it again")),
    ("NaN in a modulation", lambda: filled(make(), "blocks.0.modulation", NAN), ("blocks.0.modulation",)),
    ("NaN in the head's modulation", lambda: filled(make(), "head.modulation", NAN), ("head.modulation",)),
    ("NaN in proj_l", lambda: filled(make(), f"blocks.1.{PROJ_L}.weight", NAN), ("self_attn.proj_l.weight",)),
]  # fmt: skip


@pytest.mark.parametrize(("tensors", "parts"), [case[1:] for case in DAMAGED], ids=[case[0] for case in DAMAGED])
def test_damaged_model(tmp_path: Path, tensors: Callable[[], Tensors], parts: tuple[str, ...]) -> None:
    with pytest.raises(CheckpointError) as caught:
        read(tmp_path, tensors())
    check_message(str(caught.value), parts)
    assert not isinstance(caught.value, UnsupportedModelError)


def test_a_shard_is_called_one(tmp_path: Path) -> None:
    shard = without(native(), "head.", "text_embedding.", "blocks.1.")
    with pytest.raises(CheckpointError, match="one part of a sharded model: take a single-file version"):
        read(tmp_path, shard, "diffusion_pytorch_model-00001-of-00006.safetensors")


def test_sparse_tensor_is_refused(tmp_path: Path) -> None:
    tensors = make() | {f"{Q}.weight": torch.zeros(256, 256, dtype=torch.bfloat16).to_sparse()}
    torch.save(tensors, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"must be a plain tensor with data, came torch\.sparse_coo"):
        checkpoint.read(tmp_path / "a.pth")


def test_big_weights_are_not_read_for_their_values(tmp_path: Path) -> None:
    tensors = make(dim=384)  # 384 · 384 elements are above the limit
    read(tmp_path, filled(tensors, f"{Q}.weight", NAN))


def check_message(message: str, parts: tuple[str, ...]) -> None:
    assert message.startswith("checkpoint: ")
    assert "model.safetensors" in message
    assert "; " in message, "no remedy"
    for part in parts:
        assert part in message, message
