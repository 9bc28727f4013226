"""Layers lend their weights one at a time, and what a host lends may be dense where its neighbours expect codes."""

from contextlib import contextmanager

import pytest
import tiny
import torch
from tolerances import INT8_LAYER, INT8_NETWORK, relative_error

from turbowan.kernels import block_int8, dispatch
from turbowan.turbo_core import channelwise, checkpoint
from turbowan.turbo_core.attention import AttentionSettings
from turbowan.turbo_core.errors import SettingsError
from turbowan.turbo_core.layers import Activation, Lending, Lent, Linear
from turbowan.turbo_core.model import TurboWan


def build(tmp_path):
    source = checkpoint.read(
        tiny.save_pth(tmp_path / "model.pth", tiny.tiny_tensors(quantized=True, dtype=torch.float32))
    )
    net = TurboWan(source.config, device="meta")
    net.load(source.tensors)
    return net


def inputs(size):
    generator = torch.Generator().manual_seed(0)
    latent, context = (torch.randn(shape, generator=generator) for shape in ((1, 16, *size), (1, 32, 4096)))
    return latent, torch.tensor([988.0]), context


def with_codes(net, codes):
    """The network with a scale for each block of its weights, or "rows": one for each output channel."""
    if codes == "blocks":
        return net
    tensors, _ = channelwise.to_row_codes(net.state_dict(), torch.int8, torch.device("cpu"))
    net = TurboWan(net.config, device="meta")
    net.load(tensors)
    return net


@pytest.mark.interpreter
@pytest.mark.parametrize("mode", ["sla", "sagesla", "dense"])
@pytest.mark.parametrize("kernels", [False, True], ids=["torch", "kernels"])
def test_layers_are_lent_one_at_a_time(tmp_path, monkeypatch, device, mode, kernels):
    """A host that streams weights has memory for one or two of them, which the next loan overwrites."""
    if mode == "sagesla" and not kernels:
        pytest.skip("sagesla is a kernel")
    net = build(tmp_path).to(device)
    net.attention = AttentionSettings(mode=mode, topk=0.4)
    lent = []

    def watched(layer):
        lend = layer.lend

        @contextmanager
        def once(x):
            assert not lent, f"{layer} is lent while {lent} still are"
            lent.append(layer)
            with lend(x) as loan:
                yield loan
            lent.pop()

        return once

    for module in net.modules():
        if isinstance(module, Lending):
            module.lend = watched(module)
    monkeypatch.setattr(dispatch, "triton_refusal", lambda *_: None if kernels else "the test asks for torch")
    latent, timestep, context = (tensor.to(device, torch.float16) for tensor in inputs((1, 4, 6)))
    with torch.inference_mode():
        net(latent, timestep, context)


@pytest.mark.interpreter
@pytest.mark.parametrize("codes", ["blocks", "rows"])
@pytest.mark.parametrize("dense", [("q", "o", "ffn.2"), ("k", "v", "ffn.0"), ("q", "k", "v", "o", "ffn.0", "ffn.2")])
def test_layers_that_a_lora_patches_while_they_are_streamed_run_dense(tmp_path, monkeypatch, device, codes, dense):
    """A host lends those dense, each in the same memory and once, whatever their neighbours made for them."""
    net = with_codes(build(tmp_path), codes).to(device)
    net.attention = AttentionSettings(mode="sla", topk=0.4)
    memory = torch.full((2**20,), torch.nan, device=device, dtype=torch.float16)
    taken = []

    def streamed(name, layer):
        lend = layer.lend

        @contextmanager
        def once(x):
            with lend(x) as loan:
                weight = loan.weight.dequantize(x.dtype)
                room = memory[: weight.numel()].view(weight.shape).copy_(weight)
                taken.append(name)
                yield Lent(room, loan.bias)
                memory.fill_(torch.nan)

        return once

    latent, timestep, context = (tensor.to(device) for tensor in inputs((3, 6, 10)))
    with torch.inference_mode():
        monkeypatch.setattr(dispatch, "triton_refusal", lambda *_: "the test asks for torch")
        reference = net(latent, timestep, context)
        monkeypatch.setattr(dispatch, "triton_refusal", lambda *_: None)
        for name, module in net.blocks.named_modules():
            if isinstance(module, Linear) and module.codes_format is not None and name.endswith(dense):
                module.lend = streamed(name, module)
        out = net(latent.half(), timestep, context.half())
    assert len(taken) == len(set(taken)) == 2 * sum(1 if name.startswith("ffn") else 2 for name in dense)
    assert relative_error(out, reference) < INT8_NETWORK


