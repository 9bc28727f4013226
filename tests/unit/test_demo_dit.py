"""The training of the demo's transformer, at toy size: what is trained is what runs, each stage learns and resumes."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from tolerances import SAME_MATHS_FP32, relative_error

from turbowan.demo import dataset, distil, initial, muon, paths, text_encoder, train_dit, vae_network
from turbowan.demo.differentiable import PROMPT_TOKENS, Prompts, Velocity, trainable
from turbowan.demo.export_dit import export
from turbowan.demo.regression import recorded, regression
from turbowan.demo.stage import Settings
from turbowan.demo.vocabulary import TRAINED
from turbowan.turbo_core.attention import AttentionSettings
from turbowan.turbo_core.block_int8 import dequantize_tensors
from turbowan.turbo_core.checkpoint import read
from turbowan.turbo_core.model import TurboWan
from turbowan.turbo_core.rcm import round_timestep, schedule
from turbowan.turbo_core.text_encoder import TextEncoder

CPU = torch.device("cpu")
SIDE, FRAMES = 32, 9
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def fp32_products():
    """A stage lets the process round fp32 products to TF32, which no other test is to inherit."""
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict:
    """A text encoder and an untrained VAE."""
    folder = tmp_path_factory.mktemp("demo")
    save_file(text_encoder.tensors(), folder / "umt5.safetensors")
    vae = vae_network.new_vae(4, torch.Generator().manual_seed(0))
    save_file({name: t.detach().contiguous() for name, t in vae.state_dict().items()}, folder / "vae.safetensors")
    return {"text_encoder": folder / "umt5.safetensors", "vae": folder / "vae.safetensors"}


@pytest.fixture
def model(generator) -> TurboWan:
    """The demo's model, away from where it starts: every parameter has a say."""
    model = TurboWan(initial.config(in_dim=16, text_dim=128))
    initial.initialize(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def states(generator: torch.Generator, count: int) -> torch.Tensor:
    out = torch.randn(count, dataset.ROWS, 128, generator=generator)
    for row, tokens in enumerate(range(5, 5 + count)):
        out[row, tokens:] = 0
    return out


@pytest.mark.parametrize(("topk", "shape"), [(1.0, (3, 6, 8)), (0.3, (7, 12, 10))])
def test_what_is_trained_is_what_runs(model, generator, topk, shape):
    model.attention = AttentionSettings(mode="sla", topk=topk)
    x, t = torch.randn(2, 16, *shape, generator=generator), torch.tensor([0.9877, 0.609])
    prompts = Prompts(states(generator, 2))
    with torch.no_grad():
        runs = model(x, round_timestep(1000 * t), prompts.padded())
        trained = Velocity(model, dtype=torch.float32, topk=topk)(x, t, prompts)
    assert prompts.padded().shape[1] == PROMPT_TOKENS
    assert relative_error(trained, runs) < SAME_MATHS_FP32


def test_every_parameter_gets_a_gradient(model, generator):
    trainable(model)
    x, t = torch.randn(1, 16, 7, 12, 10, generator=generator), torch.tensor([0.8])
    Velocity(model, dtype=torch.float32, topk=0.3)(x, t, Prompts(states(generator, 1))).square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.gpu
def test_a_recording_gives_loss_and_gradients_of_what_it_is_called_with(model, generator):
    device = torch.device("cuda")
    velocity = Velocity(trainable(model).to(device), dtype=torch.float32, topk=0.3)

    def inputs() -> tuple[torch.Tensor, ...]:
        x, target = torch.randn(2, 2, 16, 7, 12, 10, generator=generator).to(device)
        return x, torch.rand(2, generator=generator).to(device), states(generator, 2).to(device), target

    recording = recorded(velocity, inputs())
    for _ in range(2):
        called = inputs()
        wanted = regression(velocity, *called)
        gradients = torch.autograd.grad(wanted, list(model.parameters()))
        model.zero_grad()
        loss = recording(*called)
        loss.backward()
        assert relative_error(loss, wanted) < SAME_MATHS_FP32
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            assert relative_error(parameter.grad, gradient) < SAME_MATHS_FP32


@torch.no_grad()
def test_a_new_model_predicts_nothing_and_reads_no_padding(generator):
    model = TurboWan(initial.config(in_dim=16, text_dim=128))
    initial.initialize(model)
    x, t = torch.randn(1, 16, 3, 4, 4, generator=generator), torch.tensor([900.0])
    own = states(generator, 1)
    assert not model(x, t, Prompts(own).padded()).any()
    torch.nn.init.normal_(model.head.head.weight, generator=generator)
    whole, alone = model(x, t, Prompts(own).padded()), model(x, t, own[:, :5])
    assert relative_error(whole, alone) < 0.1
    assert relative_error(whole, model(x, t, torch.randn(1, 5, 128, generator=generator))) > 0.1


@pytest.mark.parametrize("shape", [(3, 48, 48), (2, 96, 32), (2, 32, 96)])
def test_muon_steps_along_singular_values_near_one(generator, shape):
    values = torch.linalg.svdvals(muon.orthogonal(torch.randn(shape, generator=generator)).float())
    assert values.median() > 0.6
    assert values.max() < 1.3


def test_muon_moves_every_parameter_by_its_rate(model):
    trainable(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    muon.Muon(model.named_parameters(), lr=1e-3).step()
    moved = {name: (p.detach() - before[name]).norm() for name, p in model.named_parameters()}
    assert min(moved.values()) > 0
    # A gradient of rank one: its direction with a singular value near one, times the rate.
    assert 0.5 < moved["blocks.0.self_attn.q.weight"] / (muon.MUON_RATE * 1e-3) < 1.5


def test_a_dataset_holds_what_its_captions_say(files, generator):
    vae = train_dit.from_tensors(load_file(files["vae"]))
    encoder = TextEncoder.open(files["text_encoder"])
    data = dataset.make(vae, encoder, 5, side=SIDE, frames=FRAMES, generator=generator, device=CPU, images=3)
    assert (len(data.latents), len(data.images)) == (5, 3)
    assert set(data.triples) <= set(TRAINED)
    assert torch.equal(data.latents[:3, :, 0], data.images[:, :, 0])  # both begin with the same frame
    assert not torch.equal(data.latents[:3, :, 1], data.images[:, :, 1])
    drawn = dataset.draw_batch(data, 64, generator, nothing=0.5, images=0.25)
    empty = (drawn.prompts.states == data.nothing).all(-1).all(-1)
    assert 10 < empty.sum() < 54
    assert drawn.condition.shape == (64, 20, 3, 4, 4)
    assert drawn.condition[:16, :4, 0].eq(1).all()
    assert not drawn.condition[:16, :4, 1:].any()
    assert torch.equal(drawn.condition[:16, 4:, 0], drawn.latents[:16, :, 0])
    assert not drawn.condition[16:].any()
    assert dataset.draw_batch(data, 2, generator, nothing=0).condition is None


def test_times_of_an_expert_stay_in_its_range(generator):
    t = train_dit.SPANS["high"].draw(1000, generator)
    assert t.min() >= 0.9
    assert t.max() <= 1
    assert train_dit.SPANS[None].draw(1000, generator).median() > 0.7


def course(files: dict, **changes) -> train_dit.Course:
    return train_dit.Course(side=SIDE, frames=FRAMES, clips=4, batch=2, previews=0, **files, **changes)


def settings(state, steps: int, **changes) -> Settings:
    return Settings(state=state, steps=steps, minutes=5, rate=1e-3, warmup=1, device="cpu", slim=True, **changes)


def test_a_stage_learns_goes_on_and_becomes_image_to_video(files, tmp_path):
    state, both = tmp_path / "small.safetensors", tmp_path / "full.safetensors"
    train_dit.train(settings(state, 3), course(files))
    stage = train_dit.train(settings(state, 5), course(files))
    assert stage.step == 5
    assert stage.averaged()["head.head.weight"].any()
    train_dit.train(settings(both, 2), course(files, start=state, topk=0.5, images=0.5, image_clips=2))
    train_dit.train_pair(settings(tmp_path / "i2v.safetensors", 2), course(files, start=both, topk=0.5))
    start = train_dit.averaged(state)["patch_embedding.weight"]
    for name in ("full", "i2v_high", "i2v_low"):
        patch = train_dit.averaged(tmp_path / f"{name}.safetensors")["patch_embedding.weight"]
        assert patch.shape[1] == 36
        assert patch[:, 16:].any()
        assert relative_error(patch[:, :16], start) < 0.3
    cut = train_dit.new_model(16, both, "cpu").state_dict()["patch_embedding.weight"]
    assert torch.equal(cut, train_dit.averaged(both)["patch_embedding.weight"][:, :16])


def test_loss_falls(files, tmp_path):
    losses = []
    for steps in (1, 25):
        state = tmp_path / f"{steps}.safetensors"
        stage = train_dit.train(settings(state, steps, average=0.5), course(files))
        vae, encoder = train_dit.from_tensors(load_file(files["vae"])), TextEncoder.open(files["text_encoder"])
        data = dataset.make(
            vae, encoder, 4, side=SIDE, frames=FRAMES, generator=torch.Generator().manual_seed(0), device=CPU
        )
        noise = torch.randn(data.latents.shape, generator=torch.Generator().manual_seed(5))
        drawn = dataset.Drawn(data.latents, Prompts(data.states[:, 0]), None)
        t = torch.full((4,), 0.8)
        x, target = train_dit.noised(drawn, t, noise, torch.float32)
        with torch.no_grad():
            v = Velocity(stage.model, dtype=torch.float32)(x, t, drawn.prompts)
        losses.append((v - target).square().mean().item())
    assert losses[1] < 0.8 * losses[0]


def test_the_teachers_times_hold_the_schedule():
    nodes = schedule(4, 80.0).tolist()
    for first in range(4):
        times = paths.ode_times(80.0, first)
        assert times[0] == nodes[first]
        assert times == sorted(times, reverse=True)
        assert all(min(abs(t - node) for t in times) < 1e-12 for node in nodes[first:])


def test_the_ode_of_a_straight_way_ends_at_its_end(generator):
    x0, noise = torch.randn(2, 1, 16, 3, 4, 4, generator=generator)
    times = paths.ode_times(80.0)
    start = (1 - times[0]) * x0 + times[0] * noise
    end = paths.ode(lambda x, t: noise - x0, start, times)[-1]
    assert relative_error(end, x0) < SAME_MATHS_FP32
    four = paths.few_steps(lambda x, t: (x - x0) / t, noise, 4, 80.0, stochastic=True, generator=generator)
    assert relative_error(four, x0) < SAME_MATHS_FP32


def test_distillation_makes_pairs_and_learns(files, tmp_path):
    start = tmp_path / "full.safetensors"
    train_dit.train(settings(start, 3, average=0.5), course(files))
    student = distil.Course(
        start=start,
        side=SIDE,
        frames=FRAMES,
        topk=0.5,
        batch=4,
        at_once=2,
        rounds=5,
        steps_of_round=2,
        previews=0,
        **files,
    )
    state = tmp_path / "t2v.safetensors"
    distil.train(settings(state, 2), student)
    stage = distil.train(settings(state, 4), student)
    assert stage.step == 4
    moved = relative_error(stage.averaged()["head.head.weight"], train_dit.averaged(start)["head.head.weight"])
    assert moved > 0


@pytest.mark.parametrize(("number", "first"), [(0, 0), (3, 2)])
def test_a_pair_leads_to_where_the_teacher_ends(files, generator, number, first):
    """With guidance 1 and a field that always points at one x0, every pair does."""
    x0 = torch.randn(1, 16, 3, 4, 4, generator=generator)

    def field(x, t, prompts):
        return (x.float() - x0) / t.view(-1, 1, 1, 1, 1)

    field.dtype = torch.float32
    course = distil.Course(start=files["vae"], side=SIDE, frames=FRAMES, at_once=2, guidance=1.0)
    rounds = distil.Rounds(field, field, states(generator, 3), torch.zeros(16, 128), course, CPU)
    rounds._made = number
    x, t, read, target = rounds.make(generator)
    assert len(x) == len(t) == len(read) == len(target) == (12 if first == 0 else 2)
    assert t[-1] == schedule(4, 80.0)[3 if first == 0 else first].float()
    assert relative_error(x - t.view(-1, 1, 1, 1, 1) * target, x0.expand_as(x)) < SAME_MATHS_FP32


@pytest.mark.parametrize(("name", "expert"), [("t2v-quant.pth", None), ("high.safetensors", "high")])
def test_an_exported_file_is_recognised(tmp_path, name, expert):
    model = TurboWan(initial.config(in_dim=36 if expert else 16, text_dim=128))
    initial.initialize(model)
    state = tmp_path / "state.safetensors"
    save_file({f"average.{key}": value for key, value in model.state_dict().items()}, state)
    checkpoint = export(state, tmp_path / name, expert)
    config = checkpoint.config
    assert (config.quantized, config.has_proj_l, config.family) == (True, True, "i2v" if expert else "t2v")
    assert checkpoint.expert == expert
    assert checkpoint.turbodiffusion
    assert read(tmp_path / name).config == config
    weights = dequantize_tensors(checkpoint.tensors, torch.float32)
    assert relative_error(weights["blocks.1.ffn.0.weight"], model.state_dict()["blocks.1.ffn.0.weight"]) < 0.02
    if name.endswith(".pth"):
        raw = torch.load(tmp_path / name, weights_only=True)
        assert raw["patch_embedding.weight"].ndim == 2
        assert "blocks.0.self_attn.attn_op.local_attn.proj_l.weight" in raw
