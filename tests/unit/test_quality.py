"""The quality benchmark on tiny random models: its references, its file, its page."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path, PurePosixPath

import pytest
import tiny
import tiny_models
import torch
from PIL import Image
from safetensors.torch import save_file
from tolerances import SAME_SAMPLING, relative_error

from turbowan.benchmarks import quality, quality_bench, quality_data, quality_page
from turbowan.benchmarks.block_sets import forced_blocks, recorded_blocks
from turbowan.benchmarks.quality_bench import Bench, clip, psnr, triple_of, write_unquantized
from turbowan.benchmarks.quality_data import EQUAL_DB, QualityError, Study, Subject, Video
from turbowan.benchmarks.quality_options import AXES, DEFAULT, DEFAULTS, IMAGE_DEFAULT, Option, options
from turbowan.demo.vocabulary import HELD_OUT
from turbowan.kernels import routing
from turbowan.turbo_core import checkpoint, demo_bundle
from turbowan.turbo_core.block_int8 import dequantize_tensors
from turbowan.turbo_core.request import Request

pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
SIZE = (128, 96, 9)  # 144 tokens: 2 query blocks, 3 key blocks
SPARSE = Option(steps=1)
VIDEO = Video(colour=True, shape=True, motion=False, numeric_db=40.0, full_db=25.0)
SUBJECT = Subject(device="G", versions={"torch": "2"}, size="128x96x9", model={"a.pth": "12ab"})
STUDY = Study(subject=SUBJECT, date="2026-11-24", results=(), left_out={"sagesla": "no kernel"})


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    tiny_models.write(folder)
    return folder


@pytest.fixture(scope="module")
def bench(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    made = Bench(bundle, tmp_path_factory.mktemp("bench"), CPU, SIZE)
    made.prepare(range(2))
    return made


class TestBlocks:
    @staticmethod
    def route(seed: int) -> torch.Tensor:
        q, k = torch.randn(2, 1, 2, 5, 128, generator=torch.Generator().manual_seed(seed))
        return routing.route(q, k, routing.key_mean(k, 5 * routing.BLOCK_K), 2)

    def route_over(self, sets: list[torch.Tensor], calls: int) -> None:
        with forced_blocks(sets):
            for _ in range(calls):
                self.route(0)

    def test_recorded_ones_are_given_back(self) -> None:
        own = self.route(0)
        with recorded_blocks() as sets:
            assert torch.equal(self.route(0), own)
            second = self.route(1)
        assert len(sets) == 2
        with forced_blocks([sets[1].flip(-1), sets[0]]):
            assert torch.equal(self.route(0), second)
            assert torch.equal(self.route(1), own)
        assert torch.equal(self.route(0), own)

    @pytest.mark.parametrize("calls", [1, 3])
    def test_calls_that_are_not_those_recorded_are_refused(self, calls: int) -> None:
        own, route = self.route(0), routing.route
        with pytest.raises(ValueError, match="a set for each call, got 2"):
            self.route_over([own, own], calls)
        assert routing.route is route


class TestOptions:
    def test_each_axis_passes_through_the_default_and_changes_one_thing(self) -> None:
        for axis, moved in AXES.items():
            (default,) = (default for default in DEFAULTS if default in moved)
            field = "steps" if axis == "image" else axis
            assert (default == IMAGE_DEFAULT) == (axis == "image")
            for option in moved:
                assert dataclasses.replace(option, **{field: getattr(default, field)}) == default
        assert quality_page.HEADINGS.keys() == AXES.keys()
        everything = options()
        assert everything[:2] == DEFAULTS
        assert len(set(everything)) == len(everything) == len({option.name for option in everything})
        assert options(("sampler",)) == AXES["sampler"]
        assert DEFAULT not in options(("image",))

    def test_the_default_is_what_a_user_gets(self) -> None:
        for default, image in zip(DEFAULTS, (None, Path("a.png")), strict=True):
            request = Request(prompt="", size=(160, 160), image=image)
            assert (default.steps, default.sampler) == (request.steps, request.chosen_sampler)
            assert default.image == (request.family == "i2v")
        settings = type(DEFAULT.network)()
        assert (settings.attention, settings.topk, settings.precision) == ("auto", DEFAULT.topk, "auto")


class TestVideos:
    def test_figures_of_frames(self) -> None:
        black = torch.zeros(3, 2, 4, 4, dtype=torch.uint8)
        assert psnr(black.repeat(3, 1, 1, 1, 1), torch.stack([black, black + 1, black + 255])) == [
            EQUAL_DB,
            round(20 * math.log10(255), 2),
            0,
        ]
        assert clip(black).unique().tolist() == [-1]
        assert clip(black + 255).unique().tolist() == [1]

    def test_seeds_go_through_the_held_out_triples(self) -> None:
        assert [triple_of(number) for number in range(30)] == list(HELD_OUT)
        assert triple_of(31) == HELD_OUT[1]

    def test_the_reference_has_the_options_own_blocks(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        """With them rounding alone is left; with others the videos are far apart, as they are over all blocks."""
        option = dataclasses.replace(SPARSE, precision="bf16")
        (video,) = bench.measure(option, [1], compare=True)
        assert 40 < video.numeric_db < EQUAL_DB
        assert video.full_db < video.numeric_db - 6

        forced = quality_bench.forced_blocks
        monkeypatch.setattr(quality_bench, "forced_blocks", lambda sets: forced([2 - each for each in sets]))
        assert bench.measure(option, [1], compare=True)[0].numeric_db < video.numeric_db - 6

    def test_over_all_blocks_both_references_are_one(self, bench: Bench) -> None:
        (video,) = bench.measure(dataclasses.replace(SPARSE, topk=1.0, precision="channelwise"), [0], compare=True)
        assert video.numeric_db == video.full_db < EQUAL_DB

    def test_dense_attention_is_held_against_dense_attention(self, bench: Bench) -> None:
        (video,) = bench.measure(dataclasses.replace(SPARSE, attention="dense", precision="bf16"), [0], compare=True)
        assert 40 < video.numeric_db < EQUAL_DB
        assert video.full_db < video.numeric_db - 6

    def test_the_pair_begins_with_the_drawn_image(self, bench: Bench) -> None:
        """Both experts take part: the last of three steps is the low one's."""
        option = dataclasses.replace(IMAGE_DEFAULT, steps=3, precision="channelwise")
        (video,) = bench.measure(option, [0], compare=True)
        assert 25 < video.numeric_db < EQUAL_DB
        frames = bench.frames(option, [0])
        image = bench._request(option, 0).image
        with Image.open(image) as drawn:
            assert drawn.size == SIZE[:2]
        Image.new("RGB", SIZE[:2]).save(image)
        bench._images.clear()
        assert not torch.equal(bench.frames(option, [0]), frames)
        bench._images.clear()
        image.unlink()
        assert torch.equal(bench.frames(option, [0]), frames)

    @pytest.mark.parametrize("option", [Option(), Option(steps=2, sampler="ode"), IMAGE_DEFAULT], ids=str)
    def test_many_at_once_are_those_that_a_user_gets(self, bench: Bench, option: Option) -> None:
        together = bench._walk(bench._pipeline(option), option, [1, 0])
        for number, latent in zip([1, 0], together, strict=True):
            request = bench._request(option, number)
            alone = bench._pipeline(option).sample(request, bench._texts[request.prompt])
            assert relative_error(latent[None], alone) < SAME_SAMPLING
        shown = bench._pipeline(option)
        pieces: list[torch.Tensor] = []
        shown.decode(alone, pieces.append)
        difference = bench._frames(alone)[0] - torch.cat(pieces, dim=1) * 255
        assert difference.abs().max() < 0.51

    def test_a_video_that_is_not_compared_is_only_looked_at(self, bench: Bench) -> None:
        compared = bench.measure(SPARSE, [0, 1], compare=True)
        assert bench.measure(SPARSE, [0, 1], compare=False) == [
            dataclasses.replace(video, numeric_db=None, full_db=None) for video in compared
        ]
        assert len({video.numeric_db for video in compared} | {video.full_db for video in compared}) > 1

    def test_a_missing_pair_is_a_reason(self, bundle: Path, tmp_path: Path) -> None:
        for file in (demo_bundle.T2V, demo_bundle.I2V_HIGH, demo_bundle.VAE, demo_bundle.TEXT_ENCODER):
            (tmp_path / file).parent.mkdir(exist_ok=True)
            (tmp_path / file).symlink_to(bundle / file)
        alone = Bench(tmp_path, tmp_path, CPU, SIZE)
        assert alone.refusal(DEFAULT) is None
        assert f"{demo_bundle.I2V_LOW} is not there" in alone.refusal(IMAGE_DEFAULT)
        assert set(alone.measured_files) == {demo_bundle.T2V.name, demo_bundle.VAE.name, demo_bundle.TEXT_ENCODER.name}

    def test_one_number_is_one_video(self, bench: Bench) -> None:
        first = bench.frames(SPARSE, [0])
        assert torch.equal(bench.frames(SPARSE, [0]), first)
        assert not torch.equal(bench.frames(SPARSE, [1]), first)

    def test_what_needs_a_gpu_is_refused_with_the_reason(self, bench: Bench) -> None:
        assert bench.refusal(DEFAULT) is None
        for option in (AXES["attention"][-1], AXES["precision"][-1]):
            assert "not cuda" in bench.refusal(option)


