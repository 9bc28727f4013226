"""Tiny random checkpoints in the layouts of released files, and the tests' own block quantization.

The weights are scaled so that activations stay near 1 and every branch moves the output: gates, biases and
norm weights are all away from 0 and 1. Nothing here imports the package under test.

Block quantization, per 128x128 block: amax = max(|w|, 1e-8); code = clamp(round_half_even(w * 128 / amax),
-128, 127); scale = amax / 128.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

BLOCK = 128
HEAD_DIM = 128
OUT_DIM = 16
FREQ_DIM = 256
PATCH_AREA = 4
PROJ_L = "attn_op.local_attn.proj_l."
_QUANTIZED = re.compile(r"blocks\.\d+\.(self_attn|cross_attn|ffn)\.(q|k|v|o|0|2)\.weight")


def quantize_block(weight: Tensor) -> tuple[Tensor, Tensor]:
    """``weight [N, K]`` to codes ``[N, K] int8`` and scale ``[ceil(N/128), ceil(K/128)] fp32``."""
    weight = weight.float()
    codes = torch.empty(weight.shape, dtype=torch.int8)
    rows, columns = (-(-size // BLOCK) for size in weight.shape)
    scale = torch.empty(rows, columns)
    for i in range(rows):
        for j in range(columns):
            area = slice(i * BLOCK, (i + 1) * BLOCK), slice(j * BLOCK, (j + 1) * BLOCK)
            amax = weight[area].abs().max().clamp(min=1e-8)
            codes[area] = (weight[area] * 128 / amax).round().clamp(-128, 127).to(torch.int8)
            scale[i, j] = amax / 128
    return codes, scale


def dequantize_block(codes: Tensor, scale: Tensor) -> Tensor:
    """Codes and scale back to fp32 ``[N, K]``."""
    rows, columns = codes.shape
    spread = scale.repeat_interleave(BLOCK, 0)[:rows].repeat_interleave(BLOCK, 1)[:, :columns]
    return codes.float() * spread.float()


def tiny_tensors(
    *,
    in_dim: int = 16,
    dim: int = 256,
    ffn_dim: int = 384,
    num_layers: int = 2,
    text_dim: int = 4096,
    quantized: bool = False,
    proj_l: bool = True,
    proj_l_dtype: torch.dtype | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.bfloat16,
) -> dict[str, Tensor]:
    """A released file: no prefix, 2-D patch embedding, ``X.int8_weight`` + ``X.scale`` where quantized."""
    generator = torch.Generator().manual_seed(seed)
    shapes = _shapes(in_dim, dim, ffn_dim, num_layers, text_dim, proj_l)
    tensors = {name: _fill(name, shape, generator).to(dtype) for name, shape in shapes}
    for name in list(tensors):
        if PROJ_L in name:
            tensors[name] = tensors[name].to(proj_l_dtype or dtype)
        elif quantized and _QUANTIZED.fullmatch(name):
            stem = name.removesuffix("weight")
            tensors[stem + "int8_weight"], tensors[stem + "scale"] = quantize_block(tensors.pop(name))
    return tensors


def native(tensors: dict[str, Tensor], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The same weights as a native Wan file: 5-D patch embedding, dequantized, without ``proj_l``."""
    dtype = dtype or tensors["patch_embedding.weight"].dtype
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if PROJ_L in name or name.endswith(".scale"):
            continue
        if name.endswith(".int8_weight"):
            stem = name.removesuffix("int8_weight")
            out[stem + "weight"] = dequantize_block(tensor, tensors[stem + "scale"]).to(dtype)
        elif name == "patch_embedding.weight":
            out[name] = tensor.reshape(tensor.shape[0], -1, 1, 2, 2).to(dtype)
        else:
            out[name] = tensor.to(dtype)
    return out


def training(tensors: dict[str, Tensor], *, wrapped: bool = False) -> dict[str, dict[str, Tensor]]:
    """The same weights as a training file: ``{"state_dict": {"net.…"}}``, blocks wrapped where asked."""
    inner = r"\1_checkpoint_wrapped_module." if wrapped else r"\1"
    return {"state_dict": {"net." + re.sub(r"^(blocks\.\d+\.)", inner, k): v for k, v in tensors.items()}}


