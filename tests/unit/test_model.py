import dataclasses
from typing import ClassVar

import pytest
import tiny
import torch
from tolerances import HALF_PRODUCTS, INT8_NETWORK, INT8_OUTPUT, SAME_MATHS_FP32, relative_error

from turbowan.kernels import block_int8, dispatch
from turbowan.turbo_core import attention, checkpoint, hooks, layers, model
from turbowan.turbo_core.attention import AttentionSettings
from turbowan.turbo_core.errors import CheckpointError, ConditioningError, LatentError
from turbowan.turbo_core.hooks import BlockInputs, Hooks
from turbowan.turbo_core.layers import Activation
from turbowan.turbo_core.model import TurboWan, sinusoid

DENSE = AttentionSettings(mode="dense")
SLA = AttentionSettings(mode="sla", topk=0.4)


def build(tmp_path, **options):
    source = checkpoint.read(tiny.save_pth(tmp_path / "model.pth", tiny.tiny_tensors(**options)))
    net = TurboWan(source.config, device="meta")
    net.load(source.tensors)
    return net


@pytest.fixture
def net(tmp_path):
    return build(tmp_path)


def inputs(batch=1, channels=16, size=(5, 6, 10), seed=0):
    generator = torch.Generator().manual_seed(seed)
    latent = torch.randn(batch, channels, *size, generator=generator)
    context = torch.randn(batch, 32, 4096, generator=generator)
    return latent, torch.tensor([988.0, 852.0, 608.0])[:batch], context


@torch.inference_mode()
def run(net, attention=SLA, hooks=None, **options):
    net.attention = attention
    return net(*inputs(**options), hooks=hooks or Hooks())


@pytest.mark.parametrize("attention", [DENSE, SLA], ids=["dense", "sla"])
def test_forward_gives_an_fp32_velocity(net, attention):
    out = run(net, attention)
    assert out.shape == (1, 16, 5, 6, 10)
    assert out.dtype == torch.float32
    assert 0.1 < out.std() < 10


def test_every_input_and_every_attention_mode_moves_the_output(net):
    latent, timestep, context = inputs()
    with torch.inference_mode():
        base = net(latent, timestep, context)
        for changed in (
            (latent + 0.1, timestep, context),
            (latent, timestep - 56, context),
            (latent, timestep, -context),
        ):
            assert relative_error(net(*changed), base) > 1e-3
    assert relative_error(run(net, DENSE), run(net, SLA)) > 1e-3


def test_image_to_video_reads_36_channels(tmp_path):
    net = build(tmp_path, in_dim=36)
    assert run(net, channels=36).shape == (1, 16, 5, 6, 10)


def test_samples_of_a_batch_do_not_mix(net):
    both = run(net, batch=2)
    latent, timestep, context = inputs(batch=2)
    with torch.inference_mode():
        alone = net(latent[1:], timestep[1:], context[1:])
    assert relative_error(both[1:], alone) < SAME_MATHS_FP32


def test_quantized_file_equals_its_dequantized_weights(tmp_path):
    options = {"quantized": True, "dtype": torch.float32}
    quantized = build(tmp_path, **options)
    dense = TurboWan(dataclasses.replace(quantized.config, quantized=False), device="meta")
    tensors = tiny.native(tiny.tiny_tensors(**options)) | {
        name: tensor for name, tensor in quantized.state_dict().items() if "proj_l" in name
    }
    dense.load(tensors)
    assert relative_error(run(quantized), run(dense)) < SAME_MATHS_FP32


def test_exact_rows_use_the_published_activation_quantization(tmp_path, monkeypatch):
    net = build(tmp_path, quantized=True)
    seen = []
    quantize = block_int8.quantize_activations
    monkeypatch.setattr(block_int8, "quantize_activations", lambda x, rows: seen.append(rows) or quantize(x, rows))
    plain = run(net)
    assert seen == []
    net.set_activation_rows(128)
    exact = run(net)
    assert set(seen) == {128}
    # q, k, v share one quantization: 6 a block; and all blocks' text keys and values share another.
    assert len(seen) == 2 * 6 + 1
    assert 1e-4 < relative_error(exact, plain) < 0.05


def test_state_dict_returns_what_was_loaded(tmp_path):
    for quantized in (False, True):
        net = build(tmp_path, quantized=quantized)
        loaded = checkpoint.read(tmp_path / "model.pth").tensors
        saved = net.state_dict()
        assert set(saved) == set(loaded)
        assert all(torch.equal(saved[name], tensor) for name, tensor in loaded.items())


def test_missing_and_unexpected_tensors_are_listed(net):
    tensors = dict(net.state_dict())
    del tensors["blocks.1.ffn.0.bias"]
    with pytest.raises(CheckpointError, match=r"1 missing \(blocks.1.ffn.0.bias\)"):
        TurboWan(net.config, device="meta").load(tensors)
    with pytest.raises(CheckpointError, match=r"1 unexpected \(img_emb.x\)"):
        TurboWan(net.config, device="meta").load(dict(net.state_dict()) | {"img_emb.x": torch.zeros(1)})


