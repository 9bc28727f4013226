"""The Wan 2.1 VAE as a differentiable function of a whole clip, over the parameters of `turbo_core.vae.WanVAE`.

Causal convolutions see zeros before the clip. In time the first frame stands apart: it is neither halved nor doubled,

    down(x)_0 = x_0,   down(x)_j = conv(x_{2j-2}, x_{2j-1}, x_{2j})
    up(x)_0   = x_0,   up(x)_{2j-1}, up(x)_{2j} = conv(x_{j-2}, x_{j-1}, x_j),  with x_0 and what lies before it zero

which is what the frame-by-frame loop of inference gives; here a clip is one pass. A causal convolution of few channels
is one over single frames, of three times the channels. Activations have the type of the input; parameters stay in fp32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from turbowan.kernels.vae_norm import LENGTH_FLOOR
from turbowan.turbo_core.vae import LATENT_CHANNELS, VAEConfig, WanVAE
from turbowan.turbo_core.vae_layers import (
    AttentionBlock,
    CausalConv3d,
    Conv,
    Downsample,
    Head,
    ResidualBlock,
    RMSNorm,
    Upsample,
)

RESIDUAL_GAIN = 0.3  # of what a block adds when the training begins
TAPS = 3  # frames that a causal convolution sees
LOG_VARIANCE = -4.0  # of the latents when the training begins


def new_vae(width: int, generator: torch.Generator) -> WanVAE:
    """A VAE to be trained. At first it treats each frame alone: the taps on frames behind are zero."""
    vae = WanVAE(VAEConfig(width=width)).requires_grad_(True)
    for module in vae.modules():
        if isinstance(module, RMSNorm):
            nn.init.ones_(module.gamma)
        elif isinstance(module, (CausalConv3d, Conv)):
            _init_conv(module, generator)
    with torch.no_grad():
        for module in vae.modules():
            if isinstance(module, ResidualBlock):
                module.residual["6"].weight.mul_(RESIDUAL_GAIN)
            elif isinstance(module, (Upsample, Downsample)) and module.temporal:
                _copy_now(module.time_conv, copies=2 if isinstance(module, Upsample) else 1)
            elif isinstance(module, AttentionBlock):
                module.proj.weight.mul_(RESIDUAL_GAIN)
        vae.conv1.weight[LATENT_CHANNELS:] = 0
        vae.conv1.bias[LATENT_CHANNELS:] = LOG_VARIANCE
    return vae


@torch.no_grad()
def _init_conv(conv: CausalConv3d | Conv, generator: torch.Generator) -> None:
    weight = conv.weight
    now = weight[:, :, -1:] if isinstance(conv, CausalConv3d) else weight
    fan_in = now[0].numel()
    weight.zero_()
    now.copy_(torch.randn(now.shape, generator=generator) * fan_in**-0.5)
    nn.init.zeros_(conv.bias)


def _copy_now(conv: CausalConv3d, copies: int) -> None:
    """Make each output frame the newest frame that the convolution sees."""
    conv.weight.zero_()
    conv.weight[:, :, -1, 0, 0] = torch.eye(conv.c_in).repeat(copies, 1)


def encode(vae: WanVAE, x_BCTHW: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and logarithm of the variance of the latents, [B, 16, n+1, H/8, W/8] in fp32, of 4n+1 frames."""
    encoder = vae.encoder
    x = _layers(encoder.downsamples, _causal(encoder.conv1, x_BCTHW.movedim(1, -1)))
    x = _head(encoder.head, _layers(encoder.middle, x))
    mean, log_variance = _conv(vae.conv1, x).movedim(-1, 1).float().split(LATENT_CHANNELS, 1)
    return mean, log_variance


def decode(vae: WanVAE, z_BCTHW: Tensor) -> Tensor:
    """Frames [B, 3, 4T-3, 8H, 8W] of latents."""
    decoder = vae.decoder
    x = _layers(decoder.middle, _causal(decoder.conv1, _conv(vae.conv2, z_BCTHW.movedim(1, -1))))
    return _head(decoder.head, _layers(decoder.upsamples, x)).movedim(-1, 1)


# Below, activations are [B, T, H, W, C] and contiguous.


