"""Layers of the Wan 2.1 VAE that take a clip piece by piece and give what the whole clip would give.

Every layer is called as ``layer(x_BCTHW, past)``; ``past`` holds the last input frames of each causal
convolution and is the only state. The first piece of a clip is its first frame alone, because the network
treats it apart: it is neither doubled nor halved in time, and nothing but zeros lies behind it.

A layer also says what it needs, in elements per position of its input: ``work(frames)`` for the most that is
live at once while ``frames`` frames pass (its input and output included), ``tail()`` for what ``past`` keeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.vae_norm import channel_norm

NORM_WORK = 2  # an fp32 length per position, in 16-bit elements
TIME = 2  # the dimension of frames in [B, C, T, H, W]


class Past:
    """The frames that causal convolutions still see; one object per clip and direction, never shared."""

    def __init__(self, *, memory_format: torch.memory_format = torch.contiguous_format, wanted: bool = True):
        self.memory_format = memory_format
        self._wanted = wanted
        self._frames: dict[nn.Module, Tensor] = {}

    def __contains__(self, layer: nn.Module) -> bool:
        return layer in self._frames

    def __getitem__(self, layer: nn.Module) -> Tensor:
        return self._frames[layer]

    def keep(self, layer: nn.Module, x: Tensor, count: int) -> None:
        """Copy the last ``count`` frames of ``x``, with zeros before them where the clip has only begun."""
        if not self._wanted:
            return
        if layer not in self._frames:
            frames = self.empty_like(x, frames=count)
            frames[:, :, : max(0, count - x.shape[TIME])] = 0
            self._frames[layer] = frames
        have = min(count, x.shape[TIME])
        self._frames[layer][:, :, count - have :] = x[:, :, x.shape[TIME] - have :]

    def empty_like(
        self, x: Tensor, *, channels: int | None = None, frames: int | None = None, scale: int = 1
    ) -> Tensor:
        """Memory of ``x``'s type for another channel count, frame count or multiple of both sides."""
        batch, own_channels, own_frames, height, width = x.shape
        shape = (batch, channels or own_channels, frames or own_frames, height * scale, width * scale)
        return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=self.memory_format)


@cache
def _torch_avoids_cudnn() -> bool:
    """torch 2.9 and 2.10 keep 16-bit conv3d away from some cuDNN 9; their own path takes far more memory."""
    return (2, 9) <= torch.__version__ < (2, 11) and 91002 <= (torch.backends.cudnn.version() or 0) < 91500


def conv3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    stride: Sequence[int] = (1, 1, 1),
    padding: Sequence[int] = (0, 0, 0),
) -> Tensor:
    """``F.conv3d`` with the weights in x's type, through cuDNN wherever that can run."""
    weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    if x.is_cuda and x.dtype in (torch.float16, torch.bfloat16) and _torch_avoids_cudnn():
        out = torch.cudnn_convolution(
            x, weight, padding, stride, (1, 1, 1), 1, benchmark=False, deterministic=False, allow_tf32=True
        )
        return out.add_(bias.view(1, -1, 1, 1, 1))
    return F.conv3d(x, weight, bias, stride, padding)


class RMSNorm(nn.Module):
    """Holds ``gamma`` in the shape of the files: [C, 1, 1, 1], or [C, 1, 1] before attention."""

    def __init__(self, channels: int, ones: int = 3):
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(channels, *[1] * ones))

    @property
    def channels(self) -> int:
        return self.gamma.shape[0]


class Conv(nn.Module):
    """A convolution without memory; a 4-D weight acts on each frame."""

    def __init__(self, c_in: int, c_out: int, kernel: tuple[int, ...], *, stride: int = 1, padding: int = 0):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(c_out, c_in, *kernel))
        self.bias = nn.Parameter(torch.empty(c_out))
        self.stride = (1, stride, stride)
        self.padding = (0, padding, padding)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight if self.weight.ndim == 5 else self.weight.unsqueeze(TIME)
        return conv3d(x, weight, self.bias, stride=self.stride, padding=self.padding)