@pytest.mark.gpu
def test_a_gpu_serves_every_option_and_its_reference(bundle: Path, tmp_path: Path) -> None:
    """The reference refuses blocks of another number of calls, as they would be if compiling had been recorded."""
    on_gpu = Bench(bundle, tmp_path, torch.device("cuda"), SIZE)
    on_gpu.prepare(range(2))
    for option in options():
        reason = on_gpu.refusal(option)
        if reason is not None:
            assert option.precision == "fp8", reason
            continue
        for video in on_gpu.measure(option, range(2), compare=True):
            assert video.numeric_db > 15, option
            if option.sparse and option.topk < 0.3:
                assert video.numeric_db > video.full_db, option


class TestReferenceWeights:
    @pytest.mark.parametrize("file", [demo_bundle.T2V, demo_bundle.I2V_LOW])
    def test_they_are_the_files_dequantized(self, bundle: Path, tmp_path: Path, file: PurePosixPath) -> None:
        written = checkpoint.read(write_unquantized(bundle / file, tmp_path / "written.safetensors"))
        expected = dequantize_tensors(checkpoint.read(bundle / file).tensors, torch.float32)
        assert written.turbodiffusion
        assert written.tensors.keys() == expected.keys()
        for name, tensor in written.tensors.items():
            assert tensor.dtype == torch.float32
            assert torch.equal(tensor, expected[name].float())

    def test_or_those_that_training_left(self, bundle: Path, tmp_path: Path) -> None:
        weights = {
            name: tensor.float() * 1.01
            for name, tensor in dequantize_tensors(
                checkpoint.read(bundle / demo_bundle.T2V).tensors, torch.float32
            ).items()
        }
        state = tmp_path / "state.safetensors"
        save_file({f"average.{name}": tensor for name, tensor in weights.items()}, state)
        of_training = Bench(bundle, tmp_path, CPU, SIZE, state=state)
        written = checkpoint.read(of_training.measured_files["the training's weights"])
        assert all(torch.equal(written.tensors[name], tensor) for name, tensor in weights.items())
        of_training.prepare(range(1))
        (bf16,) = of_training.measure(dataclasses.replace(SPARSE, precision="bf16"), [0], compare=True)
        (int8,) = of_training.measure(SPARSE, [0], compare=True)
        assert int8.numeric_db < bf16.numeric_db

    def test_of_another_model_they_are_refused(self, bundle: Path, tmp_path: Path) -> None:
        other = checkpoint.read(
            tiny.save_pth(tmp_path / "other.pth", tiny.tiny_tensors(dim=128, num_layers=1, text_dim=64))
        )
        state = tmp_path / "state.safetensors"
        save_file({f"average.{name}": tensor.float() for name, tensor in other.tensors.items()}, state)
        with pytest.raises(QualityError, match="another number of blocks"):
            write_unquantized(bundle / demo_bundle.T2V, tmp_path / "written.safetensors", state)


