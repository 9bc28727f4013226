"""A matrix in 8-bit codes with one fp32 scale per row: activations per token, weights per output channel.

    int8:  scale = amax / 128    code = clamp(round_half_even(x · 128 / amax), -128, 127)
    e4m3:  scale = amax / 448    code = e4m3(x · 448 / amax), to nearest, ties to even
    amax = max(|row|, 1e-8)

`gelu` quantizes GELU(tanh) of the rows instead. Its amax is then max(GELU(max x), 0.17004), where 0.17004 is the depth
of GELU's dip: never less than the exact one, and known from the largest x, before the GELU of any other is computed.

Both passes of the kernel read 2 bytes and write 1 an element; the second reading comes from the cache.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .block_int8 import AMAX_FLOOR, ROWS_AT_ONCE
from .dispatch import Kernel

E4M3_LOWEST_EXPONENT, E4M3_MANTISSA_BITS = -6, 3
LARGEST = {torch.int8: 128.0, torch.float8_e4m3fn: 448.0}  # what a row's amax is mapped to
GELU_DIP = 0.170041  # -min GELU(tanh), rounded up

QUANTIZE = {
    torch.int8: Kernel(name="int8 rows", last_dim_multiple=16),
    torch.float8_e4m3fn: Kernel(name="fp8 rows", last_dim_multiple=16, min_capability=(8, 9)),
}


@dataclass(frozen=True)
class RowCodes:
    """A matrix in codes with a scale per row.

    Attributes:
        codes: int8 or e4m3 [M, K].
        scale: fp32 [M].
    """

    codes: Tensor
    scale: Tensor

    def __post_init__(self) -> None:
        codes, scale = self.codes, self.scale
        if codes.dtype not in LARGEST or scale.dtype != torch.float32 or scale.shape != codes.shape[:1]:
            raise ValueError(
                f"RowCodes: codes must be int8 or e4m3 [M, K] with fp32 scale [M], got {codes.dtype} "
                f"{tuple(codes.shape)} with {scale.dtype} scale {tuple(scale.shape)}"
            )

    @property
    def dtype(self) -> torch.dtype:
        return self.codes.dtype

    @property
    def shape(self) -> torch.Size:
        return self.codes.shape

    @property
    def device(self) -> torch.device:
        return self.codes.device

    def to(self, device: torch.device) -> RowCodes:
        if self.codes.device == self.scale.device == device:
            return self
        return RowCodes(self.codes.to(device), self.scale.to(device))

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """[M, K] `dtype`: codes times scales in fp32, rounded once."""
        out = torch.empty(self.codes.shape, dtype=dtype, device=self.codes.device)
        for start in range(0, out.shape[0], ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            out[rows] = self.codes[rows].to(torch.float32) * self.scale[rows, None]
        return out


def quantize_rows_ref(x: Tensor, dtype: torch.dtype, *, gelu: bool = False) -> RowCodes:
    """The rows of x [..., K] in codes of `dtype`; arithmetic in fp32."""
    x = x.reshape(-1, x.shape[-1]).to(torch.float32)
    if gelu:
        amax = F.gelu(x.amax(dim=1), approximate="tanh").clamp(min=GELU_DIP)
        x = F.gelu(x, approximate="tanh")
    else:
        amax = x.abs().amax(dim=1).clamp(min=AMAX_FLOOR)
    largest = LARGEST[dtype]
    scaled = x * (largest / amax)[:, None]
    codes = scaled.round().clamp(-128, 127) if dtype == torch.int8 else scaled.clamp(-largest, largest)
    return RowCodes(codes.to(dtype), amax / largest)


def quantize_rows(x: Tensor, dtype: torch.dtype, *, gelu: bool = False) -> RowCodes:
    """`quantize_rows_ref`, by the kernel where it runs."""
    if QUANTIZE[dtype].accepts(x):
        from .row_codes_triton import quantize_rows_triton

        return quantize_rows_triton(x, dtype, gelu)
    return quantize_rows_ref(x, dtype, gelu=gelu)


def round_stochastically(x: Tensor, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Codes of x, already divided by its scales, up or down with the neighbours' nearness as odds:

    step · floor(x / step + u), u ~ U[0, 1), where step is 1 for int8 and 2^(max(⌊log2 |x|⌋, -6) - 3) for e4m3.
    """
    dither = torch.rand(x.shape, generator=generator, device=x.device)
    if dtype == torch.int8:
        return (x + dither).floor_().clamp_(-128, 127).to(dtype)
    exponent = (torch.frexp(x).exponent - 1).clamp(min=E4M3_LOWEST_EXPONENT) - E4M3_MANTISSA_BITS
    step = torch.exp2(exponent.to(torch.float32))
    return ((x / step + dither).floor_() * step).clamp_(-LARGEST[dtype], LARGEST[dtype]).to(dtype)
