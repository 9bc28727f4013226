"""Sparse-linear attention (SLA, arXiv 2509.24006) as TurboDiffusion's checkpoints were trained with it.

For each query block of 128 tokens and each head, with the key blocks that `routing` chose:

    sparse    o_s = softmax(q kᵀ / √D over the kept blocks) v
    linear    φ = softmax over the head dimension;
              o_l = φ(q) (φ(k)ᵀ v) / (1e-5 + φ(q) · Σ φ(k)), over ALL keys
    output    o = o_s + o_l Wᵀ + b        (proj_l)

Tensors are [B, L, H, D], as the projections write them; absent tokens of tail blocks take part in nothing. The sums
over keys come from `key_pass`: with m_d the mean of D·φ(k)_d and v̄_d the mean of v weighted by φ(k)_d, the linear
branch is one [128, D] × [D, D] product of bounded factors in the sparse kernel's epilogue, whatever the inputs:

    o_l = Σ_d [φ(q)_d m_d / (ε + Σ φ(q) m)] · v̄_d         weights of at most 1, averages of v

`sagesla` computes q kᵀ in int8 (`int8_heads`); values, probabilities and the linear branch stay 16-bit, which is finer
than the published fp8 V.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from . import routing
from .block_int8 import QuantizedActivations, quantize_activations_ref
from .dispatch import Kernel
from .int8_heads import QuantizedHeads, dequantize_keys, dequantize_queries
from .key_pass import KeyPass, apply_linear_branch, key_pass
from .qk_norm import PooledHeads
from .routing import BLOCK_K, BLOCK_Q

# Gathered keys and values of the torch path stay below this.
TORCH_GROUP_BYTES = 256 * 2**20

SPARSE = Kernel(name="sparse-linear attention", last_dim_multiple=128)
SAGE = Kernel(name="sparse-linear attention with int8 QK (sagesla)", last_dim_multiple=128)


@dataclass(frozen=True)
class SlaInputs:
    """Everything the attention reads.

    Attributes:
        q, k, v: [B, L, H, D].
        blocks: int32 [B, H, query blocks, kept], ascending.
        keys: of k and v; holds k's codes for sagesla.
        q_codes: q in int8 for sagesla.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    blocks: Tensor
    keys: KeyPass
    q_codes: QuantizedHeads | None = None

    def __post_init__(self) -> None:
        batch, length, heads, _ = self.q.shape
        expected = (batch, heads, -(-length // BLOCK_Q))
        if self.blocks.shape[:3] != expected:
            raise ValueError(
                f"sparse-linear attention: blocks must be [batch, heads, query blocks, kept], {expected} and kept for "
                f"q {tuple(self.q.shape)}, got {tuple(self.blocks.shape)}; use routing.route"
            )
        if (self.q_codes is None) != (self.keys.codes is None):
            raise ValueError("sparse-linear attention: queries and keys must both have int8 codes, or neither")


def prepare(q: PooledHeads, k: PooledHeads, v: Tensor, weight: Tensor, bias: Tensor, ratio: float) -> SlaInputs:
    """Route, and pass over the keys; sagesla where q holds codes. weight [D, D] and bias [D] are `proj_l`'s."""
    length = k.x.shape[1]
    k_mean = routing.key_mean(k.means, length)
    blocks = routing.route(q.means, k.means, k_mean, routing.kept_blocks(length, ratio))
    keys = key_pass(k.x, v, k_mean, weight, bias, int8=q.codes is not None)
    return SlaInputs(q.x, k.x, v, blocks, keys, q.codes)


def attend(inputs: SlaInputs) -> Tensor:
    """SLA's output [B, L, H, D] in q's dtype.

    Raises:
        BackendUnavailableError: for int8 scores where the kernel cannot run.
    """
    if _kernel_runs(inputs):
        from .sla_triton import attend_triton

        return attend_triton(inputs)
    return attend_ref(inputs)


def attend_quantized(inputs: SlaInputs) -> QuantizedActivations:
    """`attend` as int8 codes [B·L, H·D] with a scale per row and head, never written unquantized (D is 128)."""
    if _kernel_runs(inputs):
        from .sla_triton import attend_quantized_triton

        return attend_quantized_triton(inputs)
    return quantize_activations_ref(attend_ref(inputs).flatten(2))


def attend_ref(inputs: SlaInputs) -> Tensor:
    """The formula, in q's dtype (fp32 = the reference); with int8 codes, their dequantized product."""
    q, k = inputs.q, inputs.k
    if inputs.q_codes is not None and inputs.keys.codes is not None:
        q, k = dequantize_queries(inputs.q_codes).to(q.dtype), dequantize_keys(inputs.keys.codes).to(q.dtype)
    sparse = sparse_attention_ref(q, k, inputs.v, inputs.blocks)
    return (sparse.to(torch.float32) + apply_linear_branch(inputs.q, inputs.keys.branch)).to(sparse.dtype)


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


def _kernel_runs(inputs: SlaInputs) -> bool:
    if inputs.q_codes is None:
        return SPARSE.accepts(inputs.q)
    SAGE.require(inputs.q, "choose attention 'sla', which runs anywhere")
    return True


def _blocked(x: Tensor, block: int) -> Tensor:
    """[B, L, H, D] → [B·H, ceil(L/block), block, D], zero-padded."""
    padded = F.pad(x.transpose(1, 2), (0, 0, 0, -x.shape[1] % block))
    return padded.reshape(padded.shape[0] * padded.shape[1], -1, block, padded.shape[-1])
