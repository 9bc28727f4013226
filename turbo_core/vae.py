"""The Wan 2.1 video autoencoder: latents [B, 16, T, H, W] <-> video [B, 3, 4T-3, 8H, 8W] in [-1, 1].

Parameter names are those of ``wan_2.1_vae.safetensors``; ``vae_weights`` makes a VAE from a file's tensors. Both
directions are causal and run piece by piece with exact memory (``vae_layers.Past``): how ``vae_plan`` cut a clip into
passes changes its result by rounding alone. A decode takes raw latents, as ComfyUI's LATENT holds them; the
diffusion model works on ``normalize``d ones. Decoded values are not clamped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..kernels.compile_ahead import compile_ahead
from .errors import LatentError
from .vae_layers import (
    AttentionBlock,
    CausalConv3d,
    Conv,
    Downsample,
    Head,
    ResidualBlock,
    Upsample,
)
from .vae_passes import Canvas, Progress, Receive, stream
from .vae_plan import Level, Plan, make_plan

LATENT_CHANNELS = 16
TIME_STRIDE = 4
SIDE_STRIDE = 8
LATENT_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
LATENT_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class VAEConfig:
    width: int = 96
    in_channels: int = 3
    out_channels: int = 3


def latent_size(frames: int, height: int, width: int) -> tuple[int, int, int]:
    """T, H and W of the latent of a video of 4n+1 frames."""
    return 1 + (frames - 1) // TIME_STRIDE, height // SIDE_STRIDE, width // SIDE_STRIDE


def video_size(frames: int, height: int, width: int) -> tuple[int, int, int]:
    """Frames, height and width of the video of a latent of T, H, W."""
    return TIME_STRIDE * (frames - 1) + 1, SIDE_STRIDE * height, SIDE_STRIDE * width


def normalize(z_BCTHW: Tensor) -> Tensor:
    """Raw latents to what the diffusion model works on: (z - mean) / std per channel."""
    mean, std = _statistics(z_BCTHW)
    return (z_BCTHW - mean) / std


def denormalize(z_BCTHW: Tensor) -> Tensor:
    """The diffusion model's latents to raw ones: z · std + mean per channel."""
    mean, std = _statistics(z_BCTHW)
    return z_BCTHW * std + mean


def _statistics(z: Tensor) -> tuple[Tensor, Tensor]:
    mean, std = (z.new_tensor(values).view(1, -1, 1, 1, 1) for values in (LATENT_MEAN, LATENT_STD))
    return mean, std


class Encoder(nn.Module):
    def __init__(self, config: VAEConfig):
        super().__init__()
        w = config.width
        self.conv1 = CausalConv3d(config.in_channels, w)
        self.downsamples = nn.ModuleList(
            [
                *(ResidualBlock(w, w), ResidualBlock(w, w), Downsample(w, temporal=False)),
                *(ResidualBlock(w, 2 * w), ResidualBlock(2 * w, 2 * w), Downsample(2 * w, temporal=True)),
                *(ResidualBlock(2 * w, 4 * w), ResidualBlock(4 * w, 4 * w), Downsample(4 * w, temporal=True)),
                *(ResidualBlock(4 * w, 4 * w), ResidualBlock(4 * w, 4 * w)),
            ]
        )
        self.middle = _middle(4 * w)
        self.head = Head(4 * w, 2 * LATENT_CHANNELS)

    def levels(self) -> list[Level]:
        w, down = self.conv1.c_out, tuple(self.downsamples)
        return [
            Level(layers=(self.conv1, *down[:3]), channels=self.conv1.c_in, area=64, rate=4, passes=(4, 2, 1)),
            Level(layers=down[3:6], channels=w, area=16, rate=4, passes=(4, 2, 2)),
            Level(layers=down[6:9], channels=2 * w, area=4, rate=2, passes=(4, 4, 2)),
            Level(layers=(*down[9:], *self.middle, self.head), channels=4 * w, area=1, rate=1, passes=(4, 2, 2)),
        ]