class TestFile:
    def test_what_is_written_is_read(self, tmp_path: Path) -> None:
        looked_at = dataclasses.replace(VIDEO, numeric_db=None, full_db=None)
        study = STUDY.with_video(DEFAULT, VIDEO).with_video(SPARSE, VIDEO).with_video(DEFAULT, looked_at)
        study = study.with_seconds(SPARSE, [0.5, 0.25]).with_seconds(IMAGE_DEFAULT, [1.0])
        study.write(tmp_path / "new" / "q.json")
        assert quality_data.read(tmp_path / "new" / "q.json") == study
        assert (study.count(DEFAULT), study.count(SPARSE), study.count(Option(steps=3))) == (2, 1, 0)
        assert [path.name for path in (tmp_path / "new").iterdir()] == ["q.json"]
        STUDY.write(tmp_path / "empty.json")
        assert quality_data.read(tmp_path / "empty.json") == STUDY

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"results": [{}]}'])
    def test_another_file_is_refused(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "q.json").write_text(text)
        with pytest.raises(QualityError, match="must be what"):
            quality_data.read(tmp_path / "q.json")

    @pytest.mark.parametrize("change", [{"device": "other"}, {"size": "16x16x1"}, {"model": {"a.pth": "0"}}])
    def test_measurements_of_something_else_are_not_gone_on_with(self, tmp_path: Path, change: dict) -> None:
        STUDY.write(tmp_path / "q.json")
        assert quality_data.resumed(tmp_path / "q.json", SUBJECT, "2027-01-01").date == "2027-01-01"
        with pytest.raises(QualityError, match=f"the same {next(iter(change))}"):
            quality_data.resumed(tmp_path / "q.json", dataclasses.replace(SUBJECT, **change), "2027-01-01")

    def test_a_table_has_medians_and_shares(self) -> None:
        study = STUDY
        for decibels, motion in ((30.0, True), (40.0, False), (90.0, True)):
            study = study.with_video(DEFAULT, dataclasses.replace(VIDEO, numeric_db=decibels, motion=motion))
        study = study.with_video(DEFAULT, dataclasses.replace(VIDEO, numeric_db=None, full_db=None))
        study = study.with_seconds(DEFAULT, [9.0, 0.0125, 0.01])
        study = study.with_video(SPARSE, dataclasses.replace(VIDEO, numeric_db=EQUAL_DB, full_db=None, motion=True))
        head, rule, default, single = quality_page.table(study, (DEFAULT, SPARSE, Option(steps=2))).splitlines()
        assert len({len(line) for line in (head, rule, default, single)}) == 1
        cells = [cell.strip() for cell in default.strip("|").split("|")]
        assert cells == [
            "sla 0.1, int8, 4 steps, sde (default)",
            "40.0",
            "25.0",
            "50%",
            "100%",
            "100%",
            "50%",
            "12.5",
            "4",
        ]
        assert [cell.strip() for cell in single.strip("|").split("|")][1:3] == ["equal", "–"]
        assert "1 step," in single

    def test_a_page_has_axes_pictures_and_reasons(self) -> None:
        text = quality_page.page(STUDY.with_video(DEFAULT, VIDEO).with_video(SPARSE, VIDEO), {"steps": "q_steps.png"})
        assert "## By steps" in text
        assert "(q_steps.png)" in text
        assert "## By top-k" not in text
        assert "PSNR of the first 1 videos" in text
        assert "- sagesla: no kernel" in text
        assert "a.pth (SHA-256 12ab…)" in text


