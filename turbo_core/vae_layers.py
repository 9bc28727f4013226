"""Layers of the Wan 2.1 VAE that take a clip piece by piece and give what the whole clip would give.

Every layer is called as ``layer(x_BCTHW, past)``; ``past`` holds the last input frames of each causal
convolution and is the only state. The first piece of a clip is its first frame alone, because the network
treats it apart: it is neither doubled nor halved in time, and nothing but zeros lies behind it.

A layer also says what it needs, in elements per position of its input: ``work(frames)`` for the most that is
live at once while ``frames`` frames pass (its input and output included), ``tail()`` for what ``past`` keeps.
``packed()`` of a layer with a kernel of its own are the elements of its weight that ``past`` holds again, reordered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels import vae_conv, vae_head, vae_upsample
from ..kernels.vae_bias import add_bias
from ..kernels.vae_norm import channel_norm

NORM_WORK = 2  # an fp32 length per position, in 16-bit elements
TIME = 2  # the dimension of frames in [B, C, T, H, W]


class Past:
    """The frames that causal convolutions still see; one object per clip and direction, never shared."""

    def __init__(self, *, memory_format: torch.memory_format = torch.contiguous_format, wanted: bool = True):
        self.memory_format = memory_format
        self._wanted = wanted
        self._frames: dict[nn.Module, Tensor] = {}
        self._packed: dict[nn.Module, Tensor] = {}

    def __contains__(self, layer: nn.Module) -> bool:
        return layer in self._frames

    def __getitem__(self, layer: nn.Module) -> Tensor:
        return self._frames[layer]

    def get(self, layer: nn.Module) -> Tensor | None:
        return self._frames.get(layer)

    def keep(self, layer: nn.Module, x: Tensor, count: int) -> None:
        """Copy the last ``count`` frames of ``x``, with zeros before them where the clip has only begun."""
        if not self._wanted:
            return
        if layer not in self._frames:
            self._frames[layer] = self.empty_like(x, frames=count).zero_()
        frames, have = self._frames[layer], min(count, x.shape[TIME])
        if have < count:
            frames[:, :, : count - have] = frames[:, :, have:]  # of two at most, so that they do not overlap
        frames[:, :, count - have :] = x[:, :, x.shape[TIME] - have :]

    def replace(self, layer: nn.Module, frames: Tensor) -> None:
        """Remember ``frames`` themselves, or what a kernel made of them, instead of what was remembered."""
        if self._wanted:
            self._frames[layer] = frames

    def packed(self, layer: Conv | CausalConv3d, pack: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
        """The layer's weight as a kernel reads it, in the type of ``like``; packed once a clip."""
        if layer not in self._packed:
            self._packed[layer] = pack(layer.weight.to(like.dtype))
        return self._packed[layer]

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


def _torch_avoids_onednn(x: Tensor) -> bool:
    """On a CPU torch asks the size of four of the five dimensions whether oneDNN pays, and takes the slow path."""
    return x.device.type == "cpu" and x.dtype == torch.float32 and torch.backends.mkldnn.is_available()


def conv3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None = None,
    *,
    stride: Sequence[int] = (1, 1, 1),
    padding: Sequence[int] = (0, 0, 0),
) -> Tensor:
    """``F.conv3d`` plus ``residual``, with the weights in x's type, through cuDNN or oneDNN wherever that can run."""
    weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    half = x.is_cuda and x.dtype in (torch.float16, torch.bfloat16)
    if not half:
        if _torch_avoids_onednn(x):
            out = torch.mkldnn_convolution(x, weight, bias, padding, stride, (1, 1, 1), 1)
        else:
            out = F.conv3d(x, weight, bias, stride, padding)
        return out if residual is None else out.add_(residual)
    if x.shape[1] % 8:  # cuDNN leaves the tensor cores aside for fewer channels
        x, weight = (F.pad(tensor, (0, 0, 0, 0, 0, 0, 0, -x.shape[1] % 8)) for tensor in (x, weight))
    if _torch_avoids_cudnn():
        out = torch.cudnn_convolution(
            x, weight, padding, stride, (1, 1, 1), 1, benchmark=False, deterministic=False, allow_tf32=True
        )
    else:
        out = F.conv3d(x, weight, None, stride, padding)
    add_bias(out, bias, residual)
    return out


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