class Decoder(nn.Module):
    def __init__(self, config: VAEConfig):
        super().__init__()
        w = config.width
        self.conv1 = CausalConv3d(LATENT_CHANNELS, 4 * w)
        self.middle = _middle(4 * w)
        self.upsamples = nn.ModuleList(
            [
                *(ResidualBlock(4 * w, 4 * w) for _ in range(3)),
                Upsample(4 * w, temporal=True),
                *(ResidualBlock(2 * w, 4 * w), ResidualBlock(4 * w, 4 * w), ResidualBlock(4 * w, 4 * w)),
                Upsample(4 * w, temporal=True),
                *(ResidualBlock(2 * w, 2 * w) for _ in range(3)),
                Upsample(2 * w, temporal=False),
                *(ResidualBlock(w, w) for _ in range(3)),
            ]
        )
        self.head = Head(w, config.out_channels)

    def levels(self) -> list[Level]:
        w, up = self.conv1.c_out // 4, tuple(self.upsamples)
        first = (self.conv1, *self.middle, *up[:4])
        # About what the next level takes. A program of our convolution computes two frames, of 96 channels four.
        return [
            Level(layers=first, channels=LATENT_CHANNELS, area=1, rate=1, passes=(2, 2, 1)),
            Level(layers=up[4:8], channels=2 * w, area=4, rate=2, passes=(2, 2, 1)),
            Level(layers=up[8:12], channels=2 * w, area=16, rate=4, passes=(4, 2, 1)),
            Level(layers=(*up[12:], self.head), channels=w, area=64, rate=4, passes=(4, 2, 1)),
        ]


def _middle(channels: int) -> nn.ModuleList:
    blocks = ResidualBlock(channels, channels), AttentionBlock(channels), ResidualBlock(channels, channels)
    return nn.ModuleList(blocks)


