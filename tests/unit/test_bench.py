"""The benchmarks' pure parts: counted work, reports, tables, command line. Timing needs a GPU and is not here."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

import turbowan
from turbowan.benchmarks import (
    ceilings,
    floors,
    host_run,
    network_rows,
    plot,
    prompt_rows,
    prompt_stages,
    random_vae,
    report,
    scaling_plot,
    suite,
    synthetic,
    timing,
)
from turbowan.benchmarks.ceilings import KNOWN, Ceilings
from turbowan.benchmarks.report import Report, ReportError, Row
from turbowan.benchmarks.request import Request, parse_size, size_argument
from turbowan.benchmarks.timing import Timing
from turbowan.turbo_core import cli, vae, vae_layers, vae_weights
from turbowan.turbo_core.attention import AttentionSettings
from turbowan.turbo_core.commands import bench
from turbowan.turbo_core.config import WanConfig
from turbowan.turbo_core.errors import SettingsError
from turbowan.turbo_core.model import TurboWan

H200 = KNOWN["NVIDIA H200"]
ROW = Row(
    name="1.3b int8", stage="step", ms=100.0, peer="upstream", peer_ms=340.0, floor_ms=85.0, peak_gib=2.3, command="c"
)
REPORT = Report(gpu="G", versions={"torch": "2"}, date="2026-11-24", ceilings={"copy": 4.0}, rows=(ROW,))


def test_the_slower_of_compute_and_copy_is_the_floor() -> None:
    rates = Ceilings(int8=1000, bf16=500, attention=800, copy=4, source="")
    assert floors.Work(name="", int8=1e12, bytes=1).milliseconds(rates) == pytest.approx(1.0)
    assert floors.Work(name="", int8=1e12, bf16=1e12, attention=8e11).milliseconds(rates) == pytest.approx(4.0)
    assert floors.Work(name="", int8=1e12, bytes=16e9).milliseconds(rates) == pytest.approx(4.0)


def test_a_block_has_the_counted_flops_in_its_products() -> None:
    """Counted by torch over our own network, one block more against one less; it does not count CPU attention."""
    config = WanConfig(dim=256, ffn_dim=512, num_heads=2, num_layers=2, has_proj_l=False)
    net = TurboWan(config)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    net.attention = AttentionSettings(mode="dense")
    size = (128, 96, 9)
    x, text = torch.randn(1, 16, 3, 12, 16), torch.randn(1, floors.TEXT_TOKENS, config.text_dim)
    with torch.no_grad(), FlopCounterMode(display=False) as whole:
        net(x, torch.tensor([988.0]), text)
    net.blocks = net.blocks[:1]
    with torch.no_grad(), FlopCounterMode(display=False) as one:
        net(x, torch.tensor([988.0]), text)
    block = whole.get_total_flops() - one.get_total_flops()
    work = floors.block(config, floors.tokens_of(size), bits=8, mode="dense", topk=0.1)
    mine = sum(item.int8 + item.bf16 for item in work)
    cross_k_v = 2 * 2 * floors.TEXT_TOKENS * config.dim**2  # once a prompt, so no part of a step
    assert mine + cross_k_v == block


@pytest.fixture
def plain_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch counts no FLOPs of oneDNN's own operator."""
    monkeypatch.setattr(vae_layers, "_torch_avoids_onednn", lambda _: False)


@pytest.mark.usefixtures("plain_convolutions")
@pytest.mark.parametrize(("part", "latent_frames"), [("decoder", 21), ("encoder", 21)])
def test_the_vae_has_the_counted_flops(part: str, latent_frames: int) -> None:
    net = vae_weights.from_tensors(random_vae.tensors(8, dtype=torch.float32))
    frames = 4 * (latent_frames - 1) + 1
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        if part == "decoder":
            net.decode(torch.randn(1, 16, latent_frames, 4, 4))
        else:
            net.encode(torch.randn(1, 3, frames, 32, 32))
    convolutions = sum(n for op, n in counter.get_flop_counts()["Global"].items() if "conv" in str(op))
    work = floors.vae(random_vae.shapes(8), part, (32, 32, frames))
    # The first frames sum fewer taps.
    assert convolutions < sum(item.bf16 for item in work) < 1.02 * convolutions


