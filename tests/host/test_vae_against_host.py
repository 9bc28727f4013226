"""Our VAE against the host's, with the same weights in fp32: the module itself, and the host's VAE object.

The weights are random ones, and the demo's trained ones from its file as it is.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from tolerances import SAME_MATHS_FP32, relative_error
from torch import Tensor
from vae_reference import latents, video

from turbowan.turbo_core import demo_bundle, vae, vae_weights

pytestmark = pytest.mark.host

FRAMES = (1, 2, 3, 5)
SIDES = (3, 5)
WIDTH = 8
DEMO = demo_bundle.FOLDER / demo_bundle.VAE
_IN_HOST = """
import sys
arguments = sys.argv[1:]
sys.argv = ["test", "--cpu"]
import comfy.options
comfy.options.enable_args_parsing()
import torch
import comfy.latent_formats, comfy.ldm.wan.vae, comfy.sd
from safetensors.torch import load_file, save_file

weights, inputs, outputs = load_file(arguments[0]), load_file(arguments[1]), {}
with torch.inference_mode():
    module = comfy.ldm.wan.vae.WanVAE(
        dim=int(arguments[3]), z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2, attn_scales=[],
        temperal_downsample=[False, True, True], dropout=0.0,
    )
    module.load_state_dict(weights, strict=True)
    for name, tensor in inputs.items():
        outputs[name] = (module.decode if name.startswith("z") else module.encode)(tensor)
    host = comfy.sd.VAE(sd=weights, dtype=torch.float32)
    outputs["image"] = host.decode(inputs["z3"])
    outputs["latent"] = host.encode(outputs["image"][0])
    outputs["raw"] = comfy.latent_formats.Wan21().process_out(inputs["z3"])
save_file({name: tensor.contiguous() for name, tensor in outputs.items()}, arguments[2])
"""


@pytest.fixture(scope="module", params=["random", "demo"])
def weights(request: pytest.FixtureRequest) -> dict[str, Tensor]:
    return tiny.tiny_vae_tensors(WIDTH) if request.param == "random" else load_file(DEMO)


@pytest.fixture(scope="module")
def model(weights: dict[str, Tensor]) -> vae.WanVAE:
    return vae_weights.from_tensors(weights, dtype=torch.float32)


@pytest.fixture(scope="module")
def inputs() -> dict[str, Tensor]:
    clips = {f"z{frames}": latents(frames, SIDES, batch=2) for frames in FRAMES}
    return clips | {f"x{frames}": video(frames, SIDES, batch=2) for frames in FRAMES}


@pytest.fixture(scope="module")
def host_outputs(
    checkout: Path,
    host_python: Path,
    tmp_path_factory: pytest.TempPathFactory,
    weights: dict[str, Tensor],
    inputs: dict[str, Tensor],
) -> dict[str, Tensor]:
    folder = tmp_path_factory.mktemp("vae")
    files = [folder / name for name in ("weights.safetensors", "inputs.safetensors", "outputs.safetensors")]
    save_file(weights, files[0])
    save_file(inputs, files[1])
    command = [str(host_python), "-c", _IN_HOST, *map(str, files), str(WIDTH)]
    done = subprocess.run(command, check=False, cwd=checkout, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
    return load_file(files[2])


@pytest.mark.parametrize("frames", FRAMES)
def test_decode_as_host(host_outputs, model, inputs, frames: int) -> None:
    out = model.decode(inputs[f"z{frames}"])
    assert relative_error(out, host_outputs[f"z{frames}"]) < SAME_MATHS_FP32


@pytest.mark.parametrize("frames", FRAMES)
def test_encode_as_host(host_outputs, model, inputs, frames: int) -> None:
    out = model.encode(inputs[f"x{frames}"])
    assert relative_error(out, host_outputs[f"x{frames}"]) < SAME_MATHS_FP32


def test_decode_takes_what_a_latent_holds(host_outputs, model, inputs) -> None:
    image = model.decode(inputs["z3"]).movedim(1, -1).add(1).div(2).clamp(0, 1)
    assert (image - host_outputs["image"].view_as(image)).abs().max() < SAME_MATHS_FP32


def test_encode_gives_what_a_latent_holds(host_outputs, model) -> None:
    frames = host_outputs["image"][0].movedim(-1, 0)[None] * 2 - 1
    assert relative_error(model.encode(frames), host_outputs["latent"]) < SAME_MATHS_FP32


def test_normalization_as_host(host_outputs, inputs) -> None:
    assert torch.allclose(vae.denormalize(inputs["z3"]), host_outputs["raw"], rtol=1e-6, atol=1e-6)
