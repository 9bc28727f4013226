"""The scoring of the demo's videos: right ones count, wrong ones don't, and the real pipeline goes through it."""

from pathlib import Path

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file

from turbowan.demo import check_dit, evaluate, text_encoder, vae_network
from turbowan.demo.clips import draw, draw_scenes
from turbowan.demo.export_dit import export
from turbowan.demo.train_dit import new_model
from turbowan.demo.vocabulary import Triple, caption
from turbowan.turbo_core.expert import NetworkSettings
from turbowan.turbo_core.pipeline import Pipeline, Request
from turbowan.turbo_core.text_encoder import TextEncoder
from turbowan.turbo_core.vae_weights import from_tensors

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
TRIPLES = [Triple("red", "ball", "left"), Triple("blue", "star", "up"), Triple("green", "cross", "spin")]


class Drawer:
    """A pipeline that draws what it is asked for; but every `wrong`-th video in another colour."""

    family, device = "t2v", CPU

    def __init__(self, wrong: int) -> None:
        self.wrong = wrong
        self.files = evaluate.files(Path("bundle"), i2v=False)

    def encode(self, prompts: list[str]) -> list[torch.Tensor]:
        return [torch.zeros(1) for _ in prompts]

    def generate(self, request: Request, text: torch.Tensor, receive: object) -> None:
        (triple,) = (triple for triple in TRIPLES if caption(triple) == request.prompt)
        if request.seed % self.wrong == self.wrong - 1:
            triple = triple._replace(colour="purple")
        generator = torch.Generator().manual_seed(request.seed)
        width, height = request.size
        scenes = draw_scenes([triple], frames=request.frames, height=height, width=width, generator=generator)
        frames = (draw(scenes, height=height, width=width)[0] + 1) / 2
        for piece in frames.split(16, dim=1):
            receive(piece)


def test_right_videos_count_and_wrong_ones_do_not(tmp_path):
    picture = tmp_path / "shown" / "videos.png"
    score = evaluate.evaluate(Drawer(wrong=4), TRIPLES * 3, 4, side=96, frames=33, picture=picture)
    assert (score.videos, score.right, score.colour, score.shape, score.motion) == (9, 7, 7, 9, 9)
    assert picture.stat().st_size > 0


@pytest.mark.parametrize("i2v", [False, True])
def test_videos_of_the_real_pipeline_are_scored(tmp_path, i2v):
    tiny_models.write(tmp_path)
    pipeline = Pipeline(evaluate.files(tmp_path, i2v=i2v), NetworkSettings(topk=0.5), CPU)
    score = evaluate.evaluate(pipeline, TRIPLES[:2], 1, side=32, frames=5)
    assert (score.videos, score.right) == (2, 0)
    assert score.model == pipeline.files.network.name


@pytest.mark.parametrize("i2v", [False, True])
def test_files_are_checked_many_clips_at_once(tmp_path, i2v, capsys):
    save_file(text_encoder.tensors(), tmp_path / "umt5.safetensors")
    vae = vae_network.new_vae(4, torch.Generator().manual_seed(0)).state_dict()
    save_file({name: tensor.detach().contiguous() for name, tensor in vae.items()}, tmp_path / "vae.safetensors")
    model = new_model(36 if i2v else 16, None, "cpu")
    state = tmp_path / "state.safetensors"
    save_file({f"average.{key}": value for key, value in model.state_dict().items()}, state)
    names = {"high.safetensors": "high", "low.safetensors": "low"} if i2v else {"t2v-quant.pth": None}
    for name, expert in names.items():
        export(state, tmp_path / name, expert)
    share = check_dit.check(
        [tmp_path / name for name in names],
        from_tensors(load_file(tmp_path / "vae.safetensors"), dtype=torch.float32),
        TextEncoder.open(tmp_path / "umt5.safetensors"),
        2,
        3,
        side=32,
        frames=5,
        topk=0.5,
    )
    assert share == 0
    assert "0 of 3 right" in capsys.readouterr().err
