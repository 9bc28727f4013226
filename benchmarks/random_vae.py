"""A random Wan 2.1 VAE whose clips have the bitrate of real ones.

White weights decode to white noise, of 26 Mbit/s. Here a kernel's taps are partly equal, all of them in time, so that
every convolution also blurs:

    w = (m[out, in] / taps + texture · n[out, in, y, x] / √taps) / (frames · √in),    m, n ~ N(0, 1), taps = y · x

Measured on white latents at the default of ComfyUI's SaveVideo (libx264, CRF 23); a real clip of 832×480 at 16 fps
lies at 2 to 6 Mbit/s. At the released width 96 a texture of 0.8 gives 3.8, counted for 81 frames of 832×480 from the
first and the other frames of 17 of 416×240 (from 208×128: 4.0, and 2.5 with 0.5). At width 8 that count says 3.8
too, 2.7 with 0.5 and 5.3 with 1.0; the whole clip comes to 3.2. Larger latents are harder: 5.5 at three times the
scale, 2.2 at 0.3. That whole clip takes the encoder 1.4 times as long as a panned 1/f texture of the same bitrate (3.1
s of CPU to 2.2), half as long as white noise (6.8) and twice as long as a soft gradient of 0.3 Mbit/s (1.35).
"""

from __future__ import annotations

import torch
from torch import Tensor

from turbowan.turbo_core.vae import VAEConfig, WanVAE

TEXTURE = 0.8


def shapes(width: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a VAE of that width; released ones have 96."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in WanVAE(VAEConfig(width=width)).state_dict().items()}


def tensors(
    width: int,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
    texture: float = TEXTURE,
) -> dict[str, Tensor]:
    generator = torch.Generator(device=device).manual_seed(seed)
    out = {}
    for name, shape in shapes(width).items():
        noise = torch.randn(shape, generator=generator, device=device)
        if name.endswith("gamma"):
            value = 1 + 0.1 * noise
        elif name.endswith("bias"):
            value = 0.1 * noise
        else:
            value = _kernel(noise, generator, texture)
        out[name] = value.to(dtype).contiguous()
    return out


def _kernel(noise: Tensor, generator: torch.Generator, texture: float) -> Tensor:
    shape, channels = noise.shape, noise.shape[:2]
    mix = torch.randn(channels, generator=generator, device=noise.device)
    mix = mix.view(*channels, *(1,) * (noise.ndim - 2))
    if noise.ndim == 5:
        noise = noise[:, :, :1]
    taps = noise[0, 0].numel()
    frames = shape[2] if len(shape) == 5 else 1
    return ((mix / taps + texture * noise / taps**0.5) / (frames * channels[1] ** 0.5)).expand(shape)
