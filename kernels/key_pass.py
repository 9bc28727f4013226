"""One pass over SLA's keys and values: the linear branch's sums, a ball that holds the keys, their int8 codes.

    φ      = softmax over the head dimension
    m      = mean_L D·φ(k)                          v̄_d = mean of v weighted by φ(k)_d
    values = v̄ · proj_lᵀ                            so that o_l proj_lᵀ = [φ(q)_d m_d / (ε + Σ φ(q) m)] · values
    ball   = (c, max_j |k_j − c|) with c = mean_L k

The weights of `values` are at most 1 and its rows are averages of v, so that 16-bit types hold both at any length.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .dispatch import Kernel
from .int8_heads import QuantizedHeads, quantize_keys

LINEAR_EPS = 1e-5

KEY_PASS = Kernel(name="pass over SLA's keys", last_dim_multiple=128)


@dataclass(frozen=True)
class LinearBranch:
    """The linear branch with `proj_l` folded in, ready for an epilogue.

    Attributes:
        values: [B, H, D, D], for each feature the mean of v weighted by φ(k), times proj_lᵀ; fp32, from the kernel
            in v's dtype.
        k_mean: fp32 [B, H, D], mean over keys of D·φ(k).
        bias: [D], proj_l's bias.
        eps: 1e-5 in the same units as `k_mean`.
    """

    values: Tensor
    k_mean: Tensor
    bias: Tensor
    eps: float


@dataclass(frozen=True)
class KeyBall:
    """A ball around every key of a head: with it q·k ≤ q·centre + |q|·radius.

    Attributes:
        centre: fp32 [B, H, D]; radius: fp32 [B, H].
    """

    centre: Tensor
    radius: Tensor


@dataclass(frozen=True)
class KeyPass:
    """What the attention reads of the keys besides the keys themselves; `codes` for sagesla."""

    branch: LinearBranch
    ball: KeyBall
    codes: QuantizedHeads | None = None


def key_pass_ref(k: Tensor, v: Tensor, k_mean: Tensor, weight: Tensor, bias: Tensor, int8: bool = False) -> KeyPass:
    """k, v [B, L, H, D]; k_mean fp32 [B, H, D], the mean of k; weight [D, D] and bias [D] are `proj_l`'s. In fp32."""
    dim, length = k.shape[-1], k.shape[1]
    features = k.to(torch.float32).softmax(dim=-1) * dim
    kv = torch.einsum("blhd,blhe->bhde", features, v.to(torch.float32)) / length
    feature_mean = features.mean(dim=1)
    means = kv / feature_mean.clamp(min=torch.finfo(torch.float32).tiny)[..., None]
    branch = LinearBranch(means @ weight.to(torch.float32).T, feature_mean, bias, LINEAR_EPS * dim / length)
    radius = (k.to(torch.float32) - k_mean[:, None]).norm(dim=-1).amax(dim=1)
    return KeyPass(branch, KeyBall(k_mean, radius), quantize_keys(k, k_mean) if int8 else None)


def key_pass(k: Tensor, v: Tensor, k_mean: Tensor, weight: Tensor, bias: Tensor, int8: bool = False) -> KeyPass:
    """`key_pass_ref`, by the kernels where they run."""
    if KEY_PASS.accepts(k):
        from .key_pass_triton import key_pass_triton

        return key_pass_triton(k, v, k_mean, weight, bias, int8)
    return key_pass_ref(k, v, k_mean, weight, bias, int8)


def apply_linear_branch(q: Tensor, branch: LinearBranch) -> Tensor:
    """φ(q) applied to the folded sums: fp32 [B, L, H, D], bias included."""
    weights = q.to(torch.float32).softmax(dim=-1) * branch.k_mean[:, None]
    weights = weights / (branch.eps + weights.sum(dim=-1, keepdim=True))
    return torch.einsum("blhd,bhde->blhe", weights, branch.values.to(torch.float32)) + branch.bias
