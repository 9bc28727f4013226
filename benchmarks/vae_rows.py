"""Rows of the stage `vae`: the Wan 2.1 VAE's decode, and its encode of an I2V condition, beside ComfyUI's own.

The VAE is of released width over random weights in bf16; an I2V condition is one image and grey frames, of which ours
computes those that differ. Nothing is timed unless our decode is as close to a decode in fp32 as ComfyUI's in bf16
(PSNR of 17 frames), and so is our encode; without a ComfyUI the reference is our own in fp32 and the bound `AGREEMENT`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from turbowan.benchmarks import floors, native, random_vae
from turbowan.benchmarks.ceilings import Ceilings
from turbowan.benchmarks.dit_step import relative_error
from turbowan.benchmarks.report import Row
from turbowan.benchmarks.request import Request, Size, size_text
from turbowan.benchmarks.timing import Timing, interleaved
from turbowan.turbo_core import vae as wan_vae
from turbowan.turbo_core import vae_weights

WIDTH = 96
PROBE: Size = (416, 240, 17)
AGREEMENT = 0.05  # bf16 to fp32 is near 0.01
PEAK_TO_PEAK = 2.0  # of a video in [-1, 1]
PARTS = ("decode", "encode")

Codec = dict[str, Callable[[Tensor], Tensor]]


def measure(request: Request, ceilings: Ceilings) -> list[Row]:
    tensors = random_vae.tensors(WIDTH, device="cuda")
    codecs = {"ours": _ours(tensors, torch.bfloat16)}
    if request.comfy is not None:
        native.use(request.comfy)
        codecs["native bf16"] = _native(tensors, torch.bfloat16)
        exact = _native(tensors, torch.float32)
    else:
        exact = _ours(tensors, torch.float32)
    torch.backends.cudnn.allow_tf32 = False  # for the fp32 reference; bf16 has no use for it
    for part in PARTS:
        _check(part, codecs, exact)
    del exact
    torch.cuda.empty_cache()
    shaped = vae_weights.shaped_like(tensors)
    works = {
        "decode": floors.vae(random_vae.shapes(WIDTH), "decoder", request.size),
        "encode": floors.start_image(shaped, request.size),
    }
    rows = []
    for part in PARTS:
        value = _input(part, request.size)
        runs = {name: partial(codec[part], value) for name, codec in codecs.items()}
        times = interleaved(runs, request.repeats)
        floor = floors.total_ms(works[part], ceilings)
        rows.append(_row(f"VAE {part} {size_text(request.size)}", times, floor, request.command("vae")))
    return rows


def _row(name: str, times: dict[str, Timing], floor: float, command: str) -> Row:
    """Peaks are beside the weights, result included."""
    peer = next((name for name in times if name != "ours"), None)
    return Row(
        name=name,
        stage="vae",
        ms=times["ours"].ms,
        peer=peer,
        peer_ms=times[peer].ms if peer else None,
        floor_ms=floor,
        peak_gib=times["ours"].peak_gib,
        peer_peak_gib=times[peer].peak_gib if peer else None,
        command=command,
    )


def _ours(tensors: dict[str, Tensor], dtype: torch.dtype) -> Codec:
    net = vae_weights.from_tensors(tensors, dtype=dtype)
    return {"decode": net.decode, "encode": lambda clip: net.encode(clip[:, :, :2], length=clip.shape[2])}


def _native(tensors: dict[str, Tensor], dtype: torch.dtype) -> Codec:
    net = native.vae(tensors, dtype)
    return {"decode": lambda z: net.decode(z.to(dtype)), "encode": lambda x: net.encode(x.to(dtype))}


def _input(part: str, size: Size) -> Tensor:
    """Latents as a sampler leaves them, or an image with grey frames behind it."""
    width, height, frames = size
    generator = torch.Generator(device="cuda").manual_seed(8)
    half = {"device": "cuda", "dtype": torch.bfloat16}
    if part == "decode":
        shape = (1, wan_vae.LATENT_CHANNELS, (frames - 1) // 4 + 1, height // 8, width // 8)
        return wan_vae.denormalize(torch.randn(shape, generator=generator, **half))
    clip = torch.zeros(1, 3, frames, height, width, **half)
    clip[:, :, 0] = torch.rand(1, 3, height, width, generator=generator, **half) * 2 - 1
    return clip


def _check(part: str, codecs: dict[str, Codec], exact: Codec) -> None:
    value = _input(part, PROBE)
    reference = exact[part](value.float())
    decibels = {name: _psnr(codec[part](value), reference) for name, codec in codecs.items()}
    error = relative_error(codecs["ours"][part](value), reference)
    told = ", ".join(f"{name} {level:.2f} dB" for name, level in decibels.items())
    print(f"check VAE {part}: PSNR to fp32 {told}; relative error of ours {error:.4f}", flush=True)
    floor = decibels.get("native bf16", -math.inf)
    if not (decibels["ours"] >= floor and error < AGREEMENT):
        raise SystemExit(f"VAE {part}: ours must be as close to fp32 as its peer ({told}); nothing is timed")


def _psnr(out: Tensor, reference: Tensor) -> float:
    error = (out.double() - reference.double()).square().mean()
    return float(10 * torch.log10(PEAK_TO_PEAK**2 / error))