class CausalConv3d(nn.Module):
    """A convolution over (T, H, W) that sees ``history`` frames behind its input and none ahead."""

    def __init__(self, c_in: int, c_out: int, *, side: int = 3, time_stride: int = 1):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(c_out, c_in, 3, side, side))
        self.bias = nn.Parameter(torch.empty(c_out))
        self.history = 3 - time_stride
        self.stride = (time_stride, 1, 1)
        self.padding = (0, side // 2, side // 2)

    @property
    def c_in(self) -> int:
        return self.weight.shape[1]

    @property
    def c_out(self) -> int:
        return self.weight.shape[0]

    def open(self, x: Tensor, past: Past) -> tuple[Tensor, Tensor]:
        """(window, room): the remembered frames with room behind them for the image of ``x``.

        At a clip's start there is only room: the zeros before it would add nothing.
        """
        if self not in past:
            window = past.empty_like(x)
            return window, window
        window = past.empty_like(x, frames=self.history + x.shape[TIME])
        window[:, :, : self.history] = past[self]
        return window, window[:, :, self.history :]

    def close(self, window: Tensor, past: Past) -> Tensor:
        """Convolve a filled window and remember its end."""
        past.keep(self, window, self.history)
        weight = self.weight[:, :, -window.shape[TIME] :]
        return conv3d(window, weight, self.bias, stride=self.stride, padding=self.padding)

    def forward(self, x: Tensor, past: Past) -> Tensor:
        window, room = self.open(x, past)
        room.copy_(x)
        return self.close(window, past)

    def work(self, frames: int) -> int:
        return self.c_in * (2 * frames + self.history) + self.c_out * frames

    def tail(self) -> int:
        return self.c_in * self.history


def _normed_window(norm: RMSNorm, conv: CausalConv3d, x: Tensor, past: Past) -> Tensor:
    window, room = conv.open(x, past)
    channel_norm(x, norm.gamma, silu=True, out=room)
    return window


class Head(nn.ModuleDict):
    """Norm, SiLU, causal convolution."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__({"0": RMSNorm(c_in), "2": CausalConv3d(c_in, c_out)})

    def forward(self, x: Tensor, past: Past) -> Tensor:
        return self["2"].close(_normed_window(self["0"], self["2"], x, past), past)

    def work(self, frames: int) -> int:
        return self["2"].work(frames) + NORM_WORK * frames

    def tail(self) -> int:
        return self["2"].tail()


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), with a 1x1x1 shortcut where the width changes."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.residual = nn.ModuleDict(
            {
                "0": RMSNorm(c_in),
                "2": CausalConv3d(c_in, c_out),
                "3": RMSNorm(c_out),
                "6": CausalConv3d(c_out, c_out),
            }
        )
        self.shortcut = Conv(c_in, c_out, (1, 1, 1)) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor, past: Past) -> Tensor:
        out = x
        for norm, conv in (("0", "2"), ("3", "6")):
            window = _normed_window(self.residual[norm], self.residual[conv], out, past)
            del out
            out = self.residual[conv].close(window, past)
            del window
        return out.add_(self.shortcut(x))

    def work(self, frames: int) -> int:
        first, second = self.residual["2"], self.residual["6"]
        wide = max(2 * first.c_in + first.c_out, first.c_in + 2 * first.c_out)
        return (wide + NORM_WORK) * frames + max(first.tail(), second.tail())

    def tail(self) -> int:
        return self.residual["2"].tail() + self.residual["6"].tail()


class AttentionBlock(nn.Module):
    """Single-head attention over the positions of each frame."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = RMSNorm(channels, ones=2)
        self.to_qkv = Conv(channels, 3 * channels, (1, 1))
        self.proj = Conv(channels, channels, (1, 1))

    def forward(self, x: Tensor, past: Past) -> Tensor:
        batch, channels, frames, height, width = x.shape
        normed = torch.empty_like(x)
        channel_norm(x, self.norm.gamma, silu=False, out=normed)
        tokens = normed.permute(0, 2, 3, 4, 1).reshape(batch * frames, 1, height * width, channels)
        del normed
        q, k, v = self._linear(tokens, self.to_qkv).chunk(3, dim=-1)
        tokens = self._linear(F.scaled_dot_product_attention(q, k, v), self.proj)
        return x + tokens.view(batch, frames, height, width, channels).permute(0, 4, 1, 2, 3)

    @staticmethod
    def _linear(tokens: Tensor, layer: Conv) -> Tensor:
        return F.linear(tokens, layer.weight.flatten(1).to(tokens.dtype), layer.bias.to(tokens.dtype))

    def work(self, frames: int) -> int:
        return 6 * self.norm.channels * frames

    def tail(self) -> int:
        return 0


class Upsample(nn.Module):
    """Doubles both sides (nearest, then a 3x3 convolution to half the width); frames too if ``temporal``."""

    def __init__(self, channels: int, *, temporal: bool):
        super().__init__()
        self.channels = channels
        self.temporal = temporal
        self.resample = nn.ModuleDict({"1": Conv(channels, channels // 2, (3, 3), padding=1)})
        if temporal:
            self.time_conv = CausalConv3d(channels, 2 * channels, side=1)

    def forward(self, x: Tensor, past: Past) -> Tensor:
        return self.resample["1"](self._enlarge(x, past))

    def _enlarge(self, x: Tensor, past: Past) -> Tensor:
        doubled = self.temporal and self.time_conv in past
        if self.temporal and not doubled:
            # The first frame stays single, and the convolution sees zeros where it was.
            past.keep(self.time_conv, torch.zeros_like(x), self.time_conv.history)
        copies = 2 if doubled else 1
        source = self.time_conv(x, past) if doubled else x
        out = past.empty_like(x, frames=copies * x.shape[TIME], scale=2)
        # [B, 2·C, T, H, W] -> [B, C, T, 2, H, 1, W, 1], spread over [B, C, T, 2, H, 2, W, 2]
        frames = source.unflatten(1, (copies, self.channels)).permute(0, 2, 3, 1, 4, 5)[..., None, :, None]
        room = out.unflatten(4, (-1, 2)).unflatten(3, (-1, 2)).unflatten(2, (-1, copies))
        room.copy_(frames)
        return out

    def work(self, frames: int) -> int:
        return (13 if self.temporal else 7) * self.channels * frames

    def tail(self) -> int:
        return self.time_conv.tail() if self.temporal else 0


class Downsample(nn.Module):
    """Halves both sides; the frames after the first too if ``temporal``."""

    def __init__(self, channels: int, *, temporal: bool):
        super().__init__()
        self.channels = channels
        self.temporal = temporal
        # One row and column of zeros follow each frame: with two on every side, the first output is dropped.
        self.resample = nn.ModuleDict({"1": Conv(channels, channels, (3, 3), stride=2, padding=2)})
        if temporal:
            self.time_conv = CausalConv3d(channels, channels, side=1, time_stride=2)

    def forward(self, x: Tensor, past: Past) -> Tensor:
        x = self.resample["1"](x)[..., 1:, 1:].contiguous(memory_format=past.memory_format)
        if not self.temporal:
            return x
        if self.time_conv in past:
            return self.time_conv(x, past)
        past.keep(self.time_conv, x, self.time_conv.history)
        return x

    def work(self, frames: int) -> int:
        return 2 * self.channels * frames

    def tail(self) -> int:
        return -(-self.time_conv.tail() // 4) if self.temporal else 0


Layer = CausalConv3d | Head | ResidualBlock | AttentionBlock | Upsample | Downsample