@dataclass(frozen=True, kw_only=True)
class Window:
    """What a causal convolution reads."""

    room: tuple[Tensor, ...]
    """Memory for the image of its input, frames one after the other."""
    frames: Tensor
    """``room`` with the remembered frames before it, where those are not read where they are."""
    behind: Tensor | None = None
    """The remembered frames where they are."""


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

    def open(self, x: Tensor, past: Past) -> Window:
        """Memory for the image of ``x``, behind the remembered frames.

        At a clip's start there is only room, since the zeros before it would add nothing. Our kernel reads the
        remembered frames where they are, and those to remember lie apart from the others.
        """
        if self not in past:
            room = past.empty_like(x)
            return Window(room=(room,), frames=room)
        if self._kernel_takes(x):
            last = past.empty_like(x, frames=self.history)
            others = x.shape[TIME] - self.history
            first = (past.empty_like(x, frames=others),) if others else ()
            return Window(room=(*first, last), frames=last, behind=past[self])
        frames = past.empty_like(x, frames=self.history + x.shape[TIME])
        frames[:, :, : self.history] = past[self]
        return Window(room=(frames[:, :, self.history :],), frames=frames)

    def close(self, window: Window, past: Past, residual: Tensor | None = None) -> Tensor:
        """Convolve a filled window, add the residual and remember the window's end."""
        if window.behind is not None:
            past.replace(self, window.frames)
            return self._convolve(window.room, window.behind, past, residual)
        past.keep(self, window.frames, self.history)
        weight = self.weight[:, :, -window.frames.shape[TIME] :]
        return conv3d(window.frames, weight, self.bias, residual, stride=self.stride, padding=self.padding)

    def forward(self, x: Tensor, past: Past) -> Tensor:
        if self in past and self._kernel_takes(x):
            out = self._convolve((x,), past[self], past, None)
            past.keep(self, x, self.history)  # only now: it overwrites what the kernel read
            return out
        window = self.open(x, past)
        window.room[0].copy_(x)
        return self.close(window, past)

    def _convolve(self, pieces: Sequence[Tensor], behind: Tensor, past: Past, residual: Tensor | None) -> Tensor:
        packed = past.packed(self, vae_conv.pack_weight, behind)
        return vae_conv.causal_conv(pieces, behind, packed, self.bias, residual, self.weight.shape[-1])

    @property
    def _packs(self) -> bool:
        return self.stride[0] == 1 and vae_conv.packs(self.weight)

    def _kernel_takes(self, x: Tensor) -> bool:
        return self._packs and vae_conv.kernel_takes(x)

    def work(self, frames: int) -> int:
        return self.c_in * (2 * frames + self.history) + self.c_out * frames

    def tail(self) -> int:
        return self.c_in * self.history

    def packed(self) -> int:
        return vae_conv.packed_elements(self.weight) if self._packs else 0


def _normed_window(norm: RMSNorm, conv: CausalConv3d, x: Tensor, past: Past) -> Window:
    window = conv.open(x, past)
    for room, part in zip(window.room, x.split([room.shape[TIME] for room in window.room], TIME), strict=True):
        channel_norm(part, norm.gamma, silu=True, out=room)
    return window


class Head(nn.ModuleDict):
    """Norm, SiLU, causal convolution."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__({"0": RMSNorm(c_in), "2": CausalConv3d(c_in, c_out)})

    def forward(self, x: Tensor, past: Past) -> Tensor:
        norm, conv = self["0"], self["2"]
        if not vae_head.kernel_takes(x, conv.weight):
            return conv.close(_normed_window(norm, conv, x, past), past)
        products = vae_head.tap_products(x, norm.gamma, conv.weight)
        out, begun = vae_head.sum_taps(products, past.get(conv), conv.bias.to(x.dtype), x.shape[-2])
        past.replace(conv, begun)
        return out

    def work(self, frames: int) -> int:
        return self["2"].work(frames) + NORM_WORK * frames

    def tail(self) -> int:
        """Of the input; the kernel's sums, six fp32 numbers a position, are less than two frames of what it takes."""
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
        first, second = self.residual["2"], self.residual["6"]
        hidden = first.close(_normed_window(self.residual["0"], first, x, past), past)
        window = _normed_window(self.residual["3"], second, hidden, past)
        del hidden
        return second.close(window, past, residual=self.shortcut(x))

    def work(self, frames: int) -> int:
        first, second = self.residual["2"], self.residual["6"]
        c_in, c_out = first.c_in, first.c_out
        wide = max(2 * c_in + c_out, c_in + (2 if c_in == c_out else 3) * c_out)
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
        conv = self.resample["1"]
        frames, copies = self._double_frames(x, past)
        if vae_upsample.packs(conv.weight) and vae_upsample.kernel_takes(frames):
            packed = past.packed(conv, vae_upsample.pack_weight, frames)
            return vae_upsample.upsample_conv(frames, packed, conv.bias, copies)
        doubled = self._double_sides(frames, copies, past)
        del frames
        return conv(doubled)

    def _double_frames(self, x: Tensor, past: Past) -> tuple[Tensor, int]:
        """(frames, copies): [B, copies·C, T, H, W], the frames made of one behind each other in the channels."""
        if not self.temporal:
            return x, 1
        if self.time_conv in past:
            return self.time_conv(x, past), 2
        # The first frame stays single, and the convolution sees zeros where it was.
        past.keep(self.time_conv, torch.zeros_like(x), self.time_conv.history)
        return x, 1

    def _double_sides(self, frames: Tensor, copies: int, past: Past) -> Tensor:
        out = past.empty_like(frames, channels=self.channels, frames=copies * frames.shape[TIME], scale=2)
        # [B, copies·C, T, H, W] -> [B, C, T, copies, H, 1, W, 1], spread over [B, C, T, copies, H, 2, W, 2]
        spread = frames.unflatten(1, (copies, self.channels)).permute(0, 2, 3, 1, 4, 5)[..., None, :, None]
        room = out.unflatten(4, (-1, 2)).unflatten(3, (-1, 2)).unflatten(2, (-1, copies))
        room.copy_(spread)
        return out

    def work(self, frames: int) -> int:
        return (13 if self.temporal else 7) * self.channels * frames

    def tail(self) -> int:
        return self.time_conv.tail() if self.temporal else 0

    def packed(self) -> int:
        weight = self.resample["1"].weight
        return vae_upsample.packed_elements(weight) if vae_upsample.packs(weight) else 0


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
