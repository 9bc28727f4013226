"""The distilled Wan diffusion transformer, with native Wan parameter names.

    x (latent) → patches → blocks [ adaLN → self-attention → gate → + ; norm → cross-attention → + ;
                                    adaLN → FFN → gate → + ] → adaLN head → velocity v (latent)

Time embedding, modulation, norms and head run in fp32; the tokens between them in the input's dtype.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping

import torch
from einops import rearrange
from torch import Tensor, nn

from ..kernels.block_int8 import GatedResidual
from ..kernels.compile_ahead import Progress, compile_ahead
from ..kernels.dispatch import triton_refusal
from ..kernels.norm import layer_norm
from ..kernels.qk_norm import qk_norm
from ..kernels.routing import BLOCK_K, BLOCK_Q
from ..kernels.sageattention import sage_dense_attention
from ..kernels.sla import SPARSE
from ..kernels.text_attention import TEXT_ATTENTION, norm_keys, text_attention, text_attention_quantized
from .attention import (
    SPARSE_MODES,
    AttentionSettings,
    sparse_linear_attention,
    sparse_linear_attention_quantized,
)
from .config import WanConfig
from .errors import CheckpointError, ConditioningError, LatentError, SettingsError
from .hooks import PLAIN_HOOKS, BlockInputs, Hooks
from .layers import BLOCK_CODES, Activation, Lending, Linear, TorchOperations, linear_together
from .norms import affine_layer_norm, modulated_layer_norm, rms_norm
from .precision import widest_float
from .rope import PLAIN, RopeOptions, rotation
from .text import EmbeddedText

MISSING_SHOWN = 8


class TurboWan(nn.Module):
    """Wan 2.1/2.2 DiT: T2V (16 latent channels) or A14B I2V (36: noise 16, mask 4, image latent 16).

    Attributes:
        attention: how self-attention is computed; may be replaced between forwards.
    """

    def __init__(
        self,
        config: WanConfig,
        *,
        operations: type[TorchOperations] = TorchOperations,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        dim = config.dim
        self.config = config
        self.attention = AttentionSettings(mode="sla" if config.has_proj_l else "dense")
        self.patch_embedding = operations.PatchEmbedding(config.in_dim, dim, config.patch_size, **factory)
        # Activations between the numbered layers have no parameters; Identity keeps native Wan's numbering.
        self.text_embedding = nn.ModuleList(
            [operations.Linear(config.text_dim, dim, **factory), nn.Identity(), operations.Linear(dim, dim, **factory)]
        )
        self.time_embedding = nn.ModuleList(
            [operations.Linear(config.freq_dim, dim, **factory), nn.Identity(), operations.Linear(dim, dim, **factory)]
        )
        self.time_projection = nn.ModuleList([nn.Identity(), operations.Linear(dim, 6 * dim, **factory)])
        self.blocks = nn.ModuleList([Block(config, operations, factory) for _ in range(config.num_layers)])
        self.head = Head(config, operations, factory)

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        context: Tensor,
        *,
        hooks: Hooks = PLAIN_HOOKS,
        rope: RopeOptions = PLAIN,
    ) -> Tensor:
        """Predict the velocity.

        Args:
            x: latent [B, in_dim, T, H, W], H and W even, in the dtype to compute in.
            timestep: [B], as the network takes it (0…1000).
            context: text encoder states [B, S, text_dim].

        Returns:
            [B, 16, T, H, W] in fp32.

        Raises:
            LatentError, ConditioningError: for shapes that do not fit this model.
        """
        self._check(x, timestep, context)
        frames, rows, columns = (n // p for n, p in zip(x.shape[2:], self.config.patch_size, strict=True))
        time, modulation = self._embed_time(timestep)
        tokens = self._patchify(x)
        states = self.text_embedding[2](self.text_embedding[0](context.to(x.dtype), gelu=True))
        text = EmbeddedText(states, context)
        table = rotation((frames, rows, columns), self.config.head_dim, x.device, rope)
        hooks.start((frames, rows, columns), len(self.blocks))
        for index, block in enumerate(self.blocks):

            def run(inputs: BlockInputs, block: Block = block) -> Tensor:
                return block(inputs, self.attention, hooks)

            tokens = hooks.block(index, run, BlockInputs(tokens, text, modulation, table))
            tokens = hooks.after_block(index, tokens, x, time)
        patches = self.head(tokens, time)
        kt, kh, kw = self.config.patch_size
        return rearrange(
            patches,
            "b (t h w) (kt kh kw c) -> b c (t kt) (h kh) (w kw)",
            t=frames,
            h=rows,
            w=columns,
            kt=kt,
            kh=kh,
            kw=kw,
        )

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take a checkpoint's tensors as they are (no copy, native names).

        Raises:
            CheckpointError: if keys are missing or left over.
        """
        missing, unexpected = self.load_state_dict(dict(tensors), strict=False, assign=True)
        for kind, keys in (("missing", missing), ("unexpected", unexpected)):
            if keys:
                shown = ", ".join(sorted(keys)[:MISSING_SHOWN])
                raise CheckpointError(
                    f"{self.config.name}: the file must hold exactly this model's tensors, {len(keys)} {kind} ({shown}"
                    f"{', …' if len(keys) > MISSING_SHOWN else ''}); download the file again"
                )
        self.requires_grad_(False)

    def compile_ahead(
        self,
        x: Tensor,
        timestep: Tensor,
        context: Tensor,
        *,
        progress: Progress | None = None,
        interrupted: Callable[[], None] | None = None,
    ) -> int:
        """Compile the kernels of a forward on these inputs, all blocks being alike; see `kernels.compile_ahead`."""
        if triton_refusal(x.device) is not None:
            return 0
        short = copy.copy(self)
        short._modules = {**self._modules, "blocks": self.blocks[:1]}
        probes = ["run_probe", "run_attention_probe"]
        if any(isinstance(module, Linear) and module.codes_format == torch.int8 for module in short.modules()):
            probes.append("run_channel_probe")
        for module in short.modules():
            if isinstance(module, Lending):
                with module.lend(x):  # a host may keep what a loan computed, so that must not happen on the walk
                    pass
        return compile_ahead(
            lambda: TurboWan.forward(short, x, timestep, context),
            x.device,
            gluon_probes=probes,
            progress=progress,
            interrupted=interrupted,
        )

    def set_activation_rows(self, rows: int) -> None:
        """How many rows share an activation scale in block-int8 layers: 1, or 128 for the published arithmetic."""
        for module in self.modules():
            if isinstance(module, Linear):
                module.activation_rows = rows

    def _check(self, x: Tensor, timestep: Tensor, context: Tensor) -> None:
        config = self.config
        if x.ndim != 5 or x.shape[1] != config.in_dim or x.numel() == 0:
            raise LatentError(
                f"{config.name}: the latent must be [batch, {config.in_dim}, frames, height, width], "
                f"got {tuple(x.shape)}; {_latent_remedy(config)}"
            )
        if any(n % p for n, p in zip(x.shape[2:], config.patch_size, strict=True)):
            raise LatentError(
                f"{config.name}: latent height and width must be even, got {tuple(x.shape[2:])}; "
                "use a video width and height divisible by 16"
            )
        fits = context.ndim == 3 and context.shape[0] == x.shape[0] and context.shape[-1] == config.text_dim
        if not fits or context.numel() == 0:
            raise ConditioningError(
                f"{config.name}: text conditioning must be [{x.shape[0]}, tokens, {config.text_dim}], "
                f"got {tuple(context.shape)}; encode the prompt with umT5-XXL (CLIPLoader, type 'wan')"
            )
        if timestep.shape != x.shape[:1]:
            raise LatentError(
                f"{config.name}: one timestep per sample is needed ({x.shape[0]}), got shape {tuple(timestep.shape)}; "
                "this model has no per-frame timesteps"
            )

    def _embed_time(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """fp32 [B, C] for the head and [B, 6, C] for the blocks."""
        embedded = sinusoid(timestep, self.config.freq_dim)
        time = self.time_embedding[2](nn.functional.silu(self.time_embedding[0](embedded)))
        modulation = self.time_projection[1](nn.functional.silu(time))
        return time, modulation.unflatten(1, (6, self.config.dim))

    def _patchify(self, x: Tensor) -> Tensor:
        kt, kh, kw = self.config.patch_size
        patches = rearrange(x, "b c (t kt) (h kh) (w kw) -> b (t h w) (c kt kh kw)", kt=kt, kh=kh, kw=kw)
        return self.patch_embedding(patches.to(torch.float32)).to(x.dtype)


class Block(nn.Module):
    """One transformer block."""

    def __init__(self, config: WanConfig, operations: type[TorchOperations], factory: dict) -> None:
        super().__init__()
        self.eps = config.eps
        self.modulation = nn.Parameter(torch.empty(1, 6, config.dim, **factory), requires_grad=False)
        self.self_attn = SelfAttention(config, operations, factory)
        self.norm3 = operations.LayerNorm(config.dim, config.eps, **factory)
        self.cross_attn = CrossAttention(config, operations, factory)
        self.ffn = nn.ModuleList(
            [
                operations.Linear(config.dim, config.ffn_dim, **factory),
                nn.Identity(),
                operations.Linear(config.ffn_dim, config.dim, **factory),
            ]
        )

    def forward(self, inputs: BlockInputs, attention: AttentionSettings, hooks: Hooks) -> Tensor:
        x = inputs.x
        modulation = self.modulation.to(x.device) + inputs.modulation
        shift1, _, gate1, shift2, _, gate2 = modulation.unbind(1)
        multiplier1, multiplier2 = (1 + modulation[:, 1::3]).unbind(1)
        hooks.interrupted()
        attn = self.self_attn
        normed = modulated_layer_norm(x, multiplier1, shift1, self.eps, (attn.q, attn.k, attn.v))
        x = attn(normed, inputs, attention, hooks, GatedResidual(x, gate1))
        hooks.interrupted()
        normed = affine_layer_norm(self.norm3, x, (self.cross_attn.q,))
        x = self.cross_attn(normed, inputs.text, hooks, GatedResidual(x))
        x = hooks.cross_attention(x)
        hooks.interrupted()
        up, _, down = self.ffn
        hidden = up.feed(down, modulated_layer_norm(x, multiplier2, shift2, self.eps, (up,)), gelu=True)
        return down(hidden, residual=GatedResidual(x, gate2))


class _Attention(nn.Module):
    """Projections and query/key norms shared by self- and cross-attention."""

    def __init__(self, config: WanConfig, operations: type[TorchOperations], factory: dict) -> None:
        super().__init__()
        dim = config.dim
        self.heads = config.num_heads
        self.q = operations.Linear(dim, dim, **factory)
        self.k = operations.Linear(dim, dim, **factory)
        self.v = operations.Linear(dim, dim, **factory)
        self.o = operations.Linear(dim, dim, **factory)
        self.norm_q = operations.RMSNorm(dim, config.eps, **factory)
        self.norm_k = operations.RMSNorm(dim, config.eps, **factory)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1))


