"""Which key blocks each query block of SLA attends to.

    score = mean(q block) · mean(k block − mean_L k)ᵀ, unscaled, fp32
    kept  = the top max(1, ⌊ratio · key blocks⌋) key blocks; of equal scores the lower index

Query blocks are 128 tokens, key blocks 64; the tail's mean is over the tokens that it has. Scores of one kernel and
another may differ in their last bits, and with them the order of near-equal blocks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .dispatch import Kernel

BLOCK_Q = 128
BLOCK_K = 64

ROUTING = Kernel(name="routing of key blocks", dtypes=(torch.float32,), last_dim_multiple=128)


def kept_blocks(key_length: int, ratio: float) -> int:
    """How many key blocks each query block keeps: ⌊ratio · blocks⌋, at least 1."""
    blocks = -(-key_length // BLOCK_K)
    return max(1, min(blocks, int(ratio * blocks)))


def mean_pool(x: Tensor, block: int) -> Tensor:
    """Means over blocks of tokens: [B, L, H, D] → fp32 [B, H, ceil(L/block), D]; the tail has its own count."""
    batch, length, heads, dim = x.shape
    padded = F.pad(x.to(torch.float32), (0, 0, 0, 0, 0, -length % block))
    sums = padded.reshape(batch, -1, block, heads, dim).sum(dim=2)
    return (sums / _counts(sums.shape[1], length, block, x.device)[:, None, None]).transpose(1, 2)


def key_mean_ref(pooled_k: Tensor, length: int) -> Tensor:
    """Mean over all keys, fp32 [B, H, D], from the means of their blocks."""
    weights = _counts(pooled_k.shape[2], length, BLOCK_K, pooled_k.device) / length
    return torch.einsum("bhnd,n->bhd", pooled_k, weights)


def key_mean(pooled_k: Tensor, length: int) -> Tensor:
    """`key_mean_ref`, by the kernel where it runs."""
    if ROUTING.accepts(pooled_k):
        from .routing_triton import key_mean_triton

        return key_mean_triton(pooled_k, length)
    return key_mean_ref(pooled_k, length)


def route_ref(pooled_q: Tensor, pooled_k: Tensor, k_mean: Tensor, kept: int) -> Tensor:
    """Choose key blocks: int32 [B, H, query blocks, kept], ascending.

    Args:
        pooled_q: fp32 [B, H, Mq, D]; pooled_k: fp32 [B, H, Nk, D]; k_mean: fp32 [B, H, D].
        kept: as from `kept_blocks`.
    """
    score = pooled_q @ (pooled_k - k_mean[:, :, None]).transpose(-1, -2)
    chosen = score.sort(dim=-1, descending=True, stable=True).indices[..., :kept]
    return chosen.sort(dim=-1).values.to(torch.int32)


def route(pooled_q: Tensor, pooled_k: Tensor, k_mean: Tensor, kept: int) -> Tensor:
    """`route_ref`, by the kernel where it runs."""
    if ROUTING.accepts(pooled_q):
        from .routing_triton import route_triton

        return route_triton(pooled_q, pooled_k, k_mean, kept)
    return route_ref(pooled_q, pooled_k, k_mean, kept)


def _counts(blocks: int, length: int, block: int, device: torch.device) -> Tensor:
    """fp32 [blocks]: how many tokens each block has."""
    starts = torch.arange(blocks, device=device) * block
    return (length - starts).clamp(max=block).to(torch.float32)