@pytest.mark.usefixtures("plain_convolutions")
def test_a_start_image_has_the_counted_flops() -> None:
    net = vae_weights.from_tensors(random_vae.tensors(8, dtype=torch.float32))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net.encode(torch.randn(1, 3, 2, 32, 32), length=81)
    convolutions = sum(n for op, n in counter.get_flop_counts()["Global"].items() if "conv" in str(op))
    counted = sum(item.bf16 for item in floors.start_image(net, (32, 32, 81)))
    # The first frames sum fewer taps, of a clip of which a quarter is computed.
    assert convolutions < counted < 1.08 * convolutions
    assert counted < 0.3 * sum(item.bf16 for item in floors.vae(random_vae.shapes(8), "encoder", (32, 32, 81)))


@pytest.mark.parametrize(
    ("model", "size", "milliseconds"), [("1.3b", (832, 480, 81), 85), ("14b", (1280, 720, 81), 1800)]
)
def test_floors_of_the_released_sizes(model: str, size: tuple[int, int, int], milliseconds: float) -> None:
    """The figures that the project's goals were set with."""
    work = floors.step(synthetic.MODELS[model], floors.tokens_of(size), bits=8, mode="sagesla")
    assert floors.total_ms(work, H200) == pytest.approx(milliseconds, rel=0.04)


def test_an_unknown_gpu_is_estimated_and_a_known_one_never_below_what_it_reached() -> None:
    other = ceilings.of_gpu("NVIDIA X", bf16=300, copy=1)
    assert (other.int8, other.bf16, other.copy) == (600, 300, 1)
    assert "estimated" in other.source
    assert ceilings.of_gpu("NVIDIA H200", bf16=700, copy=4.5) == dataclasses.replace(H200, copy=4.5)


def test_reports_survive_json(tmp_path: Path) -> None:
    path = tmp_path / "docs" / "x.json"
    REPORT.write(path)
    assert report.read(path) == REPORT
    assert set(json.loads(path.read_text())["rows"][0]) >= {
        "name", "ms", "peer", "peer_ms", "floor_ms", "peak_gib", "command"
    }  # fmt: skip


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"rows": 3}', '{"rows": [{"name": "a"}]}', '{"gpu": "G", "rows": []}', "null"]
)
def test_what_is_no_report_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ReportError, match="must be a report"):
        report.read(path)


@pytest.mark.parametrize(
    "wrong",
    [{"ms": 0.0}, {"ms": float("nan")}, {"floor_ms": -1}, {"stage": "other"}, {"peer": None}, {"peer_ms": None}],
)
def test_impossible_rows_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ReportError, match="row '1.3b int8'"):
        dataclasses.replace(ROW, **wrong)


def test_new_rows_replace_their_namesakes_and_keep_the_order() -> None:
    kept = dataclasses.replace(ROW, name="other", stage="kernel")
    old = dataclasses.replace(REPORT, rows=(kept, ROW), date="2026-11-23")
    new = dataclasses.replace(REPORT, rows=(dataclasses.replace(ROW, ms=90.0),))
    both = report.merged(old, new)
    assert [(row.name, row.ms) for row in both.rows] == [("other", 100.0), ("1.3b int8", 90.0)]
    assert [row.date for row in both.rows] == ["2026-11-23", "2026-11-24"]
    assert (both.date, report.dates(both.rows)) == ("2026-11-24", "2026-11-23 to 2026-11-24")
    assert [row.date for row in report.merged(both, new).rows] == ["2026-11-23", "2026-11-24"]
    with pytest.raises(ReportError, match="one GPU"):
        report.merged(dataclasses.replace(old, gpu="H"), new)


