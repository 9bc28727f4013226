"""Triton kernels of `vae_head`: the products of all taps, and their sums over neighbours."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .vae_head import PRODUCT_TYPE, REACH, TAPS
from .vae_norm import LENGTH_FLOOR
from .vae_norm_triton import normalize

PRODUCT_POSITIONS, PRODUCT_WARPS = 64, 4  # 128 registers a thread, so that four programs share a multiprocessor
SUM_POSITIONS = 512


@triton.jit(do_not_specialize=["area"])
def _products_kernel(
    x_ptr,  # [T, H·W, C]
    gamma_ptr,  # [C]
    weight_ptr,  # [N, C]
    products_ptr,  # [T, N, H·W]
    area,
    N,
    FLOOR: tl.constexpr,
    C: tl.constexpr,
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,  # padded C
    COLUMNS: tl.constexpr,  # padded N
):
    # 64 bits to the frame, 32 inside it: `vae_head.kernel_takes` no larger frames.
    frame = tl.program_id(1).to(tl.int64) * area
    positions = tl.program_id(0) * POSITIONS + tl.arange(0, POSITIONS)
    channels, columns = tl.arange(0, CHANNELS), tl.arange(0, COLUMNS)
    held = (channels < C)[:, None] & (columns < N)[None, :]
    weight = tl.load(weight_ptr + columns[None, :] * C + channels[:, None], mask=held, other=0.0)
    gamma = tl.load(gamma_ptr + channels, mask=channels < C, other=0.0).to(tl.float32)
    inside = (positions < area)[:, None] & (channels < C)[None, :]
    x = tl.load(x_ptr + frame * C + (positions[:, None] * C + channels[None, :]), mask=inside, other=0.0)
    normed = normalize(x.to(tl.float32), gamma, FLOOR, True, C).to(x.dtype)
    products = tl.dot(normed, weight)
    out = products_ptr + frame * N + (columns[None, :] * area + positions[:, None])
    tl.store(out, products.to(products_ptr.dtype.element_ty), mask=(positions < area)[:, None] & (columns < N)[None, :])


@triton.jit(do_not_specialize=["height", "width", "frames", "begun"])
def _sum_kernel(
    products_ptr,  # [T, 27·C_OUT, H, W]
    begun_ptr,  # [C_OUT, REACH, H, W]
    bias_ptr,  # [C_OUT]
    out_ptr,  # [C_OUT, T, H, W]
    next_ptr,  # [C_OUT, REACH, H, W]
    height,
    width,
    frames,
    begun,  # sums: REACH, or 0 at a clip's first frame
    REACH: tl.constexpr,
    C_OUT: tl.constexpr,
    POSITIONS: tl.constexpr,
):
    frame = tl.program_id(1)  # of T + REACH
    area = (height * width).to(tl.int64)
    positions = tl.program_id(0) * POSITIONS + tl.arange(0, POSITIONS)
    y, x = positions // width, positions % width
    for c in tl.static_range(C_OUT):
        total = tl.zeros((POSITIONS,), tl.float32)
        if frame < begun:
            total += tl.load(begun_ptr + (c * REACH + frame) * area + positions, mask=y < height, other=0.0)
        for dt in tl.static_range(3):
            source = frame + dt - REACH
            if (source >= 0) & (source < frames):
                for tap in tl.static_range(9):
                    row, column = y + (tap // 3 - 1), x + (tap % 3 - 1)
                    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
                    plane = products_ptr + ((source * 27 + dt * 9 + tap) * C_OUT + c) * area
                    total += tl.load(plane + row * width + column, mask=inside, other=0.0).to(tl.float32)
        if frame < frames:
            total += tl.load(bias_ptr + c).to(tl.float32)
            out = out_ptr + (c * frames + frame) * area + positions
            tl.store(out, total.to(out_ptr.dtype.element_ty), mask=y < height)
        else:
            tl.store(next_ptr + (c * REACH + frame - frames) * area + positions, total, mask=y < height)


def tap_products_triton(x: Tensor, gamma: Tensor, rows: Tensor) -> Tensor:
    """x [T, H, W, C] and rows [N, C], contiguous; see `vae_head.tap_products_ref`. Returns [1, 1, T, N·H, W]."""
    frames, height, width, c_in = x.shape
    count = rows.shape[0]
    products = torch.empty(1, 1, frames, count * height, width, dtype=PRODUCT_TYPE, device=x.device)
    with torch.cuda.device_of(x):
        _products_kernel[(triton.cdiv(height * width, PRODUCT_POSITIONS), frames)](
            x,
            gamma,
            rows,
            products,
            height * width,
            count,
            FLOOR=LENGTH_FLOOR,
            C=c_in,
            POSITIONS=PRODUCT_POSITIONS,
            CHANNELS=triton.next_power_of_2(c_in),
            COLUMNS=max(16, triton.next_power_of_2(count)),
            num_warps=PRODUCT_WARPS,
        )
    return products


def sum_taps_triton(products: Tensor, begun: Tensor | None, bias: Tensor, height: int) -> tuple[Tensor, Tensor]:
    """products [1, 1, T, 27·C_out·H, W], begun [1, C_out, 2, H, W] in fp32, contiguous; see `vae_head.sum_taps_ref`."""
    frames, planes, width = products.shape[2:]
    c_out = bias.shape[0]
    if planes != TAPS * c_out * height:
        raise ValueError(f"VAE head: products must have {TAPS}·{c_out}·{height} rows, got {planes}")
    out = torch.empty(1, c_out, frames, height, width, dtype=bias.dtype, device=products.device)
    after = torch.empty(1, c_out, REACH, height, width, dtype=torch.float32, device=products.device)
    with torch.cuda.device_of(products):
        _sum_kernel[(triton.cdiv(height * width, SUM_POSITIONS), frames + REACH)](
            products,
            after if begun is None else begun,
            bias,
            out,
            after,
            height,
            width,
            frames,
            0 if begun is None else REACH,
            REACH=REACH,
            C_OUT=c_out,
            POSITIONS=SUM_POSITIONS,
            num_warps=4,
        )
    return out, after