def save_pth(path: Path | str, tensors: dict) -> Path:
    """Write a ``.pth`` as ``torch.save`` of released files does; parents are made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, path)
    return path


def tiny_lora(tensors: dict[str, Tensor], *, rank: int = 4, seed: int = 0, size: float = 0.5) -> dict:
    """A LoRA file over every attention and FFN Linear of the blocks; a delta is ``size`` times its weight."""
    generator = torch.Generator().manual_seed(seed)
    lora: dict[str, Tensor] = {}
    for name, weight in native(tensors).items():
        if not _QUANTIZED.fullmatch(name):
            continue
        rows, columns = weight.shape
        stem = "diffusion_model." + name.removesuffix(".weight")
        spread = size * weight.float().std() / rank**0.5
        lora[f"{stem}.lora_A.weight"] = torch.randn(rank, columns, generator=generator)
        lora[f"{stem}.lora_B.weight"] = torch.randn(rows, rank, generator=generator) * spread
    return lora


def merge_lora(weights: dict[str, Tensor], lora: dict[str, Tensor]) -> dict[str, Tensor]:
    """Native weights plus the LoRA's deltas at strength 1."""
    merged = dict(weights)
    for name in lora:
        if name.endswith(".lora_A.weight"):
            stem = name.removesuffix(".lora_A.weight")
            target = stem.removeprefix("diffusion_model.") + ".weight"
            delta = lora[f"{stem}.lora_B.weight"].float() @ lora[name].float()
            merged[target] = (merged[target].float() + delta).to(merged[target].dtype)
    return merged


def _shapes(
    in_dim: int, dim: int, ffn_dim: int, num_layers: int, text_dim: int, proj_l: bool
) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from _linear("patch_embedding", dim, in_dim * PATCH_AREA)
    yield from _linear("text_embedding.0", dim, text_dim)
    yield from _linear("text_embedding.2", dim, dim)
    yield from _linear("time_embedding.0", dim, FREQ_DIM)
    yield from _linear("time_embedding.2", dim, dim)
    yield from _linear("time_projection.1", 6 * dim, dim)
    for index in range(num_layers):
        block = f"blocks.{index}."
        yield block + "modulation", (1, 6, dim)
        for attention in ("self_attn.", "cross_attn."):
            for part in "qkvo":
                yield from _linear(block + attention + part, dim, dim)
            yield block + attention + "norm_q.weight", (dim,)
            yield block + attention + "norm_k.weight", (dim,)
        if proj_l:
            yield from _linear(block + "self_attn." + PROJ_L.removesuffix("."), HEAD_DIM, HEAD_DIM)
        yield block + "norm3.weight", (dim,)
        yield block + "norm3.bias", (dim,)
        yield from _linear(block + "ffn.0", ffn_dim, dim)
        yield from _linear(block + "ffn.2", dim, ffn_dim)
    yield "head.modulation", (1, 2, dim)
    yield from _linear("head.head", OUT_DIM * PATCH_AREA, dim)


