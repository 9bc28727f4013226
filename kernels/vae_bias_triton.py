"""Triton kernel of `vae_bias`: a program takes a run of positions with all their channels."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .vae_norm_triton import BLOCK_ELEMENTS, WARPS


@triton.jit(do_not_specialize=["row_count"])
def _bias_kernel(
    out_ptr,  # [rows, C]
    bias_ptr,  # [C]
    residual_ptr,  # [rows, C]
    row_count,
    RESIDUAL: tl.constexpr,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,  # padded C
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    inside = (rows < row_count)[:, None] & (columns < C)[None, :]
    offsets = rows[:, None] * C + columns[None, :]
    total = tl.load(out_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    total += tl.load(bias_ptr + columns, mask=columns < C, other=0.0).to(tl.float32)[None, :]
    if RESIDUAL:
        total += tl.load(residual_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + offsets, total.to(out_ptr.dtype.element_ty), mask=inside)


def add_bias_triton(out: Tensor, bias: Tensor, residual: Tensor | None) -> None:
    """out and residual [..., C], contiguous; see `vae_bias.add_bias_ref`, but rounded once."""
    channels = out.shape[-1]
    if bias.shape != (channels,) or (residual is not None and residual.shape != out.shape):
        shape = None if residual is None else tuple(residual.shape)
        raise ValueError(
            f"VAE bias: bias must have {channels} elements and a residual be {tuple(out.shape)}, got "
            f"{tuple(bias.shape)} and {shape}"
        )
    row_count = out.numel() // channels
    columns = triton.next_power_of_2(channels)
    rows = max(1, BLOCK_ELEMENTS // columns)
    with torch.cuda.device_of(out):
        _bias_kernel[(triton.cdiv(row_count, rows),)](
            out,
            bias,
            out if residual is None else residual,
            row_count,
            RESIDUAL=residual is not None,
            C=channels,
            ROWS=rows,
            COLUMNS=columns,
            num_warps=WARPS,
        )
