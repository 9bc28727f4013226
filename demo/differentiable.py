"""TurboWan's forward with gradients: the same weights, formulas and order of tokens as `turbo_core.model`, plain torch.

`turbo_core.model.TurboWan` computes with kernels that have no backward pass; here the same module only holds the
parameters. `Prompts` keeps a padded prompt short. Of its 512 rows all padding rows are equal, so that n of them weigh
in a softmax as one whose score is raised by log n:

    softmax over [tokens, n equal rows] · values  =  softmax over [tokens, one row + log n] · values

Sparse attention gathers the kept key blocks by a product with rows of the identity: exact, and its backward is a
product too, where an index would need atomic additions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from turbowan.kernels.key_pass import LINEAR_EPS
from turbowan.kernels.norm import Rotation
from turbowan.kernels.routing import BLOCK_K, BLOCK_Q, kept_blocks, key_mean_ref, mean_pool, route_ref
from turbowan.turbo_core.config import WanConfig
from turbowan.turbo_core.model import TurboWan, sinusoid
from turbowan.turbo_core.rcm import round_timestep
from turbowan.turbo_core.rope import rotation

PROMPT_TOKENS = 512

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Prompts:
    """Text states [B, S, text_dim] of which the last row is padding and stands for all that the others leave of 512."""

    states: Tensor

    @property
    def copies(self) -> int:
        return PROMPT_TOKENS - self.states.shape[1] + 1

    def padded(self) -> Tensor:
        """[B, 512, text_dim], as the model itself takes them."""
        return F.pad(self.states, (0, 0, 0, PROMPT_TOKENS - self.states.shape[1]))


class Velocity:
    """Predicts a model's velocity with gradients to its parameters.

    Attributes:
        topk: share of key blocks that self-attention keeps, 1 for all of them; the linear branch is on in any case.
    """

    def __init__(self, model: TurboWan, *, dtype: torch.dtype, topk: float = 1.0, compiled: bool = False) -> None:
        self.model, self.config, self.dtype, self.topk = model, model.config, dtype, topk
        self._weights = dict(model.named_parameters())
        self._block: Callable[..., Tensor] = torch.compile(block, dynamic=False) if compiled else block
        self._rotations: dict[tuple[int, int, int], Rotation] = {}

    def __call__(self, x: Tensor, t: Tensor, prompts: Prompts) -> Tensor:
        """x [B, in_dim, T, H, W] at rectified-flow times t [B] → v [B, 16, T, H, W], fp32."""
        config, w = self.config, self._weights
        grid = tuple(n // p for n, p in zip(x.shape[2:], config.patch_size, strict=True))
        if grid not in self._rotations:
            self._rotations[grid] = rotation(grid, config.head_dim, x.device)
        embedded = sinusoid(round_timestep(1000 * t), config.freq_dim)
        time = _linear(w, "time_embedding.2", F.silu(_linear(w, "time_embedding.0", embedded)))
        modulation = _linear(w, "time_projection.1", F.silu(time)).unflatten(1, (6, config.dim))
        hidden = F.gelu(_linear(w, "text_embedding.0", prompts.states.to(self.dtype)), approximate="tanh")
        text = _linear(w, "text_embedding.2", hidden)
        patches = x.unflatten(4, (-1, 2)).unflatten(3, (-1, 2)).permute(0, 2, 3, 5, 1, 4, 6).flatten(4).flatten(1, 3)
        tokens = F.linear(patches.float(), w["patch_embedding.weight"].flatten(1), w["patch_embedding.bias"])
        tokens = tokens.to(self.dtype)
        for index in range(config.num_layers):
            start = f"blocks.{index}."
            own = {name.removeprefix(start): value for name, value in w.items() if name.startswith(start)}
            tokens = self._block(
                own, tokens, modulation, text, prompts.copies, self._rotations[grid], config, self.topk
            )
        shift, scale = (w["head.modulation"] + time[:, None]).unbind(1)
        out = _linear(w, "head.head", _modulated(tokens.float(), 1 + scale, shift, config.eps))
        out = out.unflatten(1, grid).unflatten(4, (2, 2, config.out_dim))  # [B, t, h, w, kh, kw, c]
        return out.permute(0, 6, 1, 2, 4, 3, 5).flatten(5).flatten(3, 4)


def block(
    w: Weights,
    x: Tensor,
    modulation: Tensor,
    text: Tensor,
    copies: int,
    table: Rotation,
    config: WanConfig,
    topk: float,
) -> Tensor:
    """One transformer block: tokens [B, L, C] → [B, L, C]."""
    shift1, scale1, gate1, shift2, scale2, gate2 = (w["modulation"] + modulation).unbind(1)
    normed = _modulated(x, 1 + scale1, shift1, config.eps)
    q, k, v = (_linear(w, f"self_attn.{name}", normed) for name in "qkv")
    q = rotate(F.rms_norm(q.float(), (config.dim,), w["self_attn.norm_q.weight"], config.eps), table).to(x.dtype)
    k = rotate(F.rms_norm(k.float(), (config.dim,), w["self_attn.norm_k.weight"], config.eps), table).to(x.dtype)
    q, k, v = (tensor.unflatten(2, (config.num_heads, -1)) for tensor in (q, k, v))
    linear = linear_attention(q, k, v) @ w["self_attn.proj_l.weight"].to(x.dtype).T
    attended = sparse_attention(q, k, v, topk) + linear + w["self_attn.proj_l.bias"].to(x.dtype)
    x = _gated(x, _linear(w, "self_attn.o", attended.flatten(2)), gate1)

    normed = F.layer_norm(x.float(), (config.dim,), w["norm3.weight"], w["norm3.bias"], config.eps).to(x.dtype)
    x = x + _linear(w, "cross_attn.o", _text_attention(w, normed, text, copies, config))

    normed = _modulated(x, 1 + scale2, shift2, config.eps)
    hidden = F.gelu(_linear(w, "ffn.0", normed), approximate="tanh")
    return _gated(x, _linear(w, "ffn.2", hidden), gate2)


def _text_attention(w: Weights, x: Tensor, text: Tensor, copies: int, config: WanConfig) -> Tensor:
    q, k, v = (_linear(w, f"cross_attn.{name}", read) for name, read in (("q", x), ("k", text), ("v", text)))
    q = F.rms_norm(q.float(), (config.dim,), w["cross_attn.norm_q.weight"], config.eps).to(x.dtype)
    k = F.rms_norm(k.float(), (config.dim,), w["cross_attn.norm_k.weight"], config.eps).to(x.dtype)
    q, k, v = (tensor.unflatten(2, (config.num_heads, -1)).transpose(1, 2) for tensor in (q, k, v))
    weight = torch.ones(k.shape[2], device=x.device)
    weight[-1:].fill_(copies)  # assigned, the number would be a tensor on the CPU, which no recording may copy
    score = (q @ k.transpose(2, 3)).float() * config.head_dim**-0.5 + weight.log()
    return (score.softmax(-1).to(x.dtype) @ v).transpose(1, 2).flatten(2)


def rotate(x: Tensor, table: Rotation) -> Tensor:
    """Queries or keys [B, L, C] turned by their positions, neighbouring dimensions as pairs; fp32."""
    even, odd = x.unflatten(2, (-1, table.cos.shape[1], 2)).unbind(-1)
    cos, sin = table.cos[:, None], table.sin[:, None]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(2)


def sparse_attention(q: Tensor, k: Tensor, v: Tensor, topk: float) -> Tensor:
    """Softmax attention over the key blocks that SLA's routing keeps: [B, L, H, D]."""
    length = q.shape[1]
    kept = kept_blocks(length, topk)
    key_blocks = -(-length // BLOCK_K)
    if kept == key_blocks:
        out = F.scaled_dot_product_attention(*(tensor.transpose(1, 2) for tensor in (q, k, v)))
        return out.transpose(1, 2)
    with torch.no_grad():
        means = mean_pool(k, BLOCK_K)
        chosen = route_ref(mean_pool(q, BLOCK_Q), means, key_mean_ref(means, length), kept).long()
        blocks = torch.arange(key_blocks, device=q.device)
        rows = (chosen.flatten(2)[..., None] == blocks).to(q.dtype)  # [B, H, query blocks · kept, key blocks]
        present = (chosen[..., None] * BLOCK_K + torch.arange(BLOCK_K, device=q.device)) < length
        absent = torch.zeros(present.shape, device=q.device).masked_fill_(~present, float("-inf")).flatten(3)
    queries = _blocked(q, BLOCK_Q)
    keys, values = ((rows @ _blocked(x, BLOCK_K).flatten(3)).unflatten(2, (-1, kept)) for x in (k, v))
    keys, values = (x.unflatten(4, (BLOCK_K, -1)).flatten(3, 4) for x in (keys, values))  # [B, H, Mq, kept · 64, D]
    score = (queries @ keys.transpose(3, 4)).float() * q.shape[-1] ** -0.5 + absent[:, :, :, None]
    out = score.softmax(-1).to(q.dtype) @ values
    return out.flatten(2, 3)[:, :, :length].transpose(1, 2)


def linear_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """SLA's linear branch before `proj_l`: φ(q) (φ(k)ᵀ v) / (1e-5 + φ(q) · Σ φ(k)), φ the softmax over D.

    The sums over keys are kept as means, which 16-bit types hold at any length.
    """
    length, dim = q.shape[1], q.shape[-1]
    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
    of_q, of_k = q.float().softmax(-1), k.float().softmax(-1) * dim
    products = of_k.to(q.dtype).transpose(2, 3) @ (v / length)  # [B, H, D, D]
    norm = of_q @ of_k.mean(2)[..., None] + LINEAR_EPS * dim / length
    return (of_q.to(q.dtype) @ products / norm).to(q.dtype).transpose(1, 2)


def _blocked(x: Tensor, size: int) -> Tensor:
    """[B, L, H, D] → [B, H, ceil(L / size), size, D], zero-padded."""
    padded = F.pad(x.transpose(1, 2), (0, 0, 0, -x.shape[1] % size))
    return padded.unflatten(2, (-1, size))


def _linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, w[f"{name}.weight"].to(x.dtype), w[f"{name}.bias"].to(x.dtype))


def _modulated(x: Tensor, multiplier: Tensor, offset: Tensor, eps: float) -> Tensor:
    normed = F.layer_norm(x.float(), x.shape[-1:], eps=eps)
    return (normed * multiplier[:, None] + offset[:, None]).to(x.dtype)


def _gated(x: Tensor, update: Tensor, gate: Tensor) -> Tensor:
    return (x.float() + update.float() * gate[:, None]).to(x.dtype)


def trainable(model: nn.Module) -> nn.Module:
    """The same model, every parameter in fp32 and asking for gradients."""
    return model.float().requires_grad_(True)
