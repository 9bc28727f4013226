"""Every form in which a usable checkpoint comes: recognised, renamed, bit for bit, and lazily."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import save_file
from torch import Tensor

from turbowan.turbo_core import checkpoint
from turbowan.turbo_core.config import WanConfig
from turbowan.turbo_core.native_names import expected_tensors

TEXT_DIM = 64
RELEASED_PROJ_L = "attn_op.local_attn.proj_l."


@functools.cache
def make(**settings: object) -> dict[str, Tensor]:
    """Shared between tests, which only ever build new dicts from it."""
    return tiny.tiny_tensors(text_dim=TEXT_DIM, **settings)


def as_native(released: dict[str, Tensor]) -> dict[str, Tensor]:
    """What `read` must return, by the published naming."""
    renamed = {name.replace(RELEASED_PROJ_L, "proj_l."): tensor for name, tensor in released.items()}
    patch = renamed["patch_embedding.weight"]
    return renamed | {"patch_embedding.weight": patch.reshape(patch.shape[0], -1, 1, 2, 2)}


def assert_same(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert set(got) == set(want)
    for name, tensor in want.items():
        assert got[name].dtype == tensor.dtype, name
        assert torch.equal(got[name], tensor), name


def save_pth(path: Path, content: object) -> None:
    torch.save(content, path)


def save_legacy(path: Path, content: object) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def save_safetensors(path: Path, content: object) -> None:
    save_file(content, path)


@pytest.mark.parametrize("save", [save_pth, save_legacy, save_safetensors])
@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("in_dim", [16, 36])
def test_released_layout(tmp_path: Path, save: Callable[[Path, object], None], quantized: bool, in_dim: int) -> None:
    released = make(quantized=quantized, in_dim=in_dim, proj_l_dtype=torch.float32)
    path = tmp_path / "model.pth"  # the content decides the format, not the extension
    save(path, released)
    read = checkpoint.read(path)
    assert_same(read.tensors, as_native(released))
    assert read.config == WanConfig(
        dim=256,
        ffn_dim=384,
        num_heads=2,
        num_layers=2,
        in_dim=in_dim,
        text_dim=TEXT_DIM,
        has_proj_l=True,
        quantized=quantized,
    )
    assert read.config.family == ("i2v" if in_dim == 36 else "t2v")
    assert read.turbodiffusion
    assert read.ignored == ()
    assert read.path == path


@pytest.mark.parametrize("in_dim", [16, 36])
def test_patch_columns_are_channel_major(tmp_path: Path, in_dim: int) -> None:
    released = make(in_dim=in_dim)
    read = checkpoint.read(tiny.save_pth(tmp_path / "model.pth", released))
    patch = read.tensors["patch_embedding.weight"]
    assert patch.shape == (256, in_dim, 1, 2, 2)
    c, h, w = in_dim - 1, 1, 0
    assert torch.equal(patch[:, c, 0, h, w], released["patch_embedding.weight"][:, c * 4 + h * 2 + w])


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("quantized", [False, True])
def test_training_file(tmp_path: Path, wrapped: bool, quantized: bool) -> None:
    released = make(quantized=quantized)
    content = tiny.training(released, wrapped=wrapped)
    read = checkpoint.read(tiny.save_pth(tmp_path / "training.pth", content))
    assert_same(read.tensors, as_native(released))
    assert "net." in read.layout


@pytest.mark.parametrize("container", ["state_dict", "model", "module", "net", None])
@pytest.mark.parametrize("prefix", ["", "net.", "model.diffusion_model.", "diffusion_model.", "module."])
def test_containers_and_prefixes(tmp_path: Path, container: str | None, prefix: str) -> None:
    released = make(num_layers=1)
    content: object = {prefix + name: tensor for name, tensor in released.items()}
    if container:
        content = {container: content, "iteration": 7, "optimizer": {"step": torch.ones(1)}}
    read = checkpoint.read(tiny.save_pth(tmp_path / "model.pth", content))
    assert_same(read.tensors, as_native(released))
    assert set(read.ignored) == ({"iteration", "optimizer"} if container else set())


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("container", ["state_dict", "model", "net"])
def test_a_tensor_beside_the_container(tmp_path: Path, container: str, nested: bool) -> None:
    released = make(num_layers=1)
    inner: dict[str, object] = {f"net.{name}": tensor for name, tensor in released.items()}
    content = {"iteration": torch.tensor(7), container: {"module": inner} if nested else inner}
    read = checkpoint.read(tiny.save_pth(tmp_path / "model.pth", content))
    assert_same(read.tensors, as_native(released))
    assert read.ignored == ("iteration",)


@pytest.mark.parametrize("prefix", ["", "net.", "_orig_mod.net."])
def test_a_container_beside_the_model_is_left_out(tmp_path: Path, prefix: str) -> None:
    released = make(num_layers=1)
    content = {"state_dict": {"step": torch.ones(1)}} | {prefix + name: tensor for name, tensor in released.items()}
    read = checkpoint.read(tiny.save_pth(tmp_path / "model.pth", content))
    assert_same(read.tensors, as_native(released))
    assert read.ignored == ("state_dict",)


def test_an_empty_container_hides_no_other(tmp_path: Path) -> None:
    released = make(num_layers=1)
    content = {"state_dict": {}, "model": released}
    assert_same(checkpoint.read(tiny.save_pth(tmp_path / "model.pth", content)).tensors, as_native(released))


@pytest.mark.parametrize("name", ["_orig_mod.net.{}", "net._checkpoint_wrapped_module.{}"])
def test_wrappers_before_the_first_name(tmp_path: Path, name: str) -> None:
    released = make()
    content = {"model": {name.format(key): tensor for key, tensor in released.items()}}
    assert_same(checkpoint.read(tiny.save_pth(tmp_path / "a.pth", content)).tensors, as_native(released))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("in_dim", [16, 36])
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_native_wan_file_is_dense(tmp_path: Path, dtype: torch.dtype, in_dim: int, prefix: str) -> None:
    native = tiny.native(make(in_dim=in_dim), dtype)
    path = tmp_path / "wan.safetensors"
    save_file({prefix + name: tensor for name, tensor in native.items()}, path)
    read = checkpoint.read(path)
    assert_same(read.tensors, native)
    assert not read.config.has_proj_l
    assert not read.config.quantized
    assert not read.turbodiffusion
    assert "native Wan" in read.layout


@pytest.mark.parametrize("mark", [False, True])
def test_a_saved_mark_says_whose_model_it_is(tmp_path: Path, mark: bool) -> None:
    """A native model quantized at load and saved looks like TurboDiffusion's, and an unquantized one like native."""
    tensors = tiny.native(make()) if mark else as_native(make(quantized=True))
    tensors |= {"turbodiffusion": torch.tensor([mark], dtype=torch.uint8)}
    path = tmp_path / "saved.safetensors"
    save_file({"model.diffusion_model." + name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    assert checkpoint.read(path).turbodiffusion == mark


def test_saved_by_comfyui_from_our_model(tmp_path: Path) -> None:
    released = make(quantized=True)
    native = as_native(released)
    saved = {}
    for name, tensor in native.items():
        name = name.replace(".int8_weight", ".weight").replace(".scale", ".weight_scale")
        saved["model.diffusion_model." + name] = tensor
    save_file(saved, tmp_path / "saved.safetensors", metadata={"modelspec.title": "x"})
    read = checkpoint.read(tmp_path / "saved.safetensors")
    assert_same(read.tensors, native)
    assert read.config.quantized
    assert read.config.has_proj_l


def test_whole_comfyui_checkpoint_with_vae_and_encoder(tmp_path: Path) -> None:
    native = tiny.native(make())
    content = {"model.diffusion_model." + name: tensor for name, tensor in native.items()}
    others = {"vae.decoder.head.0.gamma": torch.ones(4), "text_encoders.umt5xxl.shared.weight": torch.ones(4)}
    save_file(content | others, tmp_path / "all.safetensors")
    read = checkpoint.read(tmp_path / "all.safetensors")
    assert_same(read.tensors, native)
    assert set(read.ignored) == set(others)


HARMLESS = (
    "freqs",
    "rope_embedder.seq",
    "rope_position_embedding.dim_spatial_range",
    "accum_video_sample_counter",
    "accum_iteration",
    "blocks.0.self_attn._extra_state",
    "_extra_state",
    "net_ema.head.modulation",
    "net_fake_score.head.modulation",
)


def test_harmless_keys_are_dropped_and_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    released = make()
    content = released | {name: torch.zeros(2) for name in HARMLESS}
    path = tiny.save_pth(tmp_path / "model.pth", content)
    with caplog.at_level(logging.INFO, logger="turbowan"):
        read = checkpoint.read(path)
    assert_same(read.tensors, as_native(released))
    assert set(read.ignored) == set(HARMLESS)
    assert len(caplog.records) == 1
    assert "freqs" in caplog.text


def test_training_file_with_ema_and_counters(tmp_path: Path) -> None:
    released = make(num_layers=1)
    state = {f"net.{name}": tensor for name, tensor in released.items()}
    state |= {f"net_ema.{name}": tensor for name, tensor in released.items()}
    state |= {"net.accum_iteration": torch.zeros(1), "net.blocks.0.ffn._extra_state": torch.zeros(0)}
    read = checkpoint.read(tiny.save_pth(tmp_path / "a.pth", {"state_dict": state}))
    assert_same(read.tensors, as_native(released))
    assert len(read.ignored) == len(released) + 2


@pytest.mark.parametrize(
    ("name", "in_dim", "expert"),
    [
        ("TurboWan2.2-I2V-A14B-high-720P.pth", 36, "high"),
        ("TurboWan2.2-I2V-A14B-low-720P-quant.pth", 36, "low"),
        ("wan2.2_i2v_high_noise_14B_fp16.pth", 36, "high"),
        ("Wan2_2-I2V-LowNoise.pth", 36, "low"),
        ("highlights.pth", 36, None),
        ("from_high_to_low.pth", 36, None),
        ("model.pth", 36, None),
        ("t2v_low_memory.pth", 16, None),
    ],
)
def test_expert_from_the_file_name(tmp_path: Path, name: str, in_dim: int, expert: str | None) -> None:
    path = tiny.save_pth(tmp_path / name, make(in_dim=in_dim, num_layers=1))
    assert checkpoint.read(path).expert == expert


def test_expert_from_metadata_wins(tmp_path: Path) -> None:
    path = tmp_path / "model-low.safetensors"
    save_file(make(in_dim=36, num_layers=1), path, metadata={"expert": "high"})
    assert checkpoint.read(path).expert == "high"


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize(("dim", "ffn_dim", "layers"), [(1536, 8960, 30), (5120, 13824, 40)])
def test_real_sizes_are_described(dim: int, ffn_dim: int, layers: int, quantized: bool) -> None:
    config = WanConfig(
        dim=dim,
        ffn_dim=ffn_dim,
        num_heads=dim // 128,
        num_layers=layers,
        has_proj_l=True,
        quantized=quantized,
    )
    expected = expected_tensors(config)
    # 15 outside the blocks; 29 a block, and a scale more for each of its ten quantized Linears
    assert len(expected) == 15 + layers * (29 + (10 if quantized else 0))
    if quantized:
        assert expected["blocks.0.ffn.0.scale"].shape == (ffn_dim // 128, dim // 128)


def test_unusual_depth_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    config = WanConfig(dim=1536, ffn_dim=8960, num_heads=12, num_layers=2)
    tensors = {name: torch.ones(1).expand(entry.shape) for name, entry in expected_tensors(config).items()}
    checkpoint.validate(tensors, config, "file.pth")
    assert "has 30 blocks, this file has 2" in caplog.text


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("save", [save_pth, save_safetensors])
def test_reading_leaves_the_weights_on_disk(tmp_path: Path, save: Callable[[Path, object], None]) -> None:
    path = tmp_path / "model.bin"
    save(path, make(dim=1024, ffn_dim=4096, num_layers=4))
    before = resident_bytes()
    read = checkpoint.read(path)
    grown = resident_bytes() - before
    assert path.stat().st_size > 130e6
    assert grown < 20e6, f"{grown / 1e6:.0f} MB resident after reading {read.config.name}"


def resident_bytes() -> int:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) * 1024


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_link_into_a_download_cache(tmp_path: Path) -> None:
    blob = tiny.save_pth(tmp_path / "blobs" / "0123abcd", make(in_dim=36))
    link = tmp_path / "TurboWan2.2-I2V-A14B-low-720P.pth"
    link.symlink_to(blob)
    assert checkpoint.read(str(link)).expert == "low"