def test_the_table_shows_ratios_and_does_not_repeat_ours() -> None:
    second = dataclasses.replace(ROW, peer="native", peer_ms=600.0)
    alone = dataclasses.replace(ROW, name="bare", peer=None, peer_ms=None, floor_ms=None, peak_gib=None)
    head, one, two, three = report.table([ROW, second, alone]).splitlines()
    assert head.split()[:3] == ["stage", "name", "ms"]
    assert one.split() == ["step", "1.3b", "int8", "100.0", "upstream", "340.0", "3.4", "85", "1.18", "2.3", "–"]
    assert two.split() == ["native", "600.0", "6"] + ["–"]
    assert three.split() == ["step", "bare", "100.0"] + ["–"] * 7


def test_each_of_ours_meets_the_fastest_and_its_like() -> None:
    milliseconds = {
        "int8 + sagesla": 200, "bf16 + sla": 220, "bf16 + dense": 500, "upstream bf16 + sagesla": 335,
        "upstream bf16 + sla": 341, "upstream int8 + sagesla": 478, "native bf16 + dense": 600,
    }  # fmt: skip
    times = {name: Timing(ms=ms, peak_gib=1) for name, ms in milliseconds.items()}
    assert network_rows.peers_of("int8 + sagesla", times) == [
        "upstream bf16 + sagesla", "upstream int8 + sagesla", "native bf16 + dense"
    ]  # fmt: skip
    assert network_rows.peers_of("bf16 + sla", times) == ["upstream bf16 + sagesla", "upstream bf16 + sla"]
    assert network_rows.peers_of("bf16 + dense", times) == ["native bf16 + dense"]
    assert network_rows.peers_of("int8 + sagesla", {"int8 + sagesla": Timing(ms=1, peak_gib=1)}) == []


def test_turns_are_taken_and_a_first_round_is_left_out_unless_warm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 2**30)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 3 * 2**30)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    clock = itertools.count(1)
    monkeypatch.setattr(timing, "elapsed_ms", lambda run: run() or float(next(clock)))
    calls: list[str] = []
    runs = {name: lambda name=name: calls.append(name) for name in "ab"}
    found = timing.interleaved(runs, 3, prepare={"b": lambda: calls.append("ready")})
    assert calls == ["a", "ready", "b"] * 4
    assert found == {"a": Timing(ms=5.0, peak_gib=2.0), "b": Timing(ms=6.0, peak_gib=2.0)}
    assert timing.interleaved(runs, 1, warm=True)["a"].ms == 9.0


def test_a_native_prompt_is_counted_from_its_parts_or_not_at_all() -> None:
    step = dataclasses.replace(ROW, peer="native bf16 + dense", peer_ms=600.0)
    decode = dataclasses.replace(ROW, name="VAE decode", stage="vae", peer="native bf16", peer_ms=1600.0)
    assert prompt_rows.native_prompt_ms([ROW, step, decode], 400.0) == 100 * 600 + 1600 + 400
    assert prompt_rows.native_prompt_ms([ROW, decode], 400.0) is None
    assert prompt_rows.native_prompt_ms([step], 400.0) is None


def test_milliseconds_of_nodes_are_of_their_parts_and_no_longer_name() -> None:
    parts = {
        "TurboT2VSampler step 1": 0.25, "TurboT2VSampler end": 0.05, "TurboVAEDecodeVideo compile": 0.1,
        "TurboVAEDecodeVideo": 0.6, "SaveVideo": 0.02, "total": 1.5,
    }  # fmt: skip
    runs = [
        host_run.Figures(
            seconds={name: turn * value for name, value in parts.items()},
            bitrate=1.0, allocated={}, reserved={}, gpu_used=0, host={},
        )
        for turn in (1, 2, 9)
    ]  # fmt: skip
    for nodes, seconds in (
        (("TurboT2VSampler",), 0.3),
        (("TurboVAEDecodeVideo", "SaveVideo"), 0.72),
        (("TurboVAEDecode",), 0),
        (("total",), 1.5),
    ):
        assert prompt_rows._of_nodes(runs, *nodes) == pytest.approx(2e3 * seconds)