def _linear(name: str, rows: int, columns: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield name + ".weight", (rows, columns)
    yield name + ".bias", (rows,)


def _fill(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    noise = torch.randn(shape, generator=generator)
    if "norm" in name and name.endswith("weight"):
        return 1 + 0.2 * noise
    if name.endswith("modulation"):
        return 0.3 + 0.3 * noise
    if name.endswith("bias"):
        return 0.1 * noise
    if "proj_l" in name:
        return 3 * noise / shape[1] ** 0.5
    if name.startswith("time_projection"):
        return 0.5 * noise / shape[1] ** 0.5
    return noise / shape[1] ** 0.5


def tiny_vae_tensors(width: int = 8, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict:
    """A Wan 2.1 VAE in native keys (z 16, stride 4x8x8) whose levels have ``width`` x 1, 2, 4, 4 channels."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for name, shape in [*_vae_encoder(width), *_vae_decoder(width)]:
        noise = torch.randn(shape, generator=generator)
        if name.endswith("gamma"):
            value = 1 + 0.1 * noise
        elif name.endswith("bias"):
            value = 0.1 * noise
        else:
            value = noise / (noise[0].numel() ** 0.5)
        tensors[name] = value.to(dtype)
    return tensors


_Shapes = Iterator[tuple[str, tuple[int, ...]]]


def _conv(name: str, out_dim: int, in_dim: int, *kernel: int) -> _Shapes:
    yield name + ".weight", (out_dim, in_dim, *kernel)
    yield name + ".bias", (out_dim,)


def _residual(name: str, in_dim: int, out_dim: int) -> _Shapes:
    yield f"{name}.residual.0.gamma", (in_dim, 1, 1, 1)
    yield from _conv(f"{name}.residual.2", out_dim, in_dim, 3, 3, 3)
    yield f"{name}.residual.3.gamma", (out_dim, 1, 1, 1)
    yield from _conv(f"{name}.residual.6", out_dim, out_dim, 3, 3, 3)
    if in_dim != out_dim:
        yield from _conv(f"{name}.shortcut", out_dim, in_dim, 1, 1, 1)


def _middle(name: str, dim: int) -> _Shapes:
    yield from _residual(f"{name}.0", dim, dim)
    yield f"{name}.1.norm.gamma", (dim, 1, 1)
    yield from _conv(f"{name}.1.to_qkv", 3 * dim, dim, 1, 1)
    yield from _conv(f"{name}.1.proj", dim, dim, 1, 1)
    yield from _residual(f"{name}.2", dim, dim)


def _head(name: str, dim: int, out_dim: int) -> _Shapes:
    yield f"{name}.0.gamma", (dim, 1, 1, 1)
    yield from _conv(f"{name}.2", out_dim, dim, 3, 3, 3)


def _vae_encoder(width: int) -> _Shapes:
    dims = [width, width, 2 * width, 4 * width, 4 * width]
    yield from _conv("encoder.conv1", dims[0], 3, 3, 3, 3)
    index = 0
    for level, (in_dim, out_dim) in enumerate(itertools.pairwise(dims)):
        for source in (in_dim, out_dim):
            yield from _residual(f"encoder.downsamples.{index}", source, out_dim)
            index += 1
        if level < 3:
            name = f"encoder.downsamples.{index}"
            yield from _conv(f"{name}.resample.1", out_dim, out_dim, 3, 3)
            if level > 0:
                yield from _conv(f"{name}.time_conv", out_dim, out_dim, 3, 1, 1)
            index += 1
    yield from _middle("encoder.middle", dims[-1])
    yield from _head("encoder.head", dims[-1], 2 * OUT_DIM)
    yield from _conv("conv1", 2 * OUT_DIM, 2 * OUT_DIM, 1, 1, 1)


def _vae_decoder(width: int) -> _Shapes:
    dims = [4 * width, 4 * width, 4 * width, 2 * width, width]
    yield from _conv("conv2", OUT_DIM, OUT_DIM, 1, 1, 1)
    yield from _conv("decoder.conv1", dims[0], OUT_DIM, 3, 3, 3)
    yield from _middle("decoder.middle", dims[0])
    index = 0
    for level, (in_dim, out_dim) in enumerate(itertools.pairwise(dims)):
        source = in_dim if level == 0 else in_dim // 2
        for _ in range(3):
            yield from _residual(f"decoder.upsamples.{index}", source, out_dim)
            source, index = out_dim, index + 1
        if level < 3:
            name = f"decoder.upsamples.{index}"
            yield from _conv(f"{name}.resample.1", out_dim // 2, out_dim, 3, 3)
            if level < 2:
                yield from _conv(f"{name}.time_conv", 2 * out_dim, out_dim, 3, 1, 1)
            index += 1
    yield from _head("decoder.head", dims[-1], 3)
