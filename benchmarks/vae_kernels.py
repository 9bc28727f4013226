"""Time the VAE's kernels at the shapes of a decode's passes, after holding each against fp32 at an odd size.

    python -m turbowan.benchmarks.vae_kernels [--size 832x480] [--frames 4]

Ours and what torch and cuDNN do instead take turns, each after a flush of the L2 cache. The convolutions' peer gets its
window for nothing: the copies that put remembered frames before the others are not timed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from turbowan.benchmarks.dit_step import relative_error
from turbowan.benchmarks.timing import short
from turbowan.kernels import vae_bias, vae_conv, vae_head, vae_norm, vae_upsample

RELATIVE_ERROR_LIMIT = 5e-3  # one bf16 rounding is 1.7e-3
CHECKED = 104, 72  # tiles that end outside the frame at every level
LAYOUT = torch.channels_last_3d


@dataclass(frozen=True, kw_only=True)
class Case:
    name: str
    ours: Callable[[], Tensor]
    peer: Callable[[], Tensor]
    exact: Callable[[], Tensor]
    flops: float
    bytes: float


class Inputs:
    """Random tensors in bf16, weights scaled by their fan-in."""

    def __init__(self, device: torch.device, frames: int):
        self.device, self.frames = device, frames
        self._generator = torch.Generator(device=device).manual_seed(3)

    def clip(self, channels: int, size: tuple[int, int], frames: int | None = None) -> Tensor:
        values = self._random(1, channels, frames or self.frames, *size)
        return values.contiguous(memory_format=LAYOUT)

    def weight(self, *shape: int) -> Tensor:
        return self._random(*shape) / (torch.Size(shape[1:]).numel() ** 0.5)

    def vector(self, channels: int) -> Tensor:
        return self._random(channels)

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.device, dtype=torch.bfloat16, generator=self._generator)


def cases(inputs: Inputs, width: int, height: int) -> Iterator[Case]:
    """What a decode calls, from the last level to the first one doubled."""
    full, half, quarter = ((height // n, width // n) for n in (1, 2, 4))
    yield _norm(inputs, 96, full)
    yield _bias(inputs, 96, full)
    yield _conv(inputs, 96, 96, full)
    yield _conv(inputs, 192, 192, half)
    yield _conv(inputs, 384, 384, quarter)
    yield _conv(inputs, 384, 768, quarter, side=1)
    yield _upsample(inputs, 192, 96, half, copies=1)
    yield _upsample(inputs, 384, 192, quarter, copies=2)
    yield _head(inputs, 96, full)


def _norm(inputs: Inputs, channels: int, size: tuple[int, int]) -> Case:
    x, gamma = inputs.clip(channels, size), inputs.vector(channels)

    def run(norm: Callable[..., None], x: Tensor, gamma: Tensor) -> Tensor:
        out = torch.empty_like(x)
        norm(x, gamma, silu=True, out=out)
        return out

    return Case(
        name=f"norm, SiLU {channels}",
        ours=lambda: run(vae_norm.channel_norm, x, gamma),
        peer=lambda: run(vae_norm.channel_norm_ref, x, gamma),
        exact=lambda: run(vae_norm.channel_norm_ref, x.float(), gamma.float()),
        flops=0,
        bytes=2 * x.nbytes,
    )


def _bias(inputs: Inputs, channels: int, size: tuple[int, int]) -> Case:
    x, residual, bias = inputs.clip(channels, size), inputs.clip(channels, size), inputs.vector(channels)
    before = x.clone()

    def exact() -> Tensor:
        return before.float() + bias.float()[:, None, None, None] + residual.float()

    def run(add: Callable[..., None]) -> Tensor:
        add(x, bias, residual)
        return x

    return Case(
        name=f"bias, residual {channels}",
        ours=lambda: run(vae_bias.add_bias),
        peer=lambda: run(vae_bias.add_bias_ref),
        exact=exact,
        flops=0,
        bytes=3 * x.nbytes,
    )


def _conv(inputs: Inputs, c_in: int, c_out: int, size: tuple[int, int], side: int = 3) -> Case:
    x, past, residual = inputs.clip(c_in, size), inputs.clip(c_in, size, 2), inputs.clip(c_out, size)
    weight, bias = inputs.weight(c_out, c_in, 3, side, side), inputs.vector(c_out)
    window, packed = torch.cat((past, x), 2), vae_conv.pack_weight(weight)

    def plain(frames: Tensor, dtype: torch.dtype) -> Tensor:
        out = F.conv3d(frames, weight.to(dtype), bias.to(dtype), padding=(0, side // 2, side // 2))
        return out.add_(residual)

    return Case(
        name=f"conv {c_in} → {c_out} 3x{side}x{side}, residual",
        ours=lambda: vae_conv.causal_conv((x,), past, packed, bias, residual, side),
        peer=lambda: plain(window, x.dtype),
        exact=lambda: plain(window.float(), torch.float32),
        flops=2 * x.numel() // c_in * weight.numel(),
        bytes=x.nbytes + past.nbytes + 2 * residual.nbytes,
    )


def _upsample(inputs: Inputs, c_in: int, c_out: int, size: tuple[int, int], copies: int) -> Case:
    x = inputs.clip(copies * c_in, size, max(1, inputs.frames // copies))
    weight, bias = inputs.weight(c_out, c_in, 3, 3), inputs.vector(c_out)
    packed = vae_upsample.pack_weight(weight)
    positions = copies * x.numel() // (copies * c_in)
    return Case(
        name=f"upsample {copies}·{c_in} → {c_out}",
        ours=lambda: vae_upsample.upsample_conv(x, packed, bias, copies),
        peer=lambda: vae_upsample.upsample_conv_ref(x, weight, bias, copies),
        exact=lambda: vae_upsample.upsample_conv_ref(x.float(), weight.float(), bias.float(), copies),
        flops=32 * positions * c_in * c_out,
        bytes=x.nbytes + 8 * positions * c_out,
    )


def _head(inputs: Inputs, c_in: int, size: tuple[int, int]) -> Case:
    x, gamma = inputs.clip(c_in, size), inputs.vector(c_in)
    weight, bias = inputs.weight(3, c_in, 3, 3, 3), inputs.vector(3)

    def ours() -> Tensor:
        return vae_head.sum_taps(vae_head.tap_products(x, gamma, weight), None, bias, size[0])[0]

    def plain(x: Tensor) -> Tensor:
        normed = torch.empty_like(x)
        vae_norm.channel_norm_ref(x, gamma.to(x.dtype), silu=True, out=normed)
        return F.conv3d(F.pad(normed, (0, 0, 0, 0, 2, 0)), weight.to(x.dtype), bias.to(x.dtype), padding=(0, 1, 1))

    return Case(
        name=f"head {c_in} → 3",
        ours=ours,
        peer=lambda: plain(x),
        exact=lambda: plain(x.float()),
        flops=2 * x.numel() * 81,
        bytes=x.nbytes + 4 * x.numel() // c_in * 81,
    )


def check(device: torch.device, frames: int) -> None:
    """Raise unless every kernel agrees with fp32."""
    for case in cases(Inputs(device, frames), *CHECKED):
        error = relative_error(case.ours(), case.exact())
        print(f"check {case.name:36s} relative error {error:.2e}", flush=True)
        if not error < RELATIVE_ERROR_LIMIT:
            raise SystemExit(f"{case.name} is wrong ({error:.2e}): nothing is timed")


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="832x480", help="width x height of the video")
    parser.add_argument("--frames", type=int, default=4, help="frames of a pass at full resolution")
    arguments = parser.parse_args()
    width, height = (int(part) for part in arguments.size.split("x"))
    device = torch.device("cuda")
    torch.backends.cudnn.allow_tf32 = False  # for the fp32 reference
    reason = vae_conv.CAUSAL_CONV.refusal(torch.empty(1, 32, device=device, dtype=torch.bfloat16))
    if reason is not None:
        raise SystemExit(f"the VAE's convolutions cannot run here: {reason}")
    check(device, arguments.frames)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {arguments.size}, {arguments.frames} frames")
    for case in cases(Inputs(device, arguments.frames), width, height):
        times = short({"ours": case.ours, "peer": case.peer}, rounds=10)
        rate = case.flops / times["ours"] / 1e9
        print(
            f"{case.name:36s} {times['ours']:7.3f} ms, torch and cuDNN {times['peer']:7.3f} ms, "
            f"{rate:4.0f} TFLOP/s, {case.bytes / times['ours'] / 1e9:5.2f} TB/s",
            flush=True,
        )


if __name__ == "__main__":
    main()
