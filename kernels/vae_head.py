"""The VAE's last layer: norm, SiLU and a causal 3x3x3 convolution to the few channels of a video.

    n[t] = silu(norm(x[t]))                                                 see `vae_norm`
    P[t, tap, c] = Σ_i W[c, i, tap] · n[t, i]                               tap = (dt, dy, dx), position by position
    S[c, t, y, x] = Σ_tap P[t + dt - 2, tap, c, y + dy - 1, x + dx - 1]     out = bias + S

So few output channels leave a convolution's matrix units idle; as products of all 27 taps at once they are a GEMM of
ordinary width that reads x once and writes no normed copy. The products, [B, 1, T, 27·C_out·H, W] with the planes of
a frame below each other, are fp16 whatever x is: they are sums of order 1, and their rounding stays below bf16's.
T frames of a clip finish T sums and begin two more: these, `begun` [B, C_out, 2, H, W] in fp32, are all that the next
frames of the clip need, 24 bytes a position where the last two frames of products are 324.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .dispatch import Kernel
from .vae_conv import REACH
from .vae_norm import channel_norm_ref

HEAD = Kernel(name="VAE head", last_dim_multiple=32, contiguous=True)
TAPS = 27
PRODUCT_TYPE = torch.float16
MOST_PRODUCTS = 128  # columns of the kernel's tile


def tap_products_ref(x: Tensor, gamma: Tensor, weight: Tensor, dtype: torch.dtype = PRODUCT_TYPE) -> Tensor:
    """x [B, C_in, T, H, W], weight [C_out, C_in, 3, 3, 3]: the products P."""
    normed = torch.empty_like(x)
    channel_norm_ref(x, gamma, silu=True, out=normed)
    products = torch.einsum("bithw,ni->btnhw", normed, tap_rows(weight).to(x.dtype))
    return products.flatten(2, 3).unsqueeze(1).to(dtype)


def sum_taps_ref(products: Tensor, begun: Tensor | None, bias: Tensor, height: int) -> tuple[Tensor, Tensor]:
    """out [B, C_out, T, H, W] in bias's dtype, and the two sums S that come after it, as far as T frames bring them.

    ``products`` are P of T frames, ``begun`` is what the frames before these left; none at a clip's first.
    """
    batch, _, frames, _, width = products.shape
    wide = torch.promote_types(products.dtype, torch.float32)
    planes = products.to(wide).squeeze(1).unflatten(2, (3, 3, 3, bias.shape[0], height))
    planes = F.pad(planes, (1, 1, 1, 1))  # [B, T, dt, dy, dx, C_out, H + 2, W + 2]
    sums = planes.new_zeros(batch, frames + REACH, bias.shape[0], height, width)
    for tap in range(TAPS):
        dt, dy, dx = tap // 9, tap // 3 % 3, tap % 3
        sums[:, REACH - dt :][:, :frames] += planes[:, :, dt, dy, dx, :, dy : dy + height, dx : dx + width]
    sums = sums.movedim(1, 2)  # [B, C_out, T + 2, H, W]
    if begun is not None:
        sums[:, :, :REACH] += begun
    out = sums[:, :, :frames] + bias.to(wide).view(-1, 1, 1, 1)
    return out.to(bias.dtype), sums[:, :, frames:].contiguous()


def tap_rows(weight: Tensor) -> Tensor:
    """[27·C_out, C_in]: the weights that a position is multiplied with."""
    return weight.permute(2, 3, 4, 0, 1).reshape(-1, weight.shape[1]).contiguous()


def fits(weight: Tensor) -> bool:
    """Whether the products of a position fit the kernel's tile, and are worth its width."""
    c_out, c_in = weight.shape[:2]
    return TAPS * c_out <= MOST_PRODUCTS and c_in % 32 == 0


def kernel_takes(x: Tensor, weight: Tensor) -> bool:
    """Whether `tap_products` and `sum_taps` can run on a sample of x, however many its frames."""
    indexable = x.shape[-1] * x.shape[-2] * max(x.shape[1], MOST_PRODUCTS) < 2**31  # elements of a frame
    return fits(weight) and indexable and x.shape[0] == 1 and HEAD.accepts(x.movedim(1, -1))


def tap_products(x: Tensor, gamma: Tensor, weight: Tensor) -> Tensor:
    """`tap_products_ref` by the kernel; only where `kernel_takes` x."""
    from .vae_head_triton import tap_products_triton

    return tap_products_triton(x.movedim(1, -1)[0], gamma, tap_rows(weight).to(x.dtype))


def sum_taps(products: Tensor, begun: Tensor | None, bias: Tensor, height: int) -> tuple[Tensor, Tensor]:
    """`sum_taps_ref` by the kernel; only where `kernel_takes` the layer's input."""
    from .vae_head_triton import sum_taps_triton

    return sum_taps_triton(products, begun, bias, height)