def test_codes_without_a_scale_are_missing_it(tmp_path):
    net = build(tmp_path, quantized=True)
    tensors = dict(net.state_dict())
    del tensors["blocks.0.ffn.0.scale"]
    with pytest.raises(CheckpointError, match=r"1 missing \(blocks.0.ffn.0.scale\)"):
        TurboWan(net.config, device="meta").load(tensors)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"latent": (1, 36, 5, 6, 10)}, LatentError, r"\[batch, 16, frames, height, width\].*EmptyHunyuanLatentVideo"),
        ({"latent": (1, 16, 5, 7, 10)}, LatentError, "divisible by 16"),
        ({"latent": (1, 16, 0, 6, 10)}, LatentError, "EmptyHunyuanLatentVideo"),
        ({"latent": (1, 16, 6, 10)}, LatentError, "EmptyHunyuanLatentVideo"),
        ({"context": (1, 32, 768)}, ConditioningError, "umT5-XXL"),
        ({"context": (2, 32, 4096)}, ConditioningError, r"\[1, tokens, 4096\]"),
        ({"context": (1, 0, 4096)}, ConditioningError, r"got \(1, 0, 4096\)"),
        ({"timestep": (1, 5)}, LatentError, "no per-frame timesteps"),
    ],
)
def test_wrong_shapes_say_what_must_hold(net, change, error, message):
    shapes = {"latent": (1, 16, 5, 6, 10), "timestep": (1,), "context": (1, 32, 4096)} | change
    with pytest.raises(error, match=message):
        net(*(torch.zeros(shape) for shape in shapes.values()))


def test_image_model_without_an_image_names_the_node(tmp_path):
    with pytest.raises(LatentError, match="TurboImageToVideo or WanImageToVideo"):
        build(tmp_path, in_dim=36)(*inputs(channels=16))


def test_sinusoid_is_cosines_then_sines():
    out = sinusoid(torch.tensor([988.0]), 256)
    angles = 988.0 * 10000 ** (-torch.arange(128, dtype=torch.float64) / 128)
    torch.testing.assert_close(out[0].double(), torch.cat((angles.cos(), angles.sin())), rtol=0, atol=1e-6)


class Recorder(Hooks):
    def __init__(self):
        self.calls = []

    def start(self, grid, block_count):
        self.calls.append(("start", grid, block_count))

    def interrupted(self):
        self.calls.append("interrupted")

    def block(self, index, run, inputs):
        self.calls.append(("block", index))
        return run(inputs)

    def after_block(self, index, x, latent, time):
        self.calls.append(("after", index, tuple(latent.shape), tuple(time.shape)))
        return x


def test_hooks_are_called_in_order_and_change_nothing_by_themselves(net):
    recorder = Recorder()
    assert torch.equal(run(net, hooks=recorder), run(net))
    places = [call for call in recorder.calls if call != "interrupted"]
    after = [("after", i, (1, 16, 5, 6, 10), (1, 256)) for i in range(2)]
    assert places == [("start", (5, 3, 5), 2), ("block", 0), after[0], ("block", 1), after[1]]
    assert recorder.calls.count("interrupted") >= 2 * 3


def test_a_block_can_be_skipped(net):
    class Skip(Hooks):
        def block(self, index: int, run, inputs: BlockInputs):
            return inputs.x if index == 1 else run(inputs)

    kept = {name: tensor for name, tensor in net.state_dict().items() if not name.startswith("blocks.1.")}
    short = TurboWan(dataclasses.replace(net.config, num_layers=1), device="meta")
    short.load(kept)
    assert torch.equal(run(net, hooks=Skip()), run(short))


@pytest.mark.parametrize("place", ["cross_attention", "dense_attention"])
def test_attention_hooks_reach_the_result(net, place):
    class Double(Hooks):
        pass

    setattr(Double, place, lambda self, x, *rest: 2 * getattr(Hooks, place)(self, x, *rest))
    assert relative_error(run(net, DENSE, hooks=Double()), run(net, DENSE)) > 1e-3


class PatchedAttention(Hooks):
    """Changes self-attention's output, and remembers what it was given."""

    def __init__(self, factor):
        self.factor, self.seen = factor, []

    def self_attention_patch(self):
        def patch(out, q, k):
            self.seen.append((tuple(out.shape), tuple(q.shape), tuple(k.shape)))
            return out + self.factor * q.flatten(2)

        return patch


@pytest.mark.parametrize("attention", [SLA, DENSE], ids=["sla", "dense"])
def test_a_patch_of_self_attention_reaches_the_result(net, attention):
    hooks = PatchedAttention(0.2)
    assert relative_error(run(net, attention, hooks=hooks), run(net, attention)) > 1e-3
    length = 5 * 3 * 5
    assert hooks.seen == [((1, length, 256), (1, length, 2, 128), (1, length, 2, 128))] * 2


