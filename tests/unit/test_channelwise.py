"""Codes with a scale per output channel, from files to forwards."""

import re

import pytest
import tiny
import torch
from tolerances import (
    DEQUANTIZED,
    INT8_NETWORK,
    SAME_MATHS_FP32,
    SQNR_CHANNEL_MODEL_DB,
    SQNR_ROW_CODES_DB,
    relative_error,
    sqnr_db,
)

from turbowan.kernels import channel_fp8, channel_int8, dispatch
from turbowan.kernels.row_codes import RowCodes, quantize_rows_ref
from turbowan.turbo_core import channelwise, checkpoint
from turbowan.turbo_core.attention import AttentionSettings
from turbowan.turbo_core.errors import CheckpointError
from turbowan.turbo_core.layers import Activation, Linear
from turbowan.turbo_core.model import TurboWan

CPU = torch.device("cpu")
DTYPES = [torch.int8, torch.float8_e4m3fn]


def read(tmp_path, **options):
    return checkpoint.read(tiny.save_pth(tmp_path / "model.pth", tiny.tiny_tensors(**options)))


def network(config, tensors):
    net = TurboWan(config, device="meta")
    net.load(tensors)
    net.attention = AttentionSettings(mode="sla", topk=0.4)
    return net


def inputs(dtype=torch.float32, device=CPU):
    generator = torch.Generator().manual_seed(0)
    latent, context = (torch.randn(shape, generator=generator) for shape in ((1, 16, 3, 6, 10), (1, 32, 4096)))
    return latent.to(device, dtype), torch.tensor([988.0], device=device), context.to(device, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_linear_of_the_blocks_is_rounded_and_nothing_else(tmp_path, dtype):
    source = read(tmp_path)
    coded, noise = channelwise.to_row_codes(source.tensors, dtype, CPU)
    name = {torch.int8: "int8_weight", torch.float8_e4m3fn: "fp8_weight"}[dtype]
    layers = [key.removesuffix(f".{name}") for key in coded if key.endswith(f".{name}")]
    assert len(layers) == 2 * 10
    assert set(noise.db) == set(layers)
    for layer in layers:
        weight = source.tensors[f"{layer}.weight"].float()
        codes, scale = coded[f"{layer}.{name}"], coded[f"{layer}.scale"]
        assert codes.dtype == dtype
        restored = RowCodes(codes, scale).dequantize(torch.float32)
        assert sqnr_db(restored, weight) > SQNR_ROW_CODES_DB[dtype]
        assert noise.db[layer] == pytest.approx(sqnr_db(restored, weight), abs=0.01)
    for key in coded.keys() & source.tensors.keys():
        assert coded[key] is source.tensors[key]
    assert len(coded) == len(source.tensors) + len(layers)


def test_block_codes_are_rounded_from_the_weights_they_stand_for(tmp_path):
    """More rows than are taken at once, in blocks and a part of one."""
    generator = torch.Generator().manual_seed(0)
    rows = channelwise.ROWS_AT_ONCE + 200
    codes, scale = tiny.quantize_block(torch.randn(rows, 256, generator=generator))
    file = {"blocks.0.ffn.0.int8_weight": codes, "blocks.0.ffn.0.scale": scale}
    coded, noise = channelwise.to_row_codes(file, torch.int8, CPU)
    wanted = quantize_rows_ref(tiny.dequantize_block(codes, scale), torch.int8)
    assert torch.equal(coded["blocks.0.ffn.0.int8_weight"], wanted.codes)
    assert torch.equal(coded["blocks.0.ffn.0.scale"], wanted.scale)
    assert 38 < noise.db["blocks.0.ffn.0"] < 60


def test_the_noise_names_the_worst_layer_and_the_median():
    text = str(channelwise.WeightNoise({"a": 41.0, "b": 38.04, "c": 42.0}))
    assert text == "signal-to-noise ratio of the weights 41.0 dB (median of 3 layers), 38.0 dB (lowest: b)"


def test_progress_counts_layers(tmp_path):
    calls = []
    channelwise.to_row_codes(read(tmp_path).tensors, torch.int8, CPU, lambda done, total: calls.append((done, total)))
    assert calls == [(done, 20) for done in range(1, 21)]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_weight_that_is_not_finite_is_refused(tmp_path, dtype, value):
    tensors = dict(read(tmp_path).tensors)
    tensors["blocks.1.ffn.2.weight"] = tensors["blocks.1.ffn.2.weight"].clone()
    tensors["blocks.1.ffn.2.weight"][200, 7] = value
    with pytest.raises(CheckpointError, match=re.escape("blocks.1.ffn.2.weight must be finite")):
        channelwise.to_row_codes(tensors, dtype, CPU)


@pytest.mark.parametrize("quantized", [False, True], ids=["dense", "block-int8"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@torch.inference_mode()
def test_a_forward_stays_near_the_one_of_its_file(tmp_path, dtype, quantized):
    """Without kernels the codes are dequantized: their rounding alone parts the two."""
    source = read(tmp_path, quantized=quantized, dtype=torch.float32)
    coded, _ = channelwise.to_row_codes(source.tensors, dtype, CPU)
    reference = network(source.config, source.tensors)(*inputs())
    out = network(source.config, coded)(*inputs())
    assert SQNR_CHANNEL_MODEL_DB[dtype] < sqnr_db(out, reference) < 60


def test_state_dict_returns_what_was_loaded(tmp_path):
    source = read(tmp_path)
    for dtype in DTYPES:
        coded, _ = channelwise.to_row_codes(source.tensors, dtype, CPU)
        saved = network(source.config, coded).state_dict()
        assert saved.keys() == coded.keys()
        assert all(torch.equal(saved[name].float(), tensor.float()) for name, tensor in coded.items())


@pytest.mark.interpreter
@torch.inference_mode()
def test_every_kernel_together_equals_the_torch_path(tmp_path, monkeypatch, device):
    """int8 by the kernels in fp16: norms write rows of codes, the FFN's pass of GELU too."""
    source = read(tmp_path, dtype=torch.float32)
    coded, _ = channelwise.to_row_codes(source.tensors, torch.int8, CPU)
    net = network(source.config, coded).to(device)
    monkeypatch.setattr(dispatch, "triton_refusal", lambda *_: "the test asks for torch")
    reference = net(*inputs(device=device))
    monkeypatch.setattr(dispatch, "triton_refusal", lambda *_: None)
    calls = []
    linear = channel_int8.linear
    monkeypatch.setattr(channel_int8, "linear", lambda a, *rest, **named: calls.append(a) or linear(a, *rest, **named))
    out = net(*inputs(torch.float16, device))
    assert len(calls) == 2 * 10
    # A block's q, k, v read one set of codes; all blocks' cross-attention k and v another, the text's.
    assert len({id(a.codes) for a in calls}) == 2 * 6 + 1
    assert relative_error(out, reference) < INT8_NETWORK


@pytest.mark.gpu
@torch.inference_mode()
def test_fp8_layers_by_torch_stay_near_their_dequantized_weights(tmp_path, monkeypatch, device):
    reason = channel_fp8.scaled_mm_refusal(device)
    if reason is not None:
        pytest.skip(reason)
    source = read(tmp_path)
    coded, _ = channelwise.to_row_codes(source.tensors, torch.float8_e4m3fn, device)
    net = network(source.config, coded).to(device)
    out = net(*inputs(torch.bfloat16, device))
    dense = network(source.config, source.tensors).to(device)(*inputs(torch.float32, device))
    assert sqnr_db(out, dense) > SQNR_CHANNEL_MODEL_DB[torch.float8_e4m3fn]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_layer_that_gets_codes_alone_can_still_run_dense(dtype, generator):
    """A LoRA-patched layer that the host streams is lent as a dense weight, whatever its neighbours expected."""
    x = torch.randn(2, 5, 256, generator=generator)
    layer = Linear(256, 128, dtype=torch.float32)
    layer.weight.data, layer.bias.data = torch.randn(128, 256, generator=generator) / 16, torch.zeros(128)
    out = layer(Activation.of_codes(quantize_rows_ref(x, dtype), x[..., :128]))
    assert out.shape == (2, 5, 128)
    assert relative_error(out, layer(x)) < (DEQUANTIZED if dtype == torch.int8 else 0.05) * 2


def test_columns_that_the_kernels_cannot_take_run_dequantized(generator):
    layer = Linear(192, 64, dtype=torch.float32)
    codes = quantize_rows_ref(torch.randn(64, 192, generator=generator), torch.int8)
    layer.load_state_dict({"int8_weight": codes.codes, "scale": codes.scale, "bias": torch.zeros(64)}, assign=True)
    x = torch.randn(2, 3, 192, generator=generator)
    assert layer.takes is None
    assert relative_error(layer(x), x @ codes.dequantize(torch.float32).T) < SAME_MATHS_FP32
