"""Prompt to frames on tiny random models: the sampling written out, the experts' turns, cancelling, refusals."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest
import tiny_models
import torch
from PIL import Image
from tiny_models import TinyModels
from tolerances import MOVED, SAME_MATHS_FP32, relative_error
from torch import Tensor

from turbowan.turbo_core import checkpoint, rcm, start_image, vae, vae_weights
from turbowan.turbo_core.errors import CheckpointError, ConditioningError, LatentError, SettingsError
from turbowan.turbo_core.expert import Expert, NetworkSettings, working_bytes
from turbowan.turbo_core.model import TurboWan
from turbowan.turbo_core.pipeline import ModelFiles, Pipeline
from turbowan.turbo_core.request import Request
from turbowan.turbo_core.weight_file import open_weights

pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
WIDTH, HEIGHT, FRAMES = 64, 48, 9
REQUEST = Request(prompt="a red ball", size=(WIDTH, HEIGHT), frames=FRAMES, seed=3, steps=2)
LATENT = (1, 16, 3, HEIGHT // 8, WIDTH // 8)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    return tiny_models.write(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "first.png"
    Image.radial_gradient("L").resize((90, 60)).convert("RGB").save(path)
    return path


def text_to_video(models: TinyModels, **options) -> Pipeline:
    files = ModelFiles(network=models.t2v, vae=models.vae, text_encoder=models.text_encoder)
    return Pipeline(files, NetworkSettings(topk=0.4), CPU, **options)


def image_to_video(models: TinyModels, **changes: Path | None) -> Pipeline:
    files = ModelFiles(network=models.high, low=models.low, vae=models.vae, text_encoder=models.text_encoder)
    return Pipeline(dataclasses.replace(files, **changes), NetworkSettings(topk=0.4), CPU)


@pytest.fixture(scope="module")
def t2v(models: TinyModels) -> Pipeline:
    return text_to_video(models)


@pytest.fixture(scope="module")
def i2v(models: TinyModels) -> Pipeline:
    return image_to_video(models)


@pytest.fixture(scope="module")
def text(t2v: Pipeline) -> Tensor:
    return t2v.encode(["a red ball"])[0]


def network(path: Path) -> TurboWan:
    source = checkpoint.read(path)
    built = TurboWan(source.config, device="meta")
    built.load(source.tensors)
    built.attention = dataclasses.replace(built.attention, topk=0.4)
    return built


def walked(
    stages: list[tuple[TurboWan, list[float]]], text: Tensor, y: Tensor | None, *, seed: int, stochastic: bool
) -> Tensor:
    """The formulas of rcm, straight: noise of the seed, fp64 state, the timestep in bf16."""
    x = torch.randn(LATENT, generator=torch.Generator().manual_seed(seed)).double() * stages[0][1][0]
    steps = torch.Generator().manual_seed(seed ^ rcm.STEP_STREAM)
    for net, times in stages:
        for t, after in itertools.pairwise(times):
            inputs = x.float() if y is None else torch.cat([x.float(), y], dim=1)
            v = net(inputs, torch.tensor([1000 * t]).bfloat16().float(), text).double()
            if stochastic:
                x = (1 - after) * (x - t * v) + after * torch.randn(LATENT, generator=steps).double()
            else:
                x = x - (t - after) * v
    return vae.denormalize(x.float())


def test_text_to_video_is_the_formula(t2v: Pipeline, models: TinyModels, text: Tensor) -> None:
    times = rcm.schedule(2, 80.0).tolist()
    wanted = walked([(network(models.t2v), times)], text, None, seed=3, stochastic=True)
    assert relative_error(t2v.sample(REQUEST, text), wanted) < SAME_MATHS_FP32


@pytest.mark.parametrize("sampler", [None, "sde"])
def test_image_to_video_is_the_formula(
    i2v: Pipeline, models: TinyModels, text: Tensor, image: Path, sampler: str | None
) -> None:
    request = dataclasses.replace(REQUEST, image=image, steps=4, sampler=sampler)
    times = rcm.schedule(4, 200.0).tolist()
    picture = torch.nn.functional.interpolate(
        start_image.load_image(image).movedim(-1, 1), size=(HEIGHT, WIDTH), mode="bilinear", antialias=True
    )
    clip = torch.cat([2 * picture[:, :, None] - 1, torch.zeros(1, 3, FRAMES - 1, HEIGHT, WIDTH)], dim=2)
    encoded = vae_weights.from_tensors(open_weights(models.vae).content).encode(clip)
    mask = torch.zeros(1, 4, *LATENT[2:])
    mask[:, :, 0] = 1
    y = torch.cat([mask, vae.normalize(encoded)], dim=1)
    stages = [(network(models.high), times[:3]), (network(models.low), times[2:])]
    wanted = walked(stages, text, y, seed=3, stochastic=sampler == "sde")
    assert relative_error(i2v.sample(request, text), wanted) < SAME_MATHS_FP32


def test_a_network_computes_in_the_dtype_that_is_given(models: TinyModels, t2v: Pipeline, text: Tensor) -> None:
    given = text_to_video(models, dtype=torch.bfloat16)
    assert (t2v.dtype, given.dtype) == (torch.float32, torch.bfloat16)
    assert 1e-4 < relative_error(given.sample(REQUEST, text), t2v.sample(REQUEST, text)) < 0.05


def test_a_seed_decides_the_latents(t2v: Pipeline, models: TinyModels, text: Tensor) -> None:
    first = t2v.sample(REQUEST, text)
    assert first.shape == LATENT
    assert torch.equal(t2v.sample(REQUEST, text), first)
    assert torch.equal(text_to_video(models).sample(REQUEST, text), first)
    for change in ({"seed": 4}, {"steps": 1}, {"sigma_max": 40.0}, {"sampler": "ode"}, {"noise": "upstream"}):
        assert relative_error(t2v.sample(dataclasses.replace(REQUEST, **change), text), first) > MOVED


def test_frames_are_the_decoded_latent(t2v: Pipeline, models: TinyModels, text: Tensor) -> None:
    latent = t2v.sample(REQUEST, text)
    pieces: list[Tensor] = []
    t2v.decode(latent, pieces.append)
    frames = torch.cat(pieces, dim=1)
    video = vae_weights.from_tensors(open_weights(models.vae).content).decode(latent)[0]
    assert frames.shape == (3, FRAMES, HEIGHT, WIDTH)
    assert frames.dtype == torch.float32
    assert torch.equal(frames, ((video + 1) / 2).clamp(0, 1))
    again: list[Tensor] = []
    t2v.generate(REQUEST, text, again.append)
    assert torch.equal(torch.cat(again, dim=1), frames)


@pytest.mark.parametrize("steps", [1, 2])
def test_few_steps_need_no_low_noise_expert(models: TinyModels, text: Tensor, image: Path, steps: int) -> None:
    alone = image_to_video(models, low=None)
    request = dataclasses.replace(REQUEST, image=image, steps=steps)
    both = image_to_video(models)
    assert torch.equal(alone.sample(request, text), both.sample(request, text))
    assert list(both._experts) == ["high"]
    with pytest.raises(SettingsError, match="low-noise expert: 3 steps at boundary 0.9 need it"):
        alone.sample(dataclasses.replace(request, steps=3), text)


def test_progress_goes_to_its_end(models: TinyModels, image: Path) -> None:
    told: dict[str, list[tuple[int, int]]] = {}
    pipeline = image_to_video(models)
    pipeline._progress = lambda stage, done, total: told.setdefault(stage, []).append((done, total))
    text = pipeline.encode(["two circles"])[0]
    pipeline.generate(dataclasses.replace(REQUEST, image=image, steps=3), text, lambda _: None)
    assert list(told) == ["prompt", "image", "sampling", "frames"]
    assert told["sampling"] == [(done, 6) for done in range(1, 7)]
    for steps in told.values():
        assert steps[-1][0] == steps[-1][1]
        assert steps == sorted(steps)


@pytest.mark.parametrize("stage", ["prompt", "sampling", "frames"])
def test_it_can_be_cancelled_and_used_again(models: TinyModels, text: Tensor, stage: str) -> None:
    reached: list[str] = []

    def stop() -> None:
        if stage in reached:
            raise KeyboardInterrupt

    pipeline = text_to_video(models, progress=lambda name, *_: reached.append(name), interrupted=stop)
    request = dataclasses.replace(REQUEST, steps=2)

    def run() -> list[Tensor]:
        pieces: list[Tensor] = []
        pipeline.generate(request, pipeline.encode([request.prompt])[0], pieces.append)
        return pieces

    with pytest.raises(KeyboardInterrupt):
        run()
    pipeline._interrupted = lambda: None
    assert torch.equal(torch.cat(run(), dim=1), torch.cat(frames_of(text_to_video(models), request, text), dim=1))


def frames_of(pipeline: Pipeline, request: Request, text: Tensor) -> list[Tensor]:
    pieces: list[Tensor] = []
    pipeline.generate(request, text, pieces.append)
    return pieces


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"size": (100, 48)}, LatentError, "divisible by 16, got 100x48; use 96x48"),
        ({"frames": 10}, LatentError, "4n\\+1 frames, got 10; use 9 or 13"),
        ({"steps": 5}, SettingsError, "steps: must be 1 to 4"),
        ({"sigma_max": 3.0}, SettingsError, "sigma_max"),
        ({"sampler": "euler"}, SettingsError, "sampler: must be one of sde, ode"),
        ({"noise": "gpu"}, SettingsError, "noise: must be one of"),
        ({"seed": -1}, SettingsError, "seed"),
        ({"image": Path("x.png")}, ConditioningError, "takes no image"),
    ],
)
def test_refused_requests(t2v: Pipeline, text: Tensor, change: dict, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        t2v.sample(dataclasses.replace(REQUEST, **change), text)


def test_refused_models_and_images(models: TinyModels, i2v: Pipeline, text: Tensor, tmp_path: Path) -> None:
    with pytest.raises(ConditioningError, match="needs an image, got none"):
        i2v.check(REQUEST)
    with pytest.raises(ConditioningError, match="must exist"):
        i2v.sample(dataclasses.replace(REQUEST, image=tmp_path / "none.png"), text)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ConditioningError, match="must be a readable picture"):
        i2v.sample(dataclasses.replace(REQUEST, image=tmp_path / "text.png"), text)
    with pytest.raises(SettingsError, match="a pair must be two image-to-video experts"):
        image_to_video(models, low=models.t2v)
    with pytest.raises(CheckpointError, match="VAE: tensors must be those of a Wan 2.1 VAE|without a usable"):
        image_to_video(models, vae=models.text_encoder)
    files = ModelFiles(network=models.t2v, vae=models.vae, text_encoder=models.text_encoder)
    with pytest.raises(SettingsError, match="precision: must be one of"):
        Pipeline(files, NetworkSettings(precision="int4"), CPU)


def test_swapped_experts_are_told(models: TinyModels, caplog: pytest.LogCaptureFixture) -> None:
    image_to_video(models, network=models.low, low=models.high)
    assert "is the low-noise expert according to its file, and takes the high-noise steps" in caplog.text


class TestExpert:
    """Weights that come and go; the meta device stands for a GPU, because nothing is computed."""

    @pytest.fixture
    def expert(self, models: TinyModels) -> Expert:
        built = Expert(checkpoint.read(models.t2v), NetworkSettings(), CPU, torch.float32)
        built.device = torch.device("meta")
        return built

    @staticmethod
    def on_device(expert: Expert) -> int:
        weights = [*expert.network.parameters(), *expert.network.buffers()]
        return sum(weight.nbytes for weight in weights if weight.device.type == "meta")

    def test_all_come_and_go(self, expert: Expert) -> None:
        before = {name: tensor.clone() for name, tensor in expert.network.state_dict().items()}
        expert.bring(1 << 30, tokens=72)
        assert expert.here
        assert self.on_device(expert) == expert.nbytes
        expert.release()
        assert not expert.here
        after = expert.network.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)

    def test_what_does_not_fit_stays(self, expert: Expert, caplog: pytest.LogCaptureFixture) -> None:
        working = working_bytes(expert.network.config, 72)
        expert.bring(working + expert.nbytes // 2, tokens=72)
        assert 0.3 * expert.nbytes < self.on_device(expert) <= expert.nbytes // 2
        assert "stay in system memory" in caplog.text