def test_the_peer_of_decoding_to_video_goes_through_images() -> None:
    shipped = json.loads(host_run.WORKFLOW.read_text())
    changed = host_run.through_images(shipped)
    kinds = {item["class_type"]: node for node, item in changed.items()}
    assert "TurboVAEDecodeVideo" not in kinds
    assert len(kinds) == len(shipped) + 1
    way = [changed[kinds["SaveVideo"]]["inputs"]["video"], changed[kinds["CreateVideo"]]["inputs"]["images"]]
    assert way == [[kinds["CreateVideo"], 0], [kinds["TurboVAEDecode"], 0]]
    assert changed[kinds["CreateVideo"]]["inputs"]["fps"] == 16.0
    before = next(item["inputs"] for item in shipped.values() if item["class_type"] == "TurboVAEDecodeVideo")
    assert changed[kinds["TurboVAEDecode"]]["inputs"] == {name: before[name] for name in ("samples", "vae")}


class TestStages:
    @staticmethod
    def seconds(*told: tuple[float, str, str | None, tuple[int, int] | None]) -> dict[str, float]:
        """From (seconds, type, node, value and total): messages as ComfyUI sends them, a time beside each."""
        marks = [
            (at, {"type": kind, "data": {"node": node} | ({"value": done[0], "max": done[1]} if done else {})})
            for at, kind, node, done in told
        ]
        classes = {"1": "TurboLoader", "7": "TurboT2VSampler", "8": "TurboVAEDecodeVideo", "9": "SaveVideo"}
        return prompt_stages.stage_seconds(marks, classes)

    def test_a_warm_prompt_has_nodes_and_steps(self) -> None:
        assert self.seconds(
            (1.0, "execution_start", None, None),
            (2.0, "executing", "7", None),
            (3.0, "progress", "7", (1, 2)),
            (3.5, "progress", "7", (2, 2)),
            (4.0, "executing", "8", None),
            (4.5, "progress", "8", (9, 81)),
            (5.0, "progress", "8", (81, 81)),
            (6.0, "executing", "9", None),
            (6.5, "executing", None, None),
            (7.0, "execution_success", None, None),
        ) == {
            "TurboT2VSampler step 1": 1.0,
            "TurboT2VSampler step 2": 0.5,
            "TurboT2VSampler end": 0.5,
            "TurboVAEDecodeVideo": 2.0,
            "SaveVideo": 1.0,
            "total": 6.0,
        }

    @pytest.mark.parametrize(("kernels", "steps"), [(18, 2), (2, 2), (1, 1)])
    def test_compiling_is_no_step(self, kernels: int, steps: int) -> None:
        """Also where as many kernels as steps are counted; a count that stands still is told again and again."""
        compiling = [(3.0 + k, "progress", "7", (k, kernels)) for k in range(kernels + 1)]
        repeated = [(at + 0.5, *rest) for at, *rest in compiling[:-1]]
        walked = 3.0 + kernels
        found = self.seconds(
            (0.0, "execution_start", None, None),
            (2.0, "executing", "7", None),
            *sorted(compiling + repeated),
            *((walked + n, "progress", "7", (n, steps)) for n in range(1, steps + 1)),
            (walked + steps + 0.25, "execution_success", None, None),
        )
        assert found == {
            "TurboT2VSampler compile": kernels,
            "TurboT2VSampler step 1": 2.0,  # a second before compiling, one after
            **{f"TurboT2VSampler step {n}": 1.0 for n in range(2, steps + 1)},
            "TurboT2VSampler end": 0.25,
            "total": walked + steps + 0.25,
        }

    @pytest.mark.parametrize("read", [9, 14])
    def test_weights_are_part_of_the_first_step(self, read: int) -> None:
        """Their bytes are counted too, before kernels are, and not to the end where the GPU has no room for all."""
        whole = 14 << 30
        found = self.seconds(
            (0.0, "execution_start", None, None),
            (2.0, "executing", "7", None),
            (3.0, "progress", "7", (1 << 30, whole)),
            (5.0, "progress", "7", (read << 30, whole)),
            (6.0, "progress", "7", (0, 18)),
            (7.0, "progress", "7", (18, 18)),
            (8.0, "progress", "7", (1, 1)),
            (8.0, "execution_success", None, None),
        )
        assert found == {
            "TurboT2VSampler compile": 1.0,
            "TurboT2VSampler step 1": 5.0,
            "TurboT2VSampler end": 0.0,
            "total": 8.0,
        }

    def test_an_end_that_a_decoder_tells_twice_is_one(self) -> None:
        found = self.seconds(
            (0.0, "execution_start", None, None),
            (1.0, "executing", "8", None),
            (2.0, "progress", "8", (40, 162)),
            (3.0, "progress", "8", (162, 162)),
            (3.5, "progress", "8", (162, 162)),
            (4.0, "execution_success", None, None),
        )
        assert found == {"TurboVAEDecodeVideo": 3.0, "total": 4.0}

    def test_a_decode_compiles_too(self) -> None:
        assert self.seconds(
            (0.0, "execution_start", None, None),
            (1.0, "executing", "8", None),
            (2.0, "progress", "8", (3, 9)),
            (4.0, "progress", "8", (9, 9)),
            (5.0, "progress", "8", (81, 81)),
            (6.0, "execution_success", None, None),
        ) == {"TurboVAEDecodeVideo compile": 2.0, "TurboVAEDecodeVideo": 3.0, "total": 6.0}

    def test_a_step_that_was_not_reported_is_in_the_next(self) -> None:
        found = self.seconds(
            (0.0, "execution_start", None, None),
            (0.0, "executing", "7", None),
            (1.0, "progress", "7", (1, 3)),
            (2.0, "progress", "7", (3, 3)),
            (2.0, "execution_success", None, None),
        )
        assert list(found.items())[:2] == [("TurboT2VSampler step 1", 1.0), ("TurboT2VSampler step 3", 1.0)]

    def test_a_node_that_was_cut_short_is_told_as_far_as_it_came(self) -> None:
        assert self.seconds(
            (0.0, "execution_start", None, None),
            (1.0, "executing", "1", None),
            (1.5, "progress", "1", (1, 1)),
            (1.75, "progress", "1", (1, 1)),
            (2.0, "executing", "7", None),
            (4.0, "execution_error", None, None),
        ) == {"TurboLoader": 1.0, "TurboT2VSampler end": 2.0, "total": 4.0}


