"""Prompts to conditioning: against umT5 written out, in every precision of the file, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import tiny_umt5
import torch
from safetensors.torch import save_file
from tolerances import SAME_MATHS_FP32, relative_error
from torch import Tensor

from turbowan.turbo_core import text_encoder
from turbowan.turbo_core.errors import CheckpointError, UnsupportedModelError
from turbowan.turbo_core.text_encoder import LENGTH, TextEncoder

pytest.importorskip("transformers")

CPU = torch.device("cpu")
PROMPTS = ["a red ball bouncing to the right", "two purple circles (large): 50% faster, over a dark background", ""]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_file(tiny_umt5.tiny_umt5_tensors(), tmp_path / "umt5.safetensors")
    return tmp_path / "umt5.safetensors"


def bucket(distance: int) -> int:
    """T5's buckets of relative positions: exact to 7, logarithmic to 127, one for the rest; 16 more ahead."""
    ahead, far = 16 if distance > 0 else 0, abs(distance)
    if far < 8:
        return ahead + far
    return ahead + min(15, 8 + int(math.log(far / 8) / math.log(128 / 8) * 8))


def umt5_ref(tensors: dict[str, Tensor], ids: list[int]) -> Tensor:
    """The encoder in fp64 over all 512 positions, with the padding masked, as the formula has it."""
    weights = {name: value.double() for name, value in tensors.items() if name != "spiece_model"}
    length = len(ids)
    mask = torch.full((LENGTH,), -math.inf, dtype=torch.float64)
    mask[:length] = 0
    buckets = torch.tensor([[bucket(key - query) for key in range(LENGTH)] for query in range(LENGTH)])
    x = weights["shared.weight"][torch.tensor(ids + [0] * (LENGTH - length))]

    def norm(x: Tensor, name: str) -> Tensor:
        return weights[name] * x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    layers = sum("wi_0" in name for name in weights)
    for index in range(layers):
        block = f"encoder.block.{index}.layer."
        own = f"{block}0.SelfAttention."
        bias = weights[own + "relative_attention_bias.weight"]
        heads = bias.shape[1]
        normed = norm(x, block + "0.layer_norm.weight")
        q, k, v = ((normed @ weights[f"{own}{part}.weight"].T).view(LENGTH, heads, -1) for part in "qkv")
        scores = torch.einsum("ihd,jhd->hij", q, k) + bias[buckets].permute(2, 0, 1) + mask
        out = torch.einsum("hij,jhd->ihd", scores.softmax(-1), v).flatten(1)
        x = x + out @ weights[own + "o.weight"].T
        ffn = f"{block}1.DenseReluDense."
        normed = norm(x, block + "1.layer_norm.weight")
        gate = torch.nn.functional.gelu(normed @ weights[ffn + "wi_0.weight"].T, approximate="tanh")
        x = x + (gate * (normed @ weights[ffn + "wi_1.weight"].T)) @ weights[ffn + "wo.weight"].T
    x = norm(x, "encoder.final_layer_norm.weight")
    x[length:] = 0
    return x[None]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_it_is_umt5(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = tiny_umt5.tiny_umt5_tensors(dtype=dtype)
    save_file(tensors, tmp_path / "umt5.safetensors")
    encoder = TextEncoder.open(tmp_path / "umt5.safetensors")
    for prompt, states in zip(PROMPTS, encoder.encode(PROMPTS, CPU), strict=True):
        tokens = encoder.tokens(prompt)
        assert tokens[-1] == 1
        assert states.dtype == torch.float32
        assert relative_error(states, umt5_ref(tensors, tokens)) < SAME_MATHS_FP32
        assert not states[:, len(tokens) :].any()


def test_scaled_fp8_stands_for_its_products(tmp_path: Path) -> None:
    scaled = tiny_umt5.tiny_umt5_tensors(scaled=True)
    dense = {
        name: value for name, value in scaled.items() if not name.endswith("scale_weight") and name != "scaled_fp8"
    }
    for name in scaled:
        if name.endswith("scale_weight"):
            weight = name.replace("scale_weight", "weight")
            dense[weight] = scaled[weight].float() * scaled[name]
    newer = {
        name.replace("scale_weight", "weight_scale"): value for name, value in scaled.items() if name != "scaled_fp8"
    }
    encoded = []
    for index, tensors in enumerate((scaled, newer, dense)):
        save_file(tensors, tmp_path / f"{index}.safetensors")
        encoded.append(TextEncoder.open(tmp_path / f"{index}.safetensors").encode(PROMPTS[:1], CPU)[0])
    assert torch.equal(encoded[0], encoded[1])
    assert relative_error(encoded[0], encoded[2]) < SAME_MATHS_FP32


def test_fp8_embeddings_are_picked_by_row(tmp_path: Path) -> None:
    tensors = tiny_umt5.tiny_umt5_tensors()
    rounded = tensors["shared.weight"].to(torch.float8_e4m3fn)
    save_file(tensors | {"shared.weight": rounded}, tmp_path / "a.safetensors")
    save_file(tensors | {"shared.weight": rounded.float()}, tmp_path / "b.safetensors")
    a, b = (TextEncoder.open(tmp_path / f"{name}.safetensors").encode(PROMPTS[:1], CPU)[0] for name in "ab")
    assert torch.equal(a, b)


def test_prompts_encoded_together_are_those_encoded_alone(path: Path) -> None:
    encoder = TextEncoder.open(path)
    together = encoder.encode(PROMPTS, CPU)
    for prompt, states in zip(PROMPTS, together, strict=True):
        assert states.shape == (1, LENGTH, 64)
        assert relative_error(states, encoder.encode([prompt], CPU)[0]) < SAME_MATHS_FP32
    assert encoder.encode([], CPU) == []


def test_more_prompts_than_fit_at_once_take_several_walks(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = TextEncoder.open(path)
    prompts = ["a red ball", "two purple circles over a dark background", "a", "b", "a green star " * 9]
    alone = [encoder.encode([prompt], CPU)[0] for prompt in prompts]
    monkeypatch.setattr(text_encoder, "TOKENS_AT_ONCE", 48)
    told: list[tuple[int, int]] = []
    groups = text_encoder._groups([len(encoder.tokens(prompt)) for prompt in prompts])
    assert len(groups) > 2
    for own, states in zip(
        alone, encoder.encode(prompts, CPU, progress=lambda done, total: told.append((done, total))), strict=True
    ):
        assert relative_error(states, own) < SAME_MATHS_FP32
    assert told == [(done, 2 * len(groups)) for done in range(1, 2 * len(groups) + 1)]


def test_a_long_prompt_keeps_its_tokens(path: Path) -> None:
    encoder = TextEncoder.open(path)
    prompt = "a red ball bouncing, " * 80
    length = len(encoder.tokens(prompt))
    assert length > LENGTH
    assert encoder.encode([prompt], CPU)[0].shape == (1, length, 64)


def test_progress_and_cancelling(path: Path) -> None:
    encoder = TextEncoder.open(path)
    told: list[tuple[int, int]] = []
    encoder.encode(PROMPTS, CPU, progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 2), (2, 2)]

    def stop() -> None:
        if told:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encoder.encode(PROMPTS, CPU, interrupted=stop)
    told.clear()
    encoder.encode(PROMPTS, CPU)
    assert told == []


def test_weights_stay_in_the_file(path: Path) -> None:
    """What the network owns are norms and position biases; everything else is the mapped file."""
    encoder = TextEncoder.open(path)
    owned = [name for name, _ in encoder._network.named_parameters()]
    assert owned
    assert all("norm" in name or "relative" in name for name in owned)


def without(*names: str):
    return lambda tensors: {name: value for name, value in tensors.items() if name not in names}


BIAS_1 = "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (without("spiece_model"), CheckpointError, "must carry its sentencepiece model"),
        (without("encoder.final_layer_norm.weight"), CheckpointError, "1 are missing: encoder.final_layer_norm"),
        (without("shared.weight"), UnsupportedModelError, "must be umT5 in its own names, it lacks shared.weight"),
        (without(BIAS_1), UnsupportedModelError, "must be umT5, came T5"),
        (lambda t: t | {"lm_head.weight": torch.zeros(2, 2)}, UnsupportedModelError, "1 unknown keys came: lm_head"),
        (lambda t: t | {"encoder.final_layer_norm.weight": torch.zeros(3)}, CheckpointError, r"came \[3\] in float32"),
        (lambda t: t | {"shared.weight": torch.zeros(128, 64, dtype=torch.int8)}, CheckpointError, "came .* in int8"),
        (lambda t: t | {"spiece_model": torch.zeros(9, dtype=torch.uint8)}, CheckpointError, "sentencepiece model in"),
        (
            lambda t: t | {"encoder.block.0.layer.0.SelfAttention.q.scale_weight": torch.tensor(math.nan)},
            CheckpointError,
            "scale of encoder.block.0.* must be one finite number",
        ),
    ],
)  # fmt: skip
def test_refused_files(tmp_path: Path, change, kind: type[Exception], message: str) -> None:
    save_file(change(tiny_umt5.tiny_umt5_tensors()), tmp_path / "x.safetensors")
    with pytest.raises(kind, match=message):
        TextEncoder.open(tmp_path / "x.safetensors")


def test_a_damaged_weight_is_noticed(tmp_path: Path) -> None:
    tensors = tiny_umt5.tiny_umt5_tensors()
    tensors["encoder.block.0.layer.1.DenseReluDense.wo.weight"][0, 0] = math.nan
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="its states must be finite"):
        TextEncoder.open(tmp_path / "x.safetensors").encode(["a"], CPU)