def _layers(layers: Sequence[nn.Module], x: Tensor) -> Tensor:
    steps = {ResidualBlock: _residual, AttentionBlock: _attention, Upsample: _up, Downsample: _down}
    for layer in layers:
        x = steps[type(layer)](layer, x)
    return x


def _residual(block: ResidualBlock, x: Tensor) -> Tensor:
    parts = block.residual
    hidden = _causal(parts["2"], F.silu(_norm(parts["0"], x)))
    hidden = _causal(parts["6"], F.silu(_norm(parts["3"], hidden)))
    return hidden + (_conv(block.shortcut, x) if isinstance(block.shortcut, Conv) else x)


def _head(head: Head, x: Tensor) -> Tensor:
    return _causal(head["2"], F.silu(_norm(head["0"], x)))


def _attention(block: AttentionBlock, x: Tensor) -> Tensor:
    tokens = _norm(block.norm, x).flatten(2, 3).flatten(0, 1).unsqueeze(1)  # [B·T, 1, H·W, C]
    q, k, v = _linear(block.to_qkv, tokens).chunk(3, -1)
    return x + _linear(block.proj, F.scaled_dot_product_attention(q, k, v)).view_as(x)


def _up(layer: Upsample, x: Tensor) -> Tensor:
    if layer.temporal and x.shape[1] > 1:
        pairs = _causal(layer.time_conv, x[:, 1:]).unflatten(-1, (2, -1))  # [B, T-1, H, W, 2, C]
        x = torch.cat([x[:, :1], pairs.movedim(-2, 2).flatten(1, 2)], 1)
    doubled = x[:, :, :, None, :, None].expand(-1, -1, -1, 2, -1, 2, -1)  # [B, T, H, 2, W, 2, C]
    return _conv(layer.resample["1"], doubled.flatten(4, 5).flatten(2, 3))


def _down(layer: Downsample, x: Tensor) -> Tensor:
    conv = layer.resample["1"]
    x = _by_frame(F.pad(x, (0, 0, 0, 1, 0, 1)), conv.weight, conv.bias, stride=2)
    if not layer.temporal or x.shape[1] == 1:
        return x
    conv = layer.time_conv
    return torch.cat([x[:, :1], _by_frame(_windows(x, stride=2), _folded(conv), conv.bias)], 1)


def _norm(norm: RMSNorm, x: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).clamp_min(LENGTH_FLOOR)
    return x * (x.shape[-1] ** 0.5 / length).to(x.dtype) * norm.gamma.flatten().to(x.dtype)


def _causal(conv: CausalConv3d, x: Tensor) -> Tensor:
    padding = conv.padding[-1]
    if x.shape[1] == 1:  # what lies behind is zero
        return _by_frame(x, conv.weight[:, :, -1], conv.bias, padding=padding)
    behind = x.new_zeros(x.shape[0], TAPS - 1, *x.shape[2:])
    return _by_frame(_windows(torch.cat([behind, x], 1)), _folded(conv), conv.bias, padding=padding)


def _conv(conv: Conv, x: Tensor) -> Tensor:
    weight = conv.weight if conv.weight.ndim == 4 else conv.weight.squeeze(2)
    return _by_frame(x, weight, conv.bias, padding=conv.padding[-1])


def _windows(x: Tensor, stride: int = 1) -> Tensor:
    """Each frame with the next two, one after another in the channels."""
    last = x.shape[1] - TAPS + 1
    return torch.cat([x[:, tap : tap + last : stride] for tap in range(TAPS)], -1)


def _folded(conv: CausalConv3d) -> Tensor:
    """The weight for windows, [C', 3C, side, side]."""
    return conv.weight.transpose(1, 2).flatten(1, 2)


def _by_frame(x: Tensor, weight: Tensor, bias: Tensor, *, stride: int = 1, padding: int = 0) -> Tensor:
    frames = x.flatten(0, 1).permute(0, 3, 1, 2)  # [B·T, C, H, W], channels last
    out = F.conv2d(frames, weight.to(x.dtype), bias.to(x.dtype), stride, padding)
    return out.permute(0, 2, 3, 1).unflatten(0, x.shape[:2])


def _linear(conv: Conv, tokens: Tensor) -> Tensor:
    return F.linear(tokens, conv.weight.flatten(1).to(tokens.dtype), conv.bias.to(tokens.dtype))