class SelfAttention(_Attention):
    """Attention among the video's tokens: dense, or SLA where the file has `proj_l`."""

    def __init__(self, config: WanConfig, operations: type[TorchOperations], factory: dict) -> None:
        super().__init__(config, operations, factory)
        if config.has_proj_l:
            self.proj_l = operations.Linear(config.head_dim, config.head_dim, **factory)

    def forward(
        self,
        x: Activation,
        inputs: BlockInputs,
        attention: AttentionSettings,
        hooks: Hooks,
        residual: GatedResidual,
    ) -> Tensor:
        """The tokens after attention: `residual.x` plus this layer's gated output."""
        attend = self._sparse if attention.mode in SPARSE_MODES else self._dense
        return self.o(attend(x, inputs, attention, hooks), residual=residual)

    def _dense(self, x: Activation, inputs: BlockInputs, attention: AttentionSettings, hooks: Hooks) -> Activation:
        q = self._split(rms_norm(self.norm_q, self.q(x), inputs.rotation))
        k = self._split(rms_norm(self.norm_k, self.k(x), inputs.rotation))
        v = self._split(self.v(x))
        hooks.interrupted()
        kernel = sage_dense_attention if attention.mode == "sageattention" else hooks.dense_attention
        return _patched(kernel(q, k, v), q, k, hooks)

    def _sparse(self, x: Activation, inputs: BlockInputs, attention: AttentionSettings, hooks: Hooks) -> Activation:
        if self.proj_l.replaced:
            raise SettingsError(
                "attention: proj_l must keep its own forward, because SLA merges its weight with the values, got one "
                "in front of it (a LoRA in bypass mode); load that LoRA with LoraLoaderModelOnly"
            )
        int8 = attention.mode == "sagesla"
        q, k, v = linear_together((self.q, self.k, self.v), x)
        with self.norm_q.lend(q) as lent:
            q = qk_norm(q, lent.weight, self.norm_q.eps, inputs.rotation, self.heads, BLOCK_Q, int8)
        with self.norm_k.lend(k) as lent:
            k = qk_norm(k, lent.weight, self.norm_k.eps, inputs.rotation, self.heads, BLOCK_K)
        v = self._split(v)
        hooks.interrupted()
        with self.proj_l.lend(v) as proj:
            if self.o.takes == BLOCK_CODES and hooks.self_attention_patch() is None and SPARSE.accepts(v):
                codes = sparse_linear_attention_quantized(q, k, v, proj.weight, proj.bias, attention)
                return Activation.of_codes(codes, x.like)
            out = sparse_linear_attention(q, k, v, proj.weight, proj.bias, attention)
        return _patched(out, q.x, k.x, hooks)


