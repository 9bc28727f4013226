"""The VAE's upsampling: both sides doubled (nearest), then a 3x3 convolution with bias, frame by frame.

    out[2·y + py, 2·x + px] = bias + Σ V[py, px, a, b] · x[y + py - 1 + a, x + px - 1 + b]      py, px, a, b in 0, 1

Of the three rows that an output row sees two are the same one of the input, so their weights add up:
V[0, ·, 0] = W[0], V[0, ·, 1] = W[1] + W[2], V[1, ·, 0] = W[0] + W[1], V[1, ·, 1] = W[2], and columns alike. The kernel
does 32·C_in·C_out operations a position of the input instead of 72, with V rounded once to the input's dtype.
The input may hold several frames in its channels, [frame, C_in]: so the convolution that doubles them leaves it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .dispatch import Kernel
from .vae_conv import ROWS

UPSAMPLE_CONV = Kernel(
    name="VAE upsampling",
    last_dim_multiple=32,
    contiguous=True,
    gluon_probe="run_vae_probe",
)
# [phase, tap of the phase, tap of the convolution]
PHASES = (((1, 0, 0), (0, 1, 1)), ((1, 1, 0), (0, 0, 1)))


def upsample_conv_ref(x: Tensor, weight: Tensor, bias: Tensor, copies: int) -> Tensor:
    """x [B, copies·C_in, T, H, W], weight [C_out, C_in, 3, 3] to [B, C_out, copies·T, 2·H, 2·W]; x's dtype."""
    frames = x.unflatten(1, (copies, -1)).permute(0, 3, 1, 2, 4, 5).flatten(0, 2)  # [B·T·copies, C_in, H, W]
    doubled = frames.repeat_interleave(2, -1).repeat_interleave(2, -2)
    out = F.conv2d(doubled, weight.to(x.dtype), bias.to(x.dtype), padding=1)
    return out.unflatten(0, (x.shape[0], -1)).movedim(1, 2)


def packs(weight: Tensor) -> bool:
    """Whether the kernel takes a weight of this shape: 96 channels or a multiple of 192, from a multiple of 32."""
    c_out, c_in, *taps = weight.shape
    return taps == [3, 3] and c_in % 32 == 0 and (2 * c_out == ROWS or c_out % ROWS == 0)


def packed_elements(weight: Tensor) -> int:
    """Elements of `pack_weight`'s result."""
    c_out, c_in = weight.shape[:2]
    return c_in * 2 * c_out * 4 * (3 if 2 * c_out == ROWS else 2)


def pack_weight(weight: Tensor) -> Tensor:
    """[C_out, C_in, 3, 3] as the kernel reads it: V as [parts·py·column·a·192, C_in], 192 rows of (px, C_out) a part.

    Where a part holds both px, its columns are dx = -1, 0, 1 with zeros where px sees only two; else the two of its px.
    """
    c_out, c_in = weight.shape[:2]
    phases = weight.new_tensor(PHASES, dtype=torch.float32)
    v = torch.einsum("oiyx,pay,qbx->pqaboi", weight.float(), phases, phases)  # [py, px, a, b, C_out, C_in]
    if 2 * c_out == ROWS:
        columns = torch.stack([F.pad(v[:, px], (0, 0, 0, 0, px, 1 - px)) for px in range(2)], 3)  # [py, a, dx, px, …]
        return columns.permute(0, 2, 1, 3, 4, 5).reshape(-1, c_in).to(weight.dtype).contiguous()
    parts = v.unflatten(4, (-1, ROWS)).permute(1, 4, 0, 3, 2, 5, 6)  # [px, rows / 192, py, b, a, 192, C_in]
    return parts.reshape(-1, c_in).to(weight.dtype).contiguous()


def kernel_takes(x: Tensor) -> bool:
    """Whether `upsample_conv` can run: its kernel is there for x, a single sample."""
    return x.shape[0] == 1 and UPSAMPLE_CONV.accepts(x.movedim(1, -1))


def upsample_conv(x: Tensor, packed: Tensor, bias: Tensor, copies: int) -> Tensor:
    """`upsample_conv_ref` by the kernel, with the weight of `pack_weight`; only where `kernel_takes` x."""
    from .vae_upsample_gluon import upsample_gluon

    out = upsample_gluon(x.movedim(1, -1)[0], packed, bias.to(x.dtype), copies)
    return out[None].movedim(-1, 1)