class TestCommand:
    @staticmethod
    def call(monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> None:
        monkeypatch.setattr("sys.argv", ["quality", *map(str, words)])
        quality.main()

    def test_a_missing_bundle_is_named(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        with pytest.raises(SystemExit, match=f"must lie in .*{demo_bundle.T2V}.* is not there"):
            self.call(monkeypatch, tmp_path / "q.json", "--bundle", tmp_path)

    @pytest.mark.parametrize("words", [("q.txt",), ("q.json", "--axes", "steps,fly"), ("q.json", "--videos", "0")])
    def test_wrong_arguments_are_refused(self, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]) -> None:
        with pytest.raises(SystemExit, match="2"):
            self.call(monkeypatch, *words)

    @pytest.mark.parametrize(
        ("videos", "compared", "stops"),
        [(60, 12, [12, 24, 36, 48, 60]), (30, 20, [12, 20, 30]), (5, 12, [5]), (13, 0, [12, 13]), (1, 1, [1])],
    )
    def test_videos_are_made_by_the_dozen(self, videos: int, compared: int, stops: list[int]) -> None:
        made = quality.groups(videos, compared)
        assert [group.stop for group in made] == stops
        assert [number for group in made for number in group] == list(range(videos))

    def test_it_stops_when_its_minutes_are_over_and_goes_on(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        axes = {"steps": (DEFAULT, SPARSE), "image": (dataclasses.replace(IMAGE_DEFAULT, steps=1), IMAGE_DEFAULT)}
        monkeypatch.setattr(quality, "AXES", axes)
        monkeypatch.setattr(quality, "options", lambda axes: (SPARSE, IMAGE_DEFAULT))
        file = tmp_path / "new" / "q.json"
        words = (file, "--bundle", bundle, "--axes", "steps,image", "--size", "128x96x9", "--device", "cpu")
        self.call(monkeypatch, *words, "--minutes", "0")
        assert not file.exists()
        assert "120 videos are still to be made" in capsys.readouterr().out
        for axis in axes:
            with Image.open(file.with_name(f"q_{axis}.png")) as picture:
                assert picture.height > 2 * SIZE[1]
        assert file.with_suffix(".md").read_text().startswith("# Quality")

        self.call(monkeypatch, *words, "--videos", "1")
        before = json.loads(file.read_text())["results"]
        assert "still" not in capsys.readouterr().out
        self.call(monkeypatch, *words, "--videos", "2", "--compared", "1")
        results = json.loads(file.read_text())["results"]
        for first, result in zip(before, results, strict=True):
            assert len(result["videos"]) == 2
            assert result["videos"][:1] == first["videos"]
            assert [video["full_db"] is None for video in result["videos"]] == [False, True]
            assert result["seconds"] == []
        self.call(monkeypatch, *words, "--times", "3")
        timed = json.loads(file.read_text())["results"]
        assert [len(result["seconds"]) for result in timed] == [3, 3]
        assert [result["videos"] for result in timed] == [result["videos"] for result in results]

    def test_a_call_that_is_killed_leaves_what_it_had(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bundle: Path
    ) -> None:
        monkeypatch.setattr(quality, "options", lambda axes: (SPARSE,))
        monkeypatch.setattr(quality, "AXES", {"steps": (DEFAULT, SPARSE)})
        measure = Bench.measure

        def killed(bench: Bench, option: Option, numbers: range, *, compare: bool) -> list[Video]:
            if 1 in numbers:
                raise KeyboardInterrupt
            return measure(bench, option, numbers, compare=compare)

        monkeypatch.setattr(Bench, "measure", killed)
        with pytest.raises(KeyboardInterrupt):
            self.call(
                monkeypatch, tmp_path / "q.json", "--bundle", bundle, "--axes", "steps", "--size", "128x96x9",
                "--device", "cpu", "--compared", "1",
            )  # fmt: skip
        assert quality_data.read(tmp_path / "q.json").count(SPARSE) == 1
        assert (tmp_path / "q_steps.png").is_file()
        assert "PSNR of the first 1 videos" in (tmp_path / "q.md").read_text()
