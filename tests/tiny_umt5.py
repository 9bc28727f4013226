"""A tiny random umT5 as ComfyUI keeps it: one file with weights and a sentencepiece model, in each of its precisions.

Nothing here imports the package under test.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor

CORPUS = (
    "a red ball bouncing to the right", "a green triangle moves left over a dark background",
    "A blue square (rotating) in the middle: 50% faster, it's large", "Ein Fuchs läuft durch den Schnee",
    "the yellow star grows and shrinks; white background", "two purple circles", "0123456789 .,;:!?-()[]\"'",
)  # fmt: skip
BUCKETS = 32
FP8_MAX = 448.0


@cache
def spiece_model(vocabulary: int = 96) -> bytes:
    """A sentencepiece model with umT5's special tokens: padding 0, end of text 1, unknown 2."""
    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=model, vocab_size=vocabulary, hard_vocab_limit=False,
        character_coverage=1.0, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, byte_fallback=False, minloglevel=2,
    )  # fmt: skip
    return model.getvalue()


def tiny_umt5_tensors(
    *,
    dim: int = 64,
    ffn_dim: int = 96,
    num_heads: int = 4,
    head_dim: int = 8,
    num_layers: int = 2,
    seed: int = 0,
    dtype: torch.dtype = torch.float16,
    scaled: bool = False,
) -> dict[str, Tensor]:
    """Native names; ``scaled`` gives fp8 weights with ``scale_weight`` beside them and the marker ``scaled_fp8``."""
    generator = torch.Generator().manual_seed(seed)
    model = spiece_model()
    vocabulary = 128  # more than the tokenizer knows, as in the released files
    tensors: dict[str, Tensor] = {}
    for name, shape in _shapes(vocabulary, dim, ffn_dim, num_heads, num_heads * head_dim, num_layers):
        noise = torch.randn(shape, generator=generator)
        if "norm" in name:
            tensors[name] = (1 + 0.2 * noise).to(dtype)
        elif "relative" in name or name.startswith("shared"):
            tensors[name] = noise.to(dtype)
        elif scaled:
            weight = noise / shape[1] ** 0.5
            scale = weight.abs().max() / FP8_MAX
            tensors[name] = (weight / scale).to(torch.float8_e4m3fn)
            tensors[name.removesuffix("weight") + "scale_weight"] = scale
        else:
            tensors[name] = (noise / shape[1] ** 0.5).to(dtype)
    if scaled:
        tensors["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    tensors["spiece_model"] = torch.tensor(list(model), dtype=torch.uint8)
    return tensors


def _shapes(
    vocabulary: int, dim: int, ffn_dim: int, heads: int, inner: int, layers: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "shared.weight", (vocabulary, dim)
    for index in range(layers):
        attention = f"encoder.block.{index}.layer.0."
        for part in "qkv":
            yield f"{attention}SelfAttention.{part}.weight", (inner, dim)
        yield f"{attention}SelfAttention.o.weight", (dim, inner)
        yield f"{attention}SelfAttention.relative_attention_bias.weight", (BUCKETS, heads)
        yield f"{attention}layer_norm.weight", (dim,)
        ffn = f"encoder.block.{index}.layer.1."
        yield f"{ffn}DenseReluDense.wi_0.weight", (ffn_dim, dim)
        yield f"{ffn}DenseReluDense.wi_1.weight", (ffn_dim, dim)
        yield f"{ffn}DenseReluDense.wo.weight", (dim, ffn_dim)
        yield f"{ffn}layer_norm.weight", (dim,)
    yield "encoder.final_layer_norm.weight", (dim,)