@pytest.mark.interpreter
@pytest.mark.parametrize("kernels", [False, True], ids=["torch", "kernels"])
@pytest.mark.parametrize("codes", ["blocks", "rows"])
def test_a_forward_that_a_host_put_in_front_is_called(tmp_path, monkeypatch, device, codes, kernels, generator):
    """ComfyUI's LoRA in bypass mode replaces a Linear's forward; it takes a tensor and adds to what comes out."""
    net = with_codes(build(tmp_path), codes).to(device)
    net.attention = AttentionSettings(mode="sla", topk=0.4)
    latent, timestep, context = (tensor.to(device) for tensor in inputs((1, 4, 6)))
    layers = {name: module for name, module in net.blocks.named_modules() if isinstance(module, Linear)}
    layers = {name: layer for name, layer in layers.items() if "proj_l" not in name}
    deltas = {name: torch.randn(layer.out_features, generator=generator).to(device) for name, layer in layers.items()}
    called = []

    def in_front(name, forward):
        def bypass(x):
            called.append(name)
            return forward(x) + deltas[name].to(x.dtype)

        return bypass

    with torch.inference_mode():
        monkeypatch.setattr(dispatch, "triton_refusal", lambda *_: "the test asks for torch")
        plain = net(latent, timestep, context)
        for name, layer in layers.items():
            layer.bias.data += deltas[name]
        reference = net(latent, timestep, context)
        monkeypatch.setattr(dispatch, "triton_refusal", lambda *_: None if kernels else "the test asks for torch")
        for name, layer in layers.items():
            layer.bias.data -= deltas[name]
            layer.forward = in_front(name, layer.forward)
        out = net(latent.half(), timestep, context.half())
        assert sorted(called) == sorted(layers)
        assert relative_error(out, reference) < INT8_NETWORK
        assert relative_error(plain, reference) > 10 * INT8_NETWORK
        for layer in layers.values():  # as ComfyUI takes it back
            layer.forward = Linear.forward.__get__(layer)
        assert not any(layer.replaced for layer in layers.values())


def test_a_forward_in_front_of_proj_l_is_refused(tmp_path):
    net = build(tmp_path)
    net.attention = AttentionSettings(mode="sla", topk=0.4)
    net.blocks[0].self_attn.proj_l.forward = lambda x: x
    with pytest.raises(SettingsError, match="load that LoRA with LoraLoaderModelOnly"):
        net(*inputs((1, 4, 6)))


def test_a_layer_that_gets_codes_alone_can_still_run_dense(generator):
    """A LoRA-patched layer that the host streams is lent as a dense weight, whatever its neighbours expected."""
    x = torch.randn(2, 5, 256, generator=generator)
    layer = Linear(256, 128, dtype=torch.float32)
    layer.weight.data, layer.bias.data = torch.randn(128, 256, generator=generator) / 16, torch.zeros(128)
    codes = block_int8.quantize_activations_ref(x)
    out = layer(Activation.of_codes(codes, x[..., :128]))
    assert out.shape == (2, 5, 128)
    assert relative_error(out, layer(x)) < INT8_LAYER


def test_linear_lends_dense_weights_in_the_input_dtype():
    layer = Linear(8, 4, dtype=torch.bfloat16)
    with layer.lend(torch.zeros(1, 8)) as lent:
        assert lent.weight.dtype == lent.bias.dtype == torch.float32
