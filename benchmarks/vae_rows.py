"""Rows of the stage `vae`: the Wan 2.1 VAE's decode, and its encode of an I2V condition, beside ComfyUI's own.

The VAE is of released width over random weights in bf16; an I2V condition is one image and grey frames, of which ours
computes those that differ. Nothing is timed unless our decode is as close to a decode in fp32 as ComfyUI's in bf16
(PSNR of a small clip), and so is our encode; without a ComfyUI the reference is our own in fp32 and the bound
`AGREEMENT`.
"""

from __future__ import annotations

import math
import time
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
PROBE: Size = (208, 120, 17)  # passes with a past, tiles that end outside the frame; a million values for a PSNR
AGREEMENT = 0.05  # bf16 to fp32 is near 0.01
PEAK_TO_PEAK = 2.0  # of a video in [-1, 1]
PARTS = ("decode", "encode")

Codec = dict[str, Callable[[Tensor], Tensor]]


def measure(request: Request, ceilings: Ceilings) -> list[Row]:
    tensors = random_vae.tensors(WIDTH, device="cuda")
    codecs = {"ours": _ours(tensors, torch.bfloat16, compiled=True)}
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


def _ours(tensors: dict[str, Tensor], dtype: torch.dtype, *, compiled: bool = False) -> Codec:
    net = vae_weights.from_tensors(tensors, dtype=dtype)
    if compiled:  # in parallel; a first call would compile one kernel after another
        for part in PARTS:
            net.compile_ahead(part)
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
        shape = (1, wan_vae.LATENT_CHANNELS, *wan_vae.latent_size(frames, height, width))
        return wan_vae.denormalize(torch.randn(shape, generator=generator, **half))
    clip = torch.zeros(1, 3, frames, height, width, **half)
    clip[:, :, 0] = torch.rand(1, 3, height, width, generator=generator, **half) * 2 - 1
    return clip


def _check(part: str, codecs: dict[str, Codec], exact: Codec) -> None:
    """SystemExit unless ours is near fp32 and no farther from it than its peer; each runs once."""
    value = _input(part, PROBE)
    started = time.perf_counter()
    reference = exact[part](value.float())
    decibels, errors = {}, {}
    for name, codec in codecs.items():
        out = codec[part](value)
        decibels[name], errors[name] = _psnr(out, reference), relative_error(out, reference)
    told = ", ".join(f"{name} {level:.2f} dB" for name, level in decibels.items())
    seconds = time.perf_counter() - started
    print(
        f"check VAE {part}: PSNR to fp32 {told}; relative error of ours {errors['ours']:.4f} ({seconds:.1f} s)",
        flush=True,
    )
    floor = decibels.get("native bf16", -math.inf)
    if not (decibels["ours"] >= floor and errors["ours"] < AGREEMENT):
        raise SystemExit(f"VAE {part}: ours must be as close to fp32 as its peer ({told}); nothing is timed")


def _psnr(out: Tensor, reference: Tensor) -> float:
    error = (out.double() - reference.double()).square().mean()
    return float(10 * torch.log10(PEAK_TO_PEAK**2 / error))
