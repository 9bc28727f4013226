"""Sparse-linear attention (SLA, arXiv 2509.24006) as TurboDiffusion's checkpoints were trained with it.

For each query block of 128 tokens and each head:

    routing   score = mean(q block) · mean(k block − mean_L k)ᵀ, unscaled, fp32;
              kept  = the top max(1, ⌊ratio · key blocks⌋) key blocks of 64 tokens
    sparse    o_s = softmax(q kᵀ / √D over the kept blocks) v
    linear    φ = softmax over the head dimension;
              o_l = φ(q) (φ(k)ᵀ v) / (1e-5 + φ(q) · Σ φ(k)), over ALL keys
    output    o = o_s + o_l Wᵀ + b        (proj_l)

Tensors are [B, L, H, D], as the projections write them. The sums over keys are kept as means of D·φ(k), which
16-bit types can hold at any length, and `proj_l`'s weight is folded in once per head, so that the linear branch ends
as one [128, D] × [D, D] product in the sparse kernel's epilogue. With m_d the mean of φ(k)_d and v̄_d the mean of v
weighted by φ(k)_d, that product is of bounded factors, whatever the inputs:

    o_l = Σ_d [φ(q)_d m_d / (ε + Σ φ(q) m)] · v̄_d         weights of at most 1, averages of v

The tail blocks of queries and keys may be shorter; absent tokens take part in nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .dispatch import Kernel

BLOCK_Q = 128
BLOCK_K = 64
LINEAR_EPS = 1e-5
# Gathered keys and values of the torch path stay below this.
TORCH_GROUP_BYTES = 256 * 2**20

SPARSE = Kernel(name="sparse-linear attention", last_dim_multiple=128)
SAGE = Kernel(name="sparse-linear attention with int8 QK (sagesla)", last_dim_multiple=128)


@dataclass(frozen=True)
class LinearBranch:
    """The linear branch with `proj_l` folded in, ready for an epilogue.

    Attributes:
        values: fp32 [B, H, D, D], for each feature the mean of v weighted by φ(k), times proj_lᵀ.
        k_mean: fp32 [B, H, D], mean over keys of D·φ(k).
        bias: fp32 [D], proj_l's bias.
        eps: 1e-5 in the same units as `k_mean`.
    """

    values: Tensor
    k_mean: Tensor
    bias: Tensor
    eps: float


def kept_blocks(key_length: int, ratio: float) -> int:
    """How many key blocks each query block keeps: ⌊ratio · blocks⌋, at least 1."""
    blocks = -(-key_length // BLOCK_K)
    return max(1, min(blocks, int(ratio * blocks)))


def mean_pool_ref(x: Tensor, block: int) -> Tensor:
    """Means over blocks of tokens: [B, L, H, D] → fp32 [B, H, ceil(L/block), D]; the tail has its own count."""
    batch, length, heads, dim = x.shape
    padded = F.pad(x.to(torch.float32), (0, 0, 0, 0, 0, -length % block))
    sums = padded.reshape(batch, -1, block, heads, dim).sum(dim=2)
    counts = torch.full((sums.shape[1],), block, dtype=torch.float32, device=x.device)
    counts[-1] = length - (sums.shape[1] - 1) * block
    return (sums / counts[:, None, None]).transpose(1, 2)


def mean_pool(x: Tensor, block: int) -> Tensor:
    """`mean_pool_ref`, by the kernel where it runs."""
    if SPARSE.accepts(x):
        from .sla_triton import mean_pool_triton

        return mean_pool_triton(x, block)
    return mean_pool_ref(x, block)


def key_mean(pooled_k: Tensor, length: int) -> Tensor:
    """Mean over all keys, fp32 [B, H, D], from the block means."""
    counts = torch.full((pooled_k.shape[2],), BLOCK_K, dtype=torch.float32, device=pooled_k.device)
    counts[-1] = length - (pooled_k.shape[2] - 1) * BLOCK_K
    return torch.einsum("bhnd,n->bhd", pooled_k, counts / length)


def route(pooled_q: Tensor, pooled_k: Tensor, k_mean: Tensor, kept: int) -> Tensor:
    """Choose key blocks: int32 [B, H, query blocks, kept], ascending.

    Args:
        pooled_q: fp32 [B, H, Mq, D]; pooled_k: fp32 [B, H, Nk, D]; k_mean: fp32 [B, H, D].
        kept: as from `kept_blocks`.
    """
    score = pooled_q @ (pooled_k - k_mean[:, :, None]).transpose(-1, -2)
    chosen = torch.topk(score, kept, dim=-1, sorted=False).indices
    return chosen.sort(dim=-1).values.to(torch.int32)


def linear_branch_ref(k: Tensor, v: Tensor, weight: Tensor, bias: Tensor) -> LinearBranch:
    """Sums over keys of the linear branch in fp32; see the module docstring."""
    dim, length = k.shape[-1], k.shape[1]
    features = k.to(torch.float32).softmax(dim=-1) * dim
    kv = torch.einsum("blhd,blhe->bhde", features, v.to(torch.float32)) / length
    return _fold(kv, features.mean(dim=1), weight, bias, dim / length)


def linear_branch(k: Tensor, v: Tensor, weight: Tensor, bias: Tensor) -> LinearBranch:
    """`linear_branch_ref`, by the kernel where it runs."""
    if SPARSE.accepts(k):
        from .sla_triton import feature_sums_triton

        kv, k_mean = feature_sums_triton(k, v)
        return _fold(kv, k_mean, weight, bias, k.shape[-1] / k.shape[1])
    return linear_branch_ref(k, v, weight, bias)


def _fold(kv: Tensor, k_mean: Tensor, weight: Tensor, bias: Tensor, unit: float) -> LinearBranch:
    means = kv / k_mean.clamp(min=torch.finfo(torch.float32).tiny)[..., None]
    return LinearBranch(means @ weight.to(torch.float32).T, k_mean, bias.to(torch.float32), LINEAR_EPS * unit)


def apply_linear_branch(q: Tensor, branch: LinearBranch) -> Tensor:
    """φ(q) applied to the folded sums: fp32 [B, L, H, D], bias included."""
    weights = q.to(torch.float32).softmax(dim=-1) * branch.k_mean[:, None]
    weights = weights / (branch.eps + weights.sum(dim=-1, keepdim=True))
    return torch.einsum("blhd,bhde->blhe", weights, branch.values) + branch.bias


def sparse_attention_ref(q: Tensor, k: Tensor, v: Tensor, blocks: Tensor) -> Tensor:
    """Softmax attention over the kept key blocks, [B, L, H, D], in the inputs' dtype (fp32 = the reference).

    Works through groups of query blocks, so that the gathered keys stay below `TORCH_GROUP_BYTES`.
    """
    batch, length, heads, dim = q.shape
    q_blocks = _blocked(q, BLOCK_Q)  # [B·H, Mq, 128, D]
    k_blocks, v_blocks = _blocked(k, BLOCK_K), _blocked(v, BLOCK_K)
    present = torch.arange(k_blocks.shape[1] * BLOCK_K, device=q.device).reshape(-1, BLOCK_K) < k.shape[1]
    chosen = blocks.flatten(0, 1).to(torch.int64)  # [B·H, Mq, kept]
    kept = chosen.shape[-1]
    group = max(1, TORCH_GROUP_BYTES // (2 * kept * BLOCK_K * dim * q.element_size()))
    out = torch.empty_like(q_blocks)
    for head in range(batch * heads):
        for start in range(0, chosen.shape[1], group):
            index = chosen[head, start : start + group]
            keys = k_blocks[head][index].flatten(1, 2)
            values = v_blocks[head][index].flatten(1, 2)
            mask = present[index].flatten(1, 2)[:, None]
            queries = q_blocks[head, start : start + group]
            out[head, start : start + group] = F.scaled_dot_product_attention(
                queries[:, None], keys[:, None], values[:, None], attn_mask=mask[:, None]
            )[:, 0]
    return out.reshape(batch, heads, -1, dim)[:, :, :length].transpose(1, 2)


def sparse_linear_attention(q: Tensor, k: Tensor, v: Tensor, blocks: Tensor, branch: LinearBranch | None) -> Tensor:
    """SLA's output [B, L, H, D] for given kept blocks; `branch` None leaves the sparse part alone."""
    if SPARSE.accepts(q):
        from .sla_triton import sparse_linear_attention_triton

        return sparse_linear_attention_triton(q, k, v, blocks, branch)
    return add_branch(sparse_attention_ref(q, k, v, blocks), q, branch)


def add_branch(sparse: Tensor, q: Tensor, branch: LinearBranch | None) -> Tensor:
    """The sparse output plus the linear branch, batch by head-wise, rounded once to the dtype of `sparse`."""
    if branch is None:
        return sparse
    return (sparse.to(torch.float32) + apply_linear_branch(q, branch)).to(sparse.dtype)


def _blocked(x: Tensor, block: int) -> Tensor:
    """[B, L, H, D] → [B·H, ceil(L/block), block, D], zero-padded."""
    padded = F.pad(x.transpose(1, 2), (0, 0, 0, -x.shape[1] % block))
    return padded.reshape(padded.shape[0] * padded.shape[1], -1, block, padded.shape[-1])