@pytest.mark.interpreter
@pytest.mark.parametrize("mode", ["sla", "sagesla"])
def test_a_patch_gets_a_tensor_where_codes_would_do(tmp_path, monkeypatch, device, mode):
    """With int8 weights the attention's output is codes alone, unless a patch wants it: both ways nearly agree."""
    net = build(tmp_path, quantized=True, dtype=torch.float32).to(device)
    net.attention = AttentionSettings(mode=mode, topk=0.4)
    latent, timestep, context = (tensor.to(device) for tensor in inputs(size=(3, 6, 10)))
    monkeypatch.setattr(dispatch, "triton_refusal", lambda *_: None)
    codes = []
    quantized = model.sparse_linear_attention_quantized
    monkeypatch.setattr(
        model, "sparse_linear_attention_quantized", lambda *args: codes.append(quantized(*args)) or codes[-1]
    )
    with torch.inference_mode():
        plain = net(latent.half(), timestep, context.half())
        assert len(codes) == 2
        hooks = PatchedAttention(0.0)
        unchanged = net(latent.half(), timestep, context.half(), hooks=hooks)
        assert len(codes) == len(hooks.seen) == 2
        moved = net(latent.half(), timestep, context.half(), hooks=PatchedAttention(0.2))
    assert relative_error(unchanged, plain) < INT8_OUTPUT
    assert relative_error(moved, plain) > INT8_OUTPUT


def test_interruption_leaves_within_a_block(net):
    class Stop(Hooks):
        calls = 0

        def interrupted(self):
            self.calls += 1
            if self.calls == 2:
                raise InterruptedError

    with pytest.raises(InterruptedError):
        run(net, hooks=Stop())


@pytest.mark.interpreter
@pytest.mark.parametrize("mode", ["sla", "sagesla", "dense"])
def test_every_kernel_together_equals_the_torch_path(tmp_path, monkeypatch, device, mode):
    """The whole network by the kernels (interpreted where there is no GPU) in fp16, quantized weights."""
    net = build(tmp_path, quantized=True, dtype=torch.float32).to(device)
    latent, timestep, context = (tensor.to(device) for tensor in inputs(size=(3, 6, 10)))
    net.attention = SLA if mode != "dense" else DENSE
    with torch.inference_mode():
        monkeypatch.setattr(dispatch, "triton_refusal", lambda *_: "the test asks for torch")
        reference = net(latent, timestep, context)
        monkeypatch.setattr(dispatch, "triton_refusal", lambda *_: None)
        net.attention = AttentionSettings(mode=mode, topk=0.4)
        out = net(latent.half(), timestep, context.half())
    # int8 activations alone move the result by about 0.01.
    assert relative_error(out, reference) < INT8_NETWORK


@pytest.mark.interpreter
def test_cross_attention_by_its_kernel_unless_a_host_replaces_it(tmp_path, monkeypatch, device):
    class Recording(Hooks):
        shapes: ClassVar[list] = []

        def dense_attention(self, q, k, v):
            self.shapes.append((tuple(q.shape), tuple(k.shape)))
            return attention.dense_attention(q, k, v)

    net = build(tmp_path, dtype=torch.float32).to(device)
    net.attention = SLA
    latent, timestep, context = (tensor.to(device) for tensor in inputs(size=(1, 4, 6)))
    context[:, 20:] = 0  # padded, as a prompt is
    monkeypatch.setattr(dispatch, "triton_refusal", lambda *_: None)
    monkeypatch.setattr(hooks, "dense_attention", lambda *_: pytest.fail("the kernel computes it"))
    with torch.inference_mode():
        fused = net(latent.half(), timestep, context.half())
        assert Recording.shapes == []
        replaced = net(latent.half(), timestep, context.half(), hooks=Recording())
    assert Recording.shapes == [((1, 6, 2, 128), (1, 32, 2, 128))] * 2
    assert relative_error(fused, replaced) < HALF_PRODUCTS[torch.float16]


@pytest.mark.interpreter
@pytest.mark.parametrize("room", [2**20, 0], ids=["one product", "apart"])
def test_layers_of_one_input_give_the_same_together(tmp_path, monkeypatch, device, room):
    attention = build(tmp_path, quantized=True, dtype=torch.float32).to(device).blocks[0].self_attn
    monkeypatch.setattr(dispatch, "triton_refusal", lambda *_: None)
    monkeypatch.setattr(layers, "TOGETHER_BYTES", room)
    calls = []
    linear = block_int8.linear
    monkeypatch.setattr(block_int8, "linear", lambda *args, **named: calls.append(args) or linear(*args, **named))
    projections = (attention.q, attention.k, attention.v)
    x = torch.randn(2, 33, 256, generator=torch.Generator().manual_seed(1)).to(device, torch.float16)
    with torch.inference_mode():
        together = layers.linear_together(projections, Activation(x))
        assert len(calls) == (1 if room else 3)
        for out, projection in zip(together, projections, strict=True):
            assert torch.equal(out, projection(x))


def test_an_activation_is_quantized_once_per_granularity(monkeypatch):
    calls = []
    monkeypatch.setattr(block_int8, "quantize_activations", lambda x, rows: calls.append(rows) or object())
    activation = Activation(torch.zeros(1, 1, 128))
    assert activation.quantized(1) is activation.quantized(1)
    activation.quantized(128)
    assert calls == [1, 128]
