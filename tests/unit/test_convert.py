"""Conversion to safetensors: the same tensors, whole or not at all, in the memory of about one tensor."""

from __future__ import annotations

import functools
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tolerances import codes_agree
from torch import Tensor

from turbowan.turbo_core import checkpoint
from turbowan.turbo_core.block_int8 import dequantize_tensors, quantize_tensors
from turbowan.turbo_core.convert import convert
from turbowan.turbo_core.errors import CheckpointError, SettingsError


@functools.cache
def make(**settings: object) -> dict[str, Tensor]:
    """Shared between tests, which only ever build new dicts from it."""
    return tiny.tiny_tensors(text_dim=64, **settings)


def assert_same(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert set(got) == set(want)
    for name, tensor in want.items():
        assert got[name].dtype == tensor.dtype, name
        assert torch.equal(got[name], tensor), name


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata()


FORMS: dict[str, Callable[[], object]] = {
    "released": make,
    "quantized": lambda: make(quantized=True),
    "training": lambda: tiny.training(make(), wrapped=True),
    "fp16": lambda: make(dtype=torch.float16),
    "mixed dtypes": lambda: make(quantized=True, proj_l_dtype=torch.float32),
    "native": lambda: tiny.native(make(), torch.float32),
}


@pytest.mark.parametrize("form", FORMS)
def test_round_trip(tmp_path: Path, form: str) -> None:
    source = tiny.save_pth(tmp_path / "in.pth", FORMS[form]())
    target = tmp_path / "out.safetensors"
    before = convert(source, target)
    after = checkpoint.read(target)
    assert_same(after.tensors, before.tensors)
    assert_same(load_file(target), before.tensors)
    assert after.config == before.config
    assert after.turbodiffusion == before.turbodiffusion == (form != "native")
    noted = "false" if form == "native" else "true"
    assert metadata_of(target) == {"format": "pt", "model": before.config.name, "turbodiffusion": noted}
    assert [path.name for path in tmp_path.iterdir() if path not in (source, target)] == []


def test_converting_twice_changes_nothing(tmp_path: Path) -> None:
    source = tiny.save_pth(tmp_path / "in.pth", make(quantized=True))
    convert(source, tmp_path / "one.safetensors")
    convert(tmp_path / "one.safetensors", tmp_path / "two.safetensors")
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()


def test_tensors_are_aligned_and_leave_no_gap(tmp_path: Path) -> None:
    odd = make(quantized=True) | {"blocks.0.modulation": make()["blocks.0.modulation"].float()}
    convert(tiny.save_pth(tmp_path / "in.pth", odd), tmp_path / "out.safetensors")
    data = (tmp_path / "out.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__")
    end = 0
    for entry in sorted(header.values(), key=lambda entry: entry["data_offsets"]):
        start, stop = entry["data_offsets"]
        assert start == end
        assert start % {"F32": 4, "BF16": 2, "I8": 1}[entry["dtype"]] == 0
        end = stop
    assert length % 8 == 0
    assert 8 + length + end == len(data)


@pytest.mark.parametrize(("name", "given", "expert"), [
    ("x-high-720P.pth", None, "high"),
    ("x.pth", "low", "low"),
    ("x-high.pth", "low", "low"),
    ("x.pth", None, None),
])  # fmt: skip
def test_expert_is_kept_in_the_metadata(tmp_path: Path, name: str, given: str | None, expert: str | None) -> None:
    source = tiny.save_pth(tmp_path / name, make(in_dim=36, num_layers=1))
    convert(source, tmp_path / "renamed.safetensors", expert=given)
    assert metadata_of(tmp_path / "renamed.safetensors").get("expert") == expert
    assert checkpoint.read(tmp_path / "renamed.safetensors").expert == expert


def test_expert_of_a_text_to_video_model_is_refused(tmp_path: Path) -> None:
    source = tiny.save_pth(tmp_path / "x.pth", make(num_layers=1))
    with pytest.raises(SettingsError, match="--expert is for an image-to-video model"):
        convert(source, tmp_path / "y.safetensors", expert="high")
    assert not (tmp_path / "y.safetensors").exists()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_int8_follows_the_published_rule(tmp_path: Path, dtype: torch.dtype) -> None:
    released = make(dtype=dtype)
    source = tiny.save_pth(tmp_path / "in.pth", released)
    convert(source, tmp_path / "out.safetensors", int8=True)
    read = checkpoint.read(tmp_path / "out.safetensors")
    assert read.config.quantized
    assert read.config.has_proj_l
    assert_same(read.tensors, quantize_tensors(checkpoint.read(source).tensors))
    layer = "blocks.1.ffn.2"
    codes, scale = tiny.quantize_block(released[f"{layer}.weight"])
    assert torch.equal(read.tensors[f"{layer}.scale"], scale)
    assert codes_agree(read.tensors[f"{layer}.int8_weight"], codes)


@pytest.mark.parametrize("ours", [False, True])
def test_origin_survives_quantization_and_native_names(tmp_path: Path, ours: bool) -> None:
    """TurboDiffusion's weights without proj_l look native after conversion, a native file in int8 looks like them."""
    released = make(proj_l=False)
    source = tiny.save_pth(tmp_path / "in.pth", released if ours else tiny.native(released))
    for int8 in (False, True):
        convert(source, tmp_path / "out.safetensors", int8=int8, force=True)
        assert checkpoint.read(tmp_path / "out.safetensors").turbodiffusion == ours


def test_quantize_and_dequantize_tensors() -> None:
    native = {name: tensor.clone() for name, tensor in tiny.native(make()).items()}
    seen: list[tuple[int, int]] = []
    quantized = quantize_tensors(native, lambda done, total: seen.append((done, total)))
    assert seen == [(done, 20) for done in range(1, 21)]
    assert not any(name in quantized for name in native if name.endswith("ffn.0.weight"))
    assert quantized["text_embedding.0.weight"] is native["text_embedding.0.weight"]
    assert quantized["blocks.0.norm3.weight"] is native["blocks.0.norm3.weight"]
    assert_same(quantize_tensors(quantized), quantized)

    dense = dequantize_tensors(quantized, torch.float32)
    assert set(dense) == set(native)
    for name in ("blocks.0.self_attn.q", "blocks.1.ffn.2"):
        weight = native[f"{name}.weight"].float()
        want = tiny.dequantize_block(quantized[f"{name}.int8_weight"], quantized[f"{name}.scale"])
        assert torch.equal(dense[f"{name}.weight"], want)
        assert (dense[f"{name}.weight"] - weight).norm() / weight.norm() < 0.01


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_gpu_rounds_as_the_cpu_does(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(2049, 1300, generator=generator).to(dtype)
    weight[5, 7] = 40.0
    native = {"blocks.0.ffn.0.weight": weight, "head.head.weight": weight}
    gpu = torch.device("cuda")
    quantized = quantize_tensors(native)
    assert_same(quantize_tensors(native, device=gpu), quantized)
    assert_same(dequantize_tensors(quantized, dtype, gpu), dequantize_tensors(quantized, dtype))


def test_quantizing_nan_is_refused() -> None:
    weight = torch.zeros(256, 256)
    weight[200, 3] = float("nan")
    with pytest.raises(CheckpointError, match=r"blocks\.0\.ffn\.0\.weight must be finite.*; the file is damaged"):
        quantize_tensors({"blocks.0.ffn.0.weight": weight})


def test_progress_counts_every_byte(tmp_path: Path) -> None:
    source = tiny.save_pth(tmp_path / "in.pth", make())
    steps: list[tuple[int, int]] = []
    convert(source, tmp_path / "out.safetensors", progress=lambda written, total: steps.append((written, total)))
    tensors = checkpoint.read(source).tensors
    total = sum(tensor.nbytes for tensor in tensors.values())
    assert {step[1] for step in steps} == {total}
    assert sum(step[0] for step in steps) == total


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_aborted_conversion_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    source = tiny.save_pth(tmp_path / "in.pth", make())
    target = tmp_path / "out.safetensors"
    target.write_bytes(b"earlier")
    count = 0

    def progress(written: int, total: int) -> None:
        nonlocal count
        count += 1
        if count == 5:
            raise error

    with pytest.raises(error):
        convert(source, target, force=True, progress=progress)
    assert target.read_bytes() == b"earlier"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.pth", "out.safetensors"]


def test_a_bad_source_leaves_what_was_there(tmp_path: Path) -> None:
    source = tiny.save_pth(tmp_path / "in.pth", {"mystery": torch.zeros(1)})
    target = tmp_path / "out.safetensors"
    target.write_bytes(b"earlier")
    with pytest.raises(CheckpointError):
        convert(source, target, force=True)
    assert target.read_bytes() == b"earlier"


def test_force_overwrites(tmp_path: Path) -> None:
    source = tiny.save_pth(tmp_path / "in.pth", make(num_layers=1))
    target = tmp_path / "out.safetensors"
    target.write_bytes(b"earlier")
    with pytest.raises(SettingsError, match=r"must not exist.*--force"):
        convert(source, target)
    assert target.read_bytes() == b"earlier"
    convert(source, target, force=True)
    assert checkpoint.read(target).config.num_layers == 1


def test_refused_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny.save_pth(tmp_path / "in.pth", make(quantized=True, num_layers=1))
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(SettingsError, match=r"must end in \.safetensors, came out\.pth; rename it"):
        convert(source, tmp_path / "out.pth")
    with pytest.raises(SettingsError, match="must exist, it does not; make it first"):
        convert(source, tmp_path / "nowhere" / "out.safetensors")
    with pytest.raises(SettingsError, match="is a folder; add a file name"):
        convert(source, tmp_path / "folder.safetensors")
    with pytest.raises(SettingsError, match="is quantized; leave --int8 out"):
        convert(source, tmp_path / "out.safetensors", int8=True)
    convert(source, tmp_path / "out.safetensors")
    with pytest.raises(SettingsError, match="must be another file than the input"):
        convert(tmp_path / "out.safetensors", tmp_path / "out.safetensors", force=True)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 99, 1))
    with pytest.raises(SettingsError, match=r"must have .* GB free, it has 0\.0 GB; free some space"):
        convert(source, tmp_path / "other.safetensors")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_stays_near_one_tensor(tmp_path: Path) -> None:
    source = tiny.save_pth(tmp_path / "in.pth", make(dim=1024, ffn_dim=4096, num_layers=4))
    highest = start = anonymous_bytes()

    def watch(written: int, total: int) -> None:
        nonlocal highest
        highest = max(highest, anonymous_bytes())

    convert(source, tmp_path / "out.safetensors", progress=watch)
    assert source.stat().st_size > 130e6
    assert highest - start < 20e6, f"{(highest - start) / 1e6:.0f} MB; the largest tensor has 13 MB"


def anonymous_bytes() -> int:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) * 1024