class CrossAttention(_Attention):
    """Attention from the video's tokens to the text's."""

    def forward(self, x: Activation, text: EmbeddedText, hooks: Hooks, residual: GatedResidual) -> Tensor:
        """The tokens after attention to the text: `residual.x` plus this layer's output."""
        (q, squares), k, v = self.q.forward_with_squares(x), self.k(text), self.v(text)
        if TEXT_ATTENTION.accepts(q) and not hooks.replaces_dense_attention():
            return self.o(self._fused(q, squares, k, v, text), residual=residual)
        q, k = self._split(rms_norm(self.norm_q, q)), self._split(rms_norm(self.norm_k, k))
        return self.o(hooks.dense_attention(q, k, self._split(v)).flatten(2), residual=residual)

    def _fused(self, q: Tensor, squares: Tensor | None, k: Tensor, v: Tensor, text: EmbeddedText) -> Activation:
        """Query norm, attention and the quantization for the output projection in one pass over q."""
        like, eps = q, self.norm_q.eps
        q, k, v = self._split(q), self._split(k), self._split(v)
        with self.norm_q.lend(q) as lent:
            q_weight = lent.weight.clone()  # one loan at a time: a host may lend every second one the same memory
        with self.norm_k.lend(k) as lent:
            k = norm_keys(k, q_weight, lent.weight, self.norm_k.eps)
        if self.o.takes == BLOCK_CODES:
            codes = text_attention_quantized(q, k, v, eps, repeats=text.repeats, squares=squares)
            return Activation.of_codes(codes, like)
        return Activation(text_attention(q, k, v, eps, repeats=text.repeats, squares=squares).flatten(2))