def test_the_random_vae_blurs_but_keeps_a_texture() -> None:
    """A decoded clip has contrast, and neighbouring pixels and frames correlate without being equal."""
    net = vae_weights.from_tensors(random_vae.tensors(8, dtype=torch.float32))
    z = torch.randn(1, 16, 5, 12, 16, generator=torch.Generator().manual_seed(0))
    clip = net.decode(vae.denormalize(z))[0]
    clip = clip - clip.mean(dim=(1, 2, 3), keepdim=True)

    def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
        return float(torch.corrcoef(torch.stack((a.flatten(), b.flatten())))[0, 1])

    assert clip.std() > 0.1
    assert 0.6 < correlation(clip[:, 4:-1], clip[:, 5:]) < 0.99
    assert 0.8 < correlation(clip[..., 1:], clip[..., :-1]) < 0.999


@pytest.mark.parametrize("text", ["832x480", "832x480x80", "830x480x81", "axbxc", "0x480x81"])
def test_sizes_no_model_takes_are_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="bench: size must") as refused:
        parse_size(text)
    with pytest.raises(argparse.ArgumentTypeError, match=re.escape(str(refused.value))):
        size_argument(text)


def test_a_row_names_the_command_that_measures_it_again() -> None:
    request = Request(stages=("step",), rows="int8 + sla", comfy=Path("/x"))
    assert request.command("step") == (
        "turbowan bench --stages step --model 1.3b --size 832x480x81 --rows 'int8 + sla' --comfy DIR"
    )


def test_stages_run_in_order_and_block_with_step() -> None:
    assert suite.stages(Request(stages=("prompt", "step", "block", "kernel"))) == ["kernel", "step", "prompt"]
    assert bench.STAGES == report.STAGES


