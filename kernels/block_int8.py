"""Block-int8 linear layers: weights in 128×128 int8 blocks, activations quantized on the fly.

    amax  = max(|block|, 1e-8)          scale = amax / 128
    code  = clamp(round_half_even(x · 128 / amax), -128, 127)
    y[m,n] = Σ_kb (Σ_{k in kb} a[m,k] · w[n,k])_int32 · a_scale[m,kb] · w_scale[n//128,kb] + bias[n]

Weights come with given codes and scales (TurboDiffusion, arXiv 2512.16093). Activations are scaled per row and
128 columns (finer than published, the default) or per 128×128 block (`rows=128`, as published; row blocks start
anew for each sample of a batch). An activation scale is stored for every row, [K/128, M] fp32, so that one kernel
serves both.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .dispatch import Kernel

BLOCK = 128
AMAX_FLOOR = 1e-8
ROWS_AT_ONCE = 4096  # bounds the fp32 copies of an activation that is dequantized

LINEAR = Kernel(name="block-int8 linear", last_dim_multiple=BLOCK)


@dataclass(frozen=True)
class BlockInt8:
    """A weight matrix in int8 codes with one fp32 scale per 128×128 block.

    Attributes:
        codes: int8 [N, K].
        scale: fp32 [ceil(N/128), ceil(K/128)].
    """

    codes: Tensor
    scale: Tensor

    def __post_init__(self) -> None:
        n, k = self.codes.shape
        expected = (-(-n // BLOCK), -(-k // BLOCK))
        dtypes = (self.codes.dtype, self.scale.dtype)
        if dtypes != (torch.int8, torch.float32) or tuple(self.scale.shape) != expected:
            raise ValueError(
                f"BlockInt8: codes must be int8 [N, K] with fp32 scale {expected}, got {self.codes.dtype} "
                f"{tuple(self.codes.shape)} with {self.scale.dtype} scale {tuple(self.scale.shape)}"
            )

    @property
    def shape(self) -> torch.Size:
        return self.codes.shape

    @property
    def device(self) -> torch.device:
        return self.codes.device

    def to(self, device: torch.device) -> BlockInt8:
        if self.codes.device == self.scale.device == device:
            return self
        return BlockInt8(self.codes.to(device), self.scale.to(device))

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """The weight as a dense [N, K] tensor: codes times scales in fp32, rounded once to `dtype`."""
        n, k = self.codes.shape
        blocks = _to_blocks(self.codes).to(torch.float32) * self.scale[:, None, :, None]
        return blocks.to(dtype).reshape(blocks.shape[0] * BLOCK, -1)[:n, :k].contiguous()


@dataclass(frozen=True)
class QuantizedActivations:
    """Activations in int8, with a scale for each row and 128 columns.

    Attributes:
        codes: int8 [M, K].
        scale: fp32 [ceil(K/128), M].
    """

    codes: Tensor
    scale: Tensor

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """[M, K] `dtype`: codes times scales in fp32, rounded once."""
        out = torch.empty(self.codes.shape, dtype=dtype, device=self.codes.device)
        for start in range(0, out.shape[0], ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            per_column = self.scale[:, rows].T.repeat_interleave(BLOCK, dim=1)[:, : out.shape[1]]
            out[rows] = self.codes[rows].to(torch.float32) * per_column
        return out


@dataclass(frozen=True)
class GatedResidual:
    """What a linear layer's output y is added to: x + y · gate, in the GEMM's epilogue.

    Attributes:
        x: [B, L, N], contiguous, in the dtype of the result.
        gate: fp32 [B or 1, N]; None adds y as it is.
    """

    x: Tensor
    gate: Tensor | None = None

    def add(self, y: Tensor) -> Tensor:
        """[B, L, N] fp32 from y of B·L rows."""
        y = y.to(torch.float32).reshape(self.x.shape)
        return self.x + (y if self.gate is None else y * self.gate.to(torch.float32)[:, None])


def quantize_weight(w: Tensor) -> BlockInt8:
    """Quantize a dense [N, K] weight to 128×128 blocks (any float dtype; arithmetic in fp32)."""
    n, k = w.shape
    blocks = _to_blocks(w).to(torch.float32)
    amax = blocks.abs().amax(dim=(1, 3)).clamp(min=AMAX_FLOOR)
    codes = _encode(blocks, amax[:, None, :, None])
    codes = codes.reshape(codes.shape[0] * BLOCK, -1)[:n, :k].contiguous()
    return BlockInt8(codes, amax / 128)


def quantize_activations_ref(x: Tensor, rows: int = 1) -> QuantizedActivations:
    """Quantize activations [B, L, K] or [M, K]; `rows` is 1 (a scale per row) or 128 (per block of rows)."""
    x = x if x.ndim == 3 else x[None]
    batch, length, k = x.shape
    padded = F.pad(x.to(torch.float32), (0, -k % BLOCK, 0, -length % rows))
    blocks = padded.reshape(batch, -1, rows, padded.shape[-1] // BLOCK, BLOCK)
    amax = blocks.abs().amax(dim=(2, 4), keepdim=True).clamp(min=AMAX_FLOOR)
    codes = _encode(blocks, amax).reshape(batch, -1, padded.shape[-1])[:, :length, :k]
    scale = (amax / 128).expand(-1, -1, rows, -1, -1).reshape(batch, -1, amax.shape[3])[:, :length]
    return QuantizedActivations(
        codes.reshape(batch * length, k).contiguous(), scale.reshape(batch * length, -1).T.contiguous()
    )


def linear_ref(a: QuantizedActivations, w: BlockInt8, bias: Tensor | None, gelu: bool, dtype: torch.dtype) -> Tensor:
    """The formula above, exactly: int32 block sums are exact in fp32 (|sum| ≤ 2^21). Returns [M, N] `dtype`."""
    m, k = a.codes.shape
    y = torch.zeros(m, w.shape[0], dtype=torch.float32, device=a.codes.device)
    w_scale_rows = w.scale.repeat_interleave(BLOCK, dim=0)[: w.shape[0]]  # [N, K/128]
    for block, start in enumerate(range(0, k, BLOCK)):
        columns = slice(start, min(start + BLOCK, k))
        product = a.codes[:, columns].to(torch.float32) @ w.codes[:, columns].to(torch.float32).T
        y.addcmul_(product, a.scale[block][:, None] * w_scale_rows[:, block][None])
    if bias is not None:
        y += bias.to(torch.float32)
    return (F.gelu(y, approximate="tanh") if gelu else y).to(dtype)


def row_squares_ref(y: Tensor) -> Tensor:
    """Σ y² of each row, a part per 128 columns: [M, N] → fp32 [N/128, M]."""
    parts = F.pad(y.to(torch.float32), (0, -y.shape[1] % BLOCK)).reshape(y.shape[0], -1, BLOCK)
    return parts.square().sum(dim=2).T.contiguous()


def quantize_activations(x: Tensor, rows: int = 1) -> QuantizedActivations:
    """Quantize activations [B, L, K] or [M, K] by the kernel where it runs, else by the reference."""
    if LINEAR.accepts(x):
        from .block_int8_triton import quantize_activations_triton

        return quantize_activations_triton(x, rows)
    return quantize_activations_ref(x, rows)


def linear(
    a: QuantizedActivations,
    w: BlockInt8,
    bias: Tensor | None,
    *,
    gelu: bool,
    like: Tensor,
    residual: GatedResidual | None = None,
) -> Tensor:
    """Quantized linear, optionally followed by GELU(tanh) and a gated residual; [M, N] in the dtype of `like`."""
    if LINEAR.accepts(like):
        from .block_int8_triton import linear_triton

        return linear_triton(a, w, bias, gelu, like.dtype, residual)
    if residual is None:
        return linear_ref(a, w, bias, gelu, like.dtype)
    return residual.add(linear_ref(a, w, bias, gelu, torch.float32)).to(like.dtype).reshape(-1, w.shape[0])


def linear_with_squares(
    a: QuantizedActivations, w: BlockInt8, bias: Tensor | None, *, like: Tensor
) -> tuple[Tensor, Tensor]:
    """`linear` and, for an RMS norm that follows, `row_squares_ref` of what it wrote, from the GEMM's epilogue."""
    if LINEAR.accepts(like):
        from .block_int8_triton import linear_with_squares_triton

        return linear_with_squares_triton(a, w, bias, like.dtype)
    y = linear_ref(a, w, bias, False, like.dtype)
    return y, row_squares_ref(y)


def linear_quantized(
    a: QuantizedActivations, w: BlockInt8, bias: Tensor | None, *, gelu: bool, like: Tensor
) -> QuantizedActivations:
    """`linear`, its output quantized per row and 128 columns for a layer that follows; never written unquantized."""
    if LINEAR.accepts(like):
        from .block_int8_triton import linear_quantized_triton

        return linear_quantized_triton(a, w, bias, gelu)
    return quantize_activations_ref(linear_ref(a, w, bias, gelu, torch.float32))


def _to_blocks(w: Tensor) -> Tensor:
    """[N, K] zero-padded and viewed as [N/128, 128, K/128, 128]."""
    n, k = w.shape
    padded = F.pad(w, (0, -k % BLOCK, 0, -n % BLOCK))
    return padded.reshape(padded.shape[0] // BLOCK, BLOCK, padded.shape[1] // BLOCK, BLOCK)


def _encode(x: Tensor, amax: Tensor) -> Tensor:
    return (x * (128 / amax)).round().clamp(-128, 127).to(torch.int8)