class Head(nn.Module):
    """Modulated projection from tokens to patches, in fp32."""

    def __init__(self, config: WanConfig, operations: type[TorchOperations], factory: dict) -> None:
        super().__init__()
        self.eps = config.eps
        self.modulation = nn.Parameter(torch.empty(1, 2, config.dim, **factory), requires_grad=False)
        self.head = operations.Linear(config.dim, config.out_dim * config.patch_volume, **factory)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x [B, L, C], time fp32 [B, C] → fp32 [B, L, patch volume · channels]."""
        shift, scale = (self.modulation.to(x.device, torch.float32) + time[:, None]).unbind(1)
        return self.head(layer_norm(x, 1 + scale, shift, self.eps, torch.float32))


def sinusoid(position: Tensor, dim: int) -> Tensor:
    """fp32 [B, dim]: cosines, then sines, of position · 10000^(−i / (dim/2)), computed in fp64 where there is one."""
    half = dim // 2
    exact = widest_float(position.device)
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=exact, device=position.device) / half)
    angles = torch.outer(position.to(exact), frequencies)
    return torch.cat((angles.cos(), angles.sin()), dim=1).to(torch.float32)


def _patched(out: Tensor, q: Tensor, k: Tensor, hooks: Hooks) -> Activation:
    """Self-attention's output [B, L, H, D], changed where a hook wants it, for the projection that follows."""
    patch = hooks.self_attention_patch()
    return Activation(out.flatten(2) if patch is None else patch(out.flatten(2), q, k))


def _latent_remedy(config: WanConfig) -> str:
    if config.family == "i2v":
        return "an image-to-video model needs an image: connect TurboImageToVideo or WanImageToVideo"
    return "connect an empty Wan latent (EmptyHunyuanLatentVideo)"