class TestPlots:
    """matplotlib draws them; that they are legible was looked at."""

    def test_groups_hold_a_row_and_all_its_peers(self) -> None:
        second = dataclasses.replace(ROW, peer="native", peer_ms=600.0)
        kernel = dataclasses.replace(ROW, stage="kernel")
        alone = dataclasses.replace(ROW, name="bare int8", peer=None, peer_ms=None)
        (group,) = plot.groups(plot.headlines([kernel, ROW, second, alone], "int8"))
        assert group.title == "1.3b int8, one step"
        assert (group.ours, group.floor, group.peers) == (100.0, 85.0, (("upstream", 340.0), ("native", 600.0)))
        assert plot.headlines([ROW], "bf16") == []

    def test_a_report_becomes_a_picture(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        source, target = tmp_path / "r.json", tmp_path / "out" / "r.png"
        REPORT.write(source)
        monkeypatch.setattr("sys.argv", ["plot", str(source), str(target), "--rows", "int8"])
        plot.main()
        with Image.open(target) as picture:
            assert picture.format == "PNG"
            colours = {colour[:3] for _, colour in picture.getcolors(maxcolors=1 << 20)}
        assert {plot.OURS, plot.PEER, plot.PAPER} <= {"#{:02x}{:02x}{:02x}".format(*colour) for colour in colours}

    def test_a_report_without_headlines_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ReportError, match="has none"):
            plot.draw(dataclasses.replace(REPORT, rows=()), "", tmp_path / "r.png")

    def test_a_sweep_becomes_a_picture_with_its_cliffs_marked(self, tmp_path: Path) -> None:
        points = [
            {"axis": "batch", "label": str(n), "tokens": 100 * n, "ms": 10.0 * n, "floor_ms": 5.0 * n,
             "working_gib": 1.0 * n, "cliffs": ["over_floor ×1.30"] if n == 2 else [], "launch_bound": n == 1}
            for n in (1, 2)
        ]  # fmt: skip
        source = tmp_path / "s.json"
        source.write_text(json.dumps({"gpu": "NVIDIA H200", "model": "1.3b", "row": "int8", "points": points}))
        scaling_plot.draw(scaling_plot.read(source), tmp_path / "s.png")
        with Image.open(tmp_path / "s.png") as picture:
            colours = {"#{:02x}{:02x}{:02x}".format(*c[:3]) for _, c in picture.getcolors(maxcolors=1 << 20)}
        assert {scaling_plot.CLIFF, plot.OURS} <= colours
        source.write_text('{"points": [{"axis": "batch"}]}')
        with pytest.raises(ReportError, match="scaling writes"):
            scaling_plot.read(source)


class TestCommand:
    def test_without_a_gpu_it_says_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(SystemExit, match="a CUDA GPU is needed"):
            cli.main(["bench", "--stages", "kernel"])

    def test_its_arguments_reach_the_suite(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        seen = []
        monkeypatch.setattr(suite, "run", lambda request, json: seen.append((request, json)))
        monkeypatch.setenv("COMFYUI_DIR", "/comfy")
        arguments = ["--stages", "step,vae", "--model", "14b", "--size", "1280x720x81", "--repeats", "2"]
        assert cli.main(["bench", *arguments, "--peer", "p", "--json", str(tmp_path / "r.json")]) == 0
        request = Request(
            stages=("step", "vae"), model="14b", size=(1280, 720, 81), repeats=2, comfy=Path("/comfy"), peer=Path("p")
        )
        assert seen == [(request, tmp_path / "r.json")]

    @pytest.mark.parametrize("arguments", [["--stages", "step,fly"], ["--size", "1x1x1"], ["--repeats", "0"]])
    def test_wrong_settings_are_refused(self, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["bench", *arguments]) == 1
        assert capsys.readouterr().err.startswith("turbowan: bench: ")

    def test_an_installation_without_benchmarks_says_where_they_are(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        name = f"{turbowan.__name__}.benchmarks"

        def missing(module: str) -> None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        monkeypatch.setattr(bench.importlib, "import_module", missing)
        assert cli.main(["bench"]) == 1
        assert "clone the repository" in capsys.readouterr().err
