"""Queries and keys in int8 for `sagesla` (idea: SageAttention, arXiv 2410.02367).

q8[i]  = round(q_i · 127 / max|q_i|)                    one scale per token and head
k'     = k − mean_L k                                   changes no softmax: q·mean is the same for every key
k8[j]  = round(k'_j · 127 / max|k' of its block|)       one scale per block of 64 keys and head
q·k'ᵀ ≈ (q8 k8ᵀ)_int32 · q_scale · k_scale
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .routing import BLOCK_K

CODE_MAX = 127
AMAX_FLOOR = 1e-8


@dataclass(frozen=True)
class QuantizedHeads:
    """Queries or keys in int8.

    Attributes:
        codes: int8 [B, L, H, D].
        scale: fp32 [B, H, L] for queries, [B, H, ceil(L/64)] for keys.
    """

    codes: Tensor
    scale: Tensor


def quantize_queries(q: Tensor) -> QuantizedHeads:
    """One scale per token and head."""
    amax = q.to(torch.float32).abs().amax(dim=-1, keepdim=True).clamp(min=AMAX_FLOOR)
    return QuantizedHeads(_encode(q.to(torch.float32), amax), (amax / CODE_MAX)[..., 0].transpose(1, 2).contiguous())


def quantize_keys(k: Tensor, k_mean: Tensor) -> QuantizedHeads:
    """One scale per block of 64 keys and head, after subtracting `k_mean` (fp32 [B, H, D])."""
    smooth = k.to(torch.float32) - k_mean[:, None]
    token_amax = smooth.abs().amax(dim=-1)  # [B, L, H]
    padded = torch.nn.functional.pad(token_amax, (0, 0, 0, -k.shape[1] % BLOCK_K))
    amax = padded.reshape(k.shape[0], -1, BLOCK_K, k.shape[2]).amax(dim=2).clamp(min=AMAX_FLOOR)  # [B, Nk, H]
    per_token = amax.repeat_interleave(BLOCK_K, dim=1)[:, : k.shape[1], :, None]
    return QuantizedHeads(_encode(smooth, per_token), (amax / CODE_MAX).transpose(1, 2).contiguous())


def dequantize_queries(q: QuantizedHeads) -> Tensor:
    """fp32 [B, L, H, D]."""
    return q.codes.to(torch.float32) * q.scale.transpose(1, 2)[..., None]


def dequantize_keys(k: QuantizedHeads) -> Tensor:
    """fp32 [B, L, H, D], still without the mean."""
    per_token = k.scale.repeat_interleave(BLOCK_K, dim=2)[:, :, : k.codes.shape[1]]
    return k.codes.to(torch.float32) * per_token.transpose(1, 2)[..., None]


def _encode(x: Tensor, amax: Tensor) -> Tensor:
    return (x * (CODE_MAX / amax)).round().clamp(-CODE_MAX, CODE_MAX).to(torch.int8)