class WanVAE(nn.Module):
    """Runs wherever its weights are, in their type; holds no state between calls."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.conv1 = Conv(2 * LATENT_CHANNELS, 2 * LATENT_CHANNELS, (1, 1, 1))
        self.conv2 = Conv(LATENT_CHANNELS, LATENT_CHANNELS, (1, 1, 1))
        self.decoder = Decoder(config)
        self.requires_grad_(False)

    @property
    def device(self) -> torch.device:
        return self.conv2.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.conv2.weight.dtype

    def plan_decode(self, size: tuple[int, int, int], *, chunk: int | None, budget: int | None) -> Plan:
        """The passes for a latent of ``size`` (T, H, W), and their bytes beside weights and result."""
        levels = self.decoder.levels()
        return make_plan(levels, size=size, itemsize=self.dtype.itemsize, chunk=chunk, budget=budget)

    def plan_encode(
        self, size: tuple[int, int, int], *, chunk: int | None, budget: int | None, still: bool = False
    ) -> Plan:
        """As ``plan_decode``; ``still`` where the clip is longer than what is given of it."""
        levels = self.encoder.levels()
        return make_plan(levels, size=size, itemsize=self.dtype.itemsize, chunk=chunk, budget=budget, still=still)

    @torch.no_grad()
    def compile_ahead(
        self,
        direction: Literal["decode", "encode"],
        *,
        progress: Progress | None = None,
        interrupted: Callable[[], None] | None = None,
    ) -> int:
        """Compile the kernels of a decode or an encode of any size; see `kernels.compile_ahead`."""
        like = {"device": self.device, "dtype": self.dtype}
        if direction == "decode":
            # The first frame alone, then passes of two frames and of one, which are other kernels' work. Latents may
            # be channels-last, and the smallest always are: the first bias is a kernel's then.
            clip = torch.zeros(1, LATENT_CHANNELS, 4, 2, 2, **like).to(memory_format=torch.channels_last_3d)
        else:
            clip = torch.zeros(1, self.config.in_channels, 9, 2 * SIDE_STRIDE, 2 * SIDE_STRIDE, **like)
        run = self.decode if direction == "decode" else self.encode
        return compile_ahead(
            lambda: run(clip),
            self.device,
            gluon_probes=("run_vae_probe",),
            progress=progress,
            interrupted=interrupted,
        )

    @torch.no_grad()
    def decode(
        self,
        z_BCTHW: Tensor,
        *,
        chunk: int | None = None,
        memory_budget_bytes: int | None = None,
        progress: Progress | None = None,
        interrupted: Callable[[], None] | None = None,
        output_device: torch.device | str | None = None,
    ) -> Tensor:
        """Raw latents to video; samples go one after another.

        ``chunk``: most latent frames per pass. ``memory_budget_bytes``: bound on what the passes need beside
        weights and result; where one frame does not fit, tiles with blended seams, and a result that grows in
        fp32. ``interrupted`` is called before every layer and raises to cancel. ``output_device``: where the
        result goes, by default the weights' device.
        """
        canvas = self._decode(
            z_BCTHW,
            chunk=chunk,
            budget=memory_budget_bytes,
            progress=progress,
            interrupted=interrupted,
            device=output_device,
        )
        return canvas.result()

    @torch.no_grad()
    def decode_to(
        self,
        receive: Receive,
        z_BCTHW: Tensor,
        *,
        chunk: int | None = None,
        memory_budget_bytes: int | None = None,
        progress: Progress | None = None,
        interrupted: Callable[[], None] | None = None,
        output_device: torch.device | str | None = None,
    ) -> None:
        """``decode``, whose frames go to ``receive`` as they are finished: on the weights' device, or on
        ``output_device`` where tiles blend, since the whole result has to lie there until the last one.
        """
        canvas = self._decode(
            z_BCTHW,
            chunk=chunk,
            budget=memory_budget_bytes,
            progress=progress,
            interrupted=interrupted,
            device=output_device,
            receive=receive,
        )
        canvas.hand_on()

    def _decode(
        self,
        z_BCTHW: Tensor,
        *,
        chunk: int | None,
        budget: int | None,
        progress: Progress | None,
        interrupted: Callable[[], None] | None,
        device: torch.device | str | None,
        receive: Receive | None = None,
    ) -> Canvas:
        _check_latents(z_BCTHW)
        batch, _, frames, height, width = z_BCTHW.shape
        plan = self.plan_decode((frames, height, width), chunk=chunk, budget=budget)
        shape = (batch, self.config.out_channels, *video_size(frames, height, width))
        canvas = Canvas(plan, shape, SIDE_STRIDE, device or self.device, self.dtype, progress, receive)
        levels = self.decoder.levels()
        for sample, row, column in canvas.tiles():
            z = z_BCTHW[sample : sample + 1, :, :, slice(*plan.rows[row]), slice(*plan.columns[column])]
            z = self.conv2(z.to(self.device, self.dtype))
            for piece in stream(levels, plan.frames, z, like=self.conv2.weight, interrupted=interrupted):
                canvas.paint(piece, sample, row, column)
                del piece  # the next pass needs the room
        return canvas

    @torch.no_grad()
    def encode(
        self,
        x_BCTHW: Tensor,
        *,
        length: int | None = None,
        chunk: int | None = None,
        memory_budget_bytes: int | None = None,
        progress: Progress | None = None,
        interrupted: Callable[[], None] | None = None,
        output_device: torch.device | str | None = None,
    ) -> Tensor:
        """Video of 4n+1 frames in [-1, 1] to the mean of its raw latents [B, 16, n+1, H/8, W/8].

        The video may be on any device: only a pass's frames move to the weights'. ``length``: frames of the video
        where its last given frame stands still to the end; what repeats is not computed (``vae_still``). Other
        options as in ``decode``.
        """
        batch, _, given, height, width = _check_video(x_BCTHW, self.config.in_channels, length)
        frames = given if length is None else length
        size = latent_size(frames, height, width)
        plan = self.plan_encode(size, chunk=chunk, budget=memory_budget_bytes, still=frames > given)
        shape = (batch, LATENT_CHANNELS, *size)
        canvas = Canvas(plan, shape, 1, output_device or self.device, self.dtype, progress)
        levels = self.encoder.levels()
        for sample, row, column in canvas.tiles():
            rows, columns = (
                slice(*(SIDE_STRIDE * edge for edge in span)) for span in (plan.rows[row], plan.columns[column])
            )
            x = x_BCTHW[sample : sample + 1, :, :, rows, columns]
            passes = stream(levels, plan.frames, x, like=self.conv2.weight, interrupted=interrupted, length=length)
            for piece in passes:
                canvas.paint(self.conv1(piece)[:, :LATENT_CHANNELS], sample, row, column)
                del piece
        return canvas.result()


def _check_latents(z: Tensor) -> None:
    if z.ndim != 5 or z.shape[1] != LATENT_CHANNELS or z.numel() == 0 or not z.is_floating_point():
        raise LatentError(
            f"VAE decode: latents must be floating point [B, {LATENT_CHANNELS}, T, H, W], got {z.dtype} "
            f"{list(z.shape)}; use a Wan 2.1 latent"
        )


def _check_video(x: Tensor, channels: int, length: int | None) -> torch.Size:
    if x.ndim != 5 or x.shape[1] != channels or x.numel() == 0 or not x.is_floating_point():
        raise LatentError(
            f"VAE encode: video must be floating point [B, {channels}, T, H, W] in [-1, 1], got {x.dtype} "
            f"{list(x.shape)}; permute or convert it"
        )
    _, _, given, height, width = x.shape
    frames = given if length is None else length
    if frames < given:
        raise LatentError(f"VAE encode: length must be at least the {given} frames given, got {frames}; cut the video")
    if frames % TIME_STRIDE != 1:
        nearest = TIME_STRIDE * ((frames - 1) // TIME_STRIDE) + 1
        raise LatentError(f"VAE encode: frames must be 4n+1, got {frames}; cut the video to {nearest}")
    if height % SIDE_STRIDE or width % SIDE_STRIDE:
        raise LatentError(
            f"VAE encode: sides must be multiples of {SIDE_STRIDE}, got {width}x{height}; crop or resize it"
        )
    return x.shape
