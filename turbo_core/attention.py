"""Which attention the self-attention layers use, and the dense attention shared by all of them."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels import sageattention, sla
from ..kernels.block_int8 import QuantizedActivations
from ..kernels.dispatch import BackendUnavailableError
from ..kernels.qk_norm import PooledHeads
from .config import WanConfig
from .errors import SettingsError

Mode = Literal["sla", "sagesla", "dense", "sageattention"]
MODES: tuple[Mode, ...] = get_args(Mode)
SPARSE_MODES: tuple[Mode, ...] = ("sla", "sagesla")

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class AttentionSettings:
    """How self-attention is computed.

    Attributes:
        mode: "sla"; "sagesla", SLA with int8 scores; "dense", softmax over all keys without the linear branch;
            "sageattention", the same by the optional package of that name.
        topk: share of key blocks that SLA keeps per query block, in (0, 1]; 0.1 as trained, 0.15 for quality.
    """

    mode: Mode = "sla"
    topk: float = 0.1


def resolve(
    mode: str, topk: float, config: WanConfig, device: torch.device, dtype: torch.dtype = torch.bfloat16
) -> AttentionSettings:
    """Turn a user's choice into settings that this file and machine can serve, computing in `dtype`.

    Raises:
        SettingsError: unknown mode, topk out of range, or an SLA mode for a file without `proj_l`.
        BackendUnavailableError: a mode whose kernel cannot run on `device`.
    """
    if mode == "auto":
        mode = "sla" if config.has_proj_l else "dense"
    if mode not in MODES:
        raise SettingsError(f"attention: must be auto, {', '.join(MODES)}, got {mode!r}; choose auto")
    if not 0.0 < topk <= 1.0:
        raise SettingsError(
            f"topk: must be above 0 and at most 1, got {topk}; 0.1 is what the models were trained with"
        )
    if mode in SPARSE_MODES and not config.has_proj_l:
        raise SettingsError(
            f"attention: {mode!r} needs a file trained with SLA (with proj_l weights), got {config.name} without them; "
            "choose dense or auto"
        )
    if mode == "sageattention":
        reason = sageattention.refusal(device, dtype)
        if reason is not None:
            raise BackendUnavailableError(
                f"attention: 'sageattention' needs its package to work, but {reason}; choose dense or auto, "
                "or install a sageattention build for this torch and GPU"
            )
    if mode == "sagesla":
        reason = sla.SAGE.refusal(torch.empty(0, config.head_dim, dtype=dtype, device=device))
        if reason is not None:
            raise BackendUnavailableError(
                f"attention: 'sagesla' needs its Triton kernel on this GPU, but {reason}; choose sla or auto"
            )
    return AttentionSettings(mode=mode, topk=topk)


def warn_of_cost(settings: AttentionSettings, config: WanConfig) -> None:
    """Say in the log, when a network is made, that it does without a part that it was trained with."""
    if settings.mode not in SPARSE_MODES and config.has_proj_l:
        log.warning(
            "attention: %r leaves out the linear branch that the file (%s) was trained with, and its videos suffer; "
            "'sla' with topk 1.0 computes all keys and keeps it",
            settings.mode,
            config.name,
        )


def dense_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention over all keys: q [B, L, H, D], k and v [B, S, H, D] → [B, L, H, D]."""
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return out.transpose(1, 2)


def sparse_linear_attention(
    q: PooledHeads, k: PooledHeads, v: Tensor, proj_weight: Tensor, proj_bias: Tensor, settings: AttentionSettings
) -> Tensor:
    """SLA, or SageSLA where q holds int8 codes: [B, L, H, D]; see `kernels.sla` for the mathematics.

    Args:
        proj_weight, proj_bias: `proj_l`, [D, D] and [D].
    """
    return sla.attend(sla.prepare(q, k, v, proj_weight, proj_bias, settings.topk))


def sparse_linear_attention_quantized(
    q: PooledHeads, k: PooledHeads, v: Tensor, proj_weight: Tensor, proj_bias: Tensor, settings: AttentionSettings
) -> QuantizedActivations:
    """`sparse_linear_attention` as int8 codes with a scale per row and head, for a projection that takes them."""
    return sla.attend_quantized(sla.prepare(q, k, v, proj_weight, proj_bias, settings.topk))
