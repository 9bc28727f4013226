"""The Wan 2.1 VAE as formulas over a whole clip: no passes, no memory, nothing of the package under test."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

SIDES = (3, 1)  # of a latent: odd, and less than a convolution's reach


def norm_ref(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    gamma = w[f"{name}.gamma"].view(-1, 1, 1, 1)
    return F.normalize(x, dim=1) * x.shape[1] ** 0.5 * gamma


def causal_ref(w: dict[str, Tensor], name: str, x: Tensor, *, behind: int = 2, stride: int = 1) -> Tensor:
    weight = w[f"{name}.weight"]
    side = weight.shape[-1] // 2
    x = F.pad(x, (side, side, side, side, behind, 0))
    return F.conv3d(x, weight, w[f"{name}.bias"], stride=(stride, 1, 1))


def norm_conv_ref(w: dict[str, Tensor], norm: str, conv: str, x: Tensor) -> Tensor:
    return causal_ref(w, conv, F.silu(norm_ref(w, norm, x)))


def residual_ref(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    out = norm_conv_ref(w, f"{name}.residual.0", f"{name}.residual.2", x)
    out = norm_conv_ref(w, f"{name}.residual.3", f"{name}.residual.6", out)
    wide = f"{name}.shortcut.weight" in w
    return out + (causal_ref(w, f"{name}.shortcut", x, behind=0) if wide else x)


def by_frame(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return torch.stack([function(frame) for frame in x.unbind(2)], 2)


def attention_ref(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    def attend(frame: Tensor) -> Tensor:
        qkv = F.conv2d(frame, w[f"{name}.to_qkv.weight"], w[f"{name}.to_qkv.bias"])
        q, k, v = (part.flatten(2).mT for part in qkv.chunk(3, 1))
        out = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1) @ v
        return F.conv2d(out.mT.view_as(frame), w[f"{name}.proj.weight"], w[f"{name}.proj.bias"])

    return x + by_frame(attend, norm_ref(w, f"{name}.norm", x))


def middle_ref(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    x = attention_ref(w, f"{name}.1", residual_ref(w, f"{name}.0", x))
    return residual_ref(w, f"{name}.2", x)


def upsample_ref(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    if f"{name}.time_conv.weight" in w and x.shape[2] > 1:
        doubled = causal_ref(w, f"{name}.time_conv", x[:, :, 1:])
        x = torch.cat([x[:, :, :1], torch.stack(doubled.chunk(2, 1), 3).flatten(2, 3)], 2)
    weight, bias = w[f"{name}.resample.1.weight"], w[f"{name}.resample.1.bias"]
    return by_frame(lambda f: F.conv2d(F.interpolate(f, scale_factor=2), weight, bias, padding=1), x)


def downsample_ref(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    weight, bias = w[f"{name}.resample.1.weight"], w[f"{name}.resample.1.bias"]
    x = by_frame(lambda f: F.conv2d(F.pad(f, (0, 1, 0, 1)), weight, bias, stride=2), x)
    if f"{name}.time_conv.weight" in w and x.shape[2] > 1:
        x = torch.cat([x[:, :, :1], causal_ref(w, f"{name}.time_conv", x, behind=0, stride=2)], 2)
    return x


def stack_ref(w: dict[str, Tensor], name: str, resample: Callable[..., Tensor], x: Tensor) -> Tensor:
    count = 1 + max(int(key.removeprefix(name).split(".")[1]) for key in w if key.startswith(name))
    for i in range(count):
        layer = resample if f"{name}.{i}.resample.1.weight" in w else residual_ref
        x = layer(w, f"{name}.{i}", x)
    return x


def decode_ref(w: dict[str, Tensor], z: Tensor) -> Tensor:
    x = causal_ref(w, "decoder.conv1", causal_ref(w, "conv2", z, behind=0))
    x = stack_ref(w, "decoder.upsamples", upsample_ref, middle_ref(w, "decoder.middle", x))
    return norm_conv_ref(w, "decoder.head.0", "decoder.head.2", x)


def encode_ref(w: dict[str, Tensor], x: Tensor) -> Tensor:
    x = stack_ref(w, "encoder.downsamples", downsample_ref, causal_ref(w, "encoder.conv1", x))
    x = norm_conv_ref(w, "encoder.head.0", "encoder.head.2", middle_ref(w, "encoder.middle", x))
    return causal_ref(w, "conv1", x, behind=0).chunk(2, 1)[0]


def latents(frames: int, sides: tuple[int, int] = SIDES, batch: int = 1) -> Tensor:
    """The same random latents for the same arguments."""
    return torch.randn(batch, 16, frames, *sides, generator=torch.Generator().manual_seed(frames))


def video(frames: int, sides: tuple[int, int] = SIDES, batch: int = 1) -> Tensor:
    """Random frames in [-1, 1] for as many latent frames."""
    generator = torch.Generator().manual_seed(frames)
    return torch.rand(batch, 3, 4 * frames - 3, 8 * sides[0], 8 * sides[1], generator=generator) * 2 - 1
