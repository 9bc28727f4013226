"""Attention of the video's tokens to the text's, from queries that are not normalised yet.

    q̂ = q / √(mean q² + eps)                            mean over all heads of a token
    k = k₀ / √(mean k₀² + eps) · w_q · w_k               the weights of both norms
    o = softmax(q̂ kᵀ / √D) v                            each head, over all S keys
    codes of o, a scale per row and head                where the next layer takes int8

The norm of a query is one factor per token, so that it scales the scores and q is read as the projection wrote it.
A prompt is padded: its last r tokens are one and the same, and so are their keys and values. Softmax over them is
softmax over one of them with r times its weight:

    Σ_{j ≥ S−r} exp(s_j) v_j = r · exp(s_{S−r}) v_{S−r}

so that the kernel walks through S − r + 1 keys. It does 4·B·L·H·D operations a key, reads 2 bytes and writes 1 an
element of q. r stays on the device: nothing waits for it, and no shape depends on it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .block_int8 import BLOCK, QuantizedActivations, quantize_activations_ref
from .dispatch import Kernel

TEXT_ATTENTION = Kernel(name="cross-attention", last_dim_multiple=BLOCK)


def trailing_repeats(tokens: Tensor) -> Tensor:
    """How many of the last tokens equal the very last: [B, S, C] → int32 [B], from 1 to S."""
    same = (tokens == tokens[:, -1:]).all(dim=-1)
    return same.flip(1).cumprod(dim=1).sum(dim=1).clamp(min=1).to(torch.int32)


def row_squares_ref(q: Tensor) -> Tensor:
    """Σ q² of each token: [B, L, H, D] → fp32 [1, B·L]."""
    return q.to(torch.float32).square().sum(dim=(2, 3)).reshape(1, -1)


def norm_keys_ref(k: Tensor, q_weight: Tensor, k_weight: Tensor, eps: float) -> Tensor:
    """Normalised keys times both norms' weights [C]: [B, S, H, D] → the same in k's dtype, rounded once."""
    k32 = k.to(torch.float32)
    weight = (q_weight.to(torch.float32) * k_weight.to(torch.float32)).reshape(k.shape[2:])
    return (k32 * torch.rsqrt(k32.square().mean(dim=(2, 3), keepdim=True) + eps) * weight).to(k.dtype)


def text_attention_ref(q: Tensor, k: Tensor, v: Tensor, eps: float) -> Tensor:
    """The formula above over all keys.

    Args:
        q: [B, L, H, D], not normalised.
        k: [B, S, H, D], as `norm_keys_ref` gives them.
        v: [B, S, H, D].

    Returns:
        [B, L, H, D] in q's dtype.
    """
    q32 = q.to(torch.float32)
    normed = q32 * torch.rsqrt(q32.square().mean(dim=(2, 3), keepdim=True) + eps)
    heads_first = (x.to(torch.float32).transpose(1, 2) for x in (normed, k, v))
    return F.scaled_dot_product_attention(*heads_first).transpose(1, 2).to(q.dtype)


def norm_keys(k: Tensor, q_weight: Tensor, k_weight: Tensor, eps: float) -> Tensor:
    """`norm_keys_ref`, by the kernel where it runs."""
    if TEXT_ATTENTION.accepts(k):
        from .text_attention_triton import norm_keys_triton

        return norm_keys_triton(k, q_weight, k_weight, eps)
    return norm_keys_ref(k, q_weight, k_weight, eps)


def text_attention(
    q: Tensor, k: Tensor, v: Tensor, eps: float, *, repeats: Tensor, squares: Tensor | None = None
) -> Tensor:
    """`text_attention_ref`, by the kernel where it runs.

    Args:
        repeats: as `trailing_repeats` gives it for the tokens that k and v were made from.
        squares: Σ q² of each token in any number of parts, fp32 [parts, B·L], where q's projection left them.
    """
    if TEXT_ATTENTION.accepts(q):
        from .text_attention_triton import row_squares_triton, text_attention_triton

        squares = row_squares_triton(q) if squares is None else squares
        return text_attention_triton(q, k, v, eps, repeats, squares)
    return text_attention_ref(q, k, v, eps)


def text_attention_quantized(
    q: Tensor, k: Tensor, v: Tensor, eps: float, *, repeats: Tensor, squares: Tensor | None = None
) -> QuantizedActivations:
    """`text_attention` quantized per row and head of 128 columns, never written unquantized."""
    if TEXT_ATTENTION.accepts(q):
        from .text_attention_triton import row_squares_triton, text_attention_quantized_triton

        squares = row_squares_triton(q) if squares is None else squares
        return text_attention_quantized_triton(q, k, v, eps, repeats, squares)
    return quantize_activations_ref(text_attention_ref(q.to(torch.float32), k, v, eps).flatten(2))
