"""Released key names → native Wan names, and what every native name must hold.

    {"state_dict": {…}, …}          → the inner dict
    net.X, model.diffusion_model.X  → X
    _checkpoint_wrapped_module.     → (nothing)
    X.attn_op.local_attn.proj_l.Y   → X.proj_l.Y
    X.weight int8 + X.weight_scale  → X.int8_weight + X.scale      (saved by ComfyUI from a TurboWan MODEL)
    patch_embedding.weight [dim, in·1·2·2] → [dim, in, 1, 2, 2]    (columns are ordered c, kt, kh, kw)

Every other name is native already.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..kernels.block_int8 import BLOCK
from .config import WanConfig
from .errors import CheckpointError

# A dict of one of these names holds the weights of a training file.
CONTAINERS = ("state_dict", "model_state_dict", "model", "module", "net")
MAX_NESTING = 3

PREFIXES = ("", "net.", "model.diffusion_model.", "diffusion_model.", "model.", "module.")
RENAMED: tuple[tuple[str, str], ...] = (
    ("_checkpoint_wrapped_module.", ""),
    ("_fsdp_wrapped_module.", ""),
    ("_orig_mod.", ""),
    (".attn_op.local_attn.proj_l.", ".proj_l."),
)

# Known to be of no use to the network itself; dropped, and reported.
HARMLESS_STARTS = (
    "rope_embedder.",
    "rope_position_embedding.",
    "accum_",  # counters of the trainer
    "net_ema.",  # the other networks of a training file; upstream's own converter takes net.* as well
    "net_teacher.",
    "net_fake_score.",
    "model_sampling.",
    "vae.",  # the parts of a ComfyUI checkpoint beside the diffusion model
    "first_stage_model.",
    "text_encoders.",
    "cond_stage_model.",
    "clip_vision.",
)
HARMLESS_ENDS = ("._extra_state", ".freqs", ".num_updates")  # also as the whole name, without the dot

BLOCK_LINEARS = (
    *(f"{attention}.{name}" for attention in ("self_attn", "cross_attn") for name in "qkvo"),
    "ffn.0",
    "ffn.2",
)

Kind = Literal["float", "codes", "scale"]


@dataclass(frozen=True)
class Expected:
    shape: tuple[int, ...]
    kind: Kind = "float"


def unwrap(content: object, where: str) -> tuple[dict[str, Tensor], list[str]]:
    """The dict of tensors inside a file's content, and the names of what lay beside it."""
    dropped: list[str] = []
    for _ in range(MAX_NESTING):
        inner = _inner_container(content) if isinstance(content, Mapping) else None
        if inner is None:
            break
        dropped += [str(name) for name in content if name != inner]
        content = content[inner]
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"checkpoint: {where} must hold a dict of tensors, came {type(content).__name__}; "
            "choose a model's state dict (.pth or .safetensors)"
        )
    tensors = {str(name): value.detach() for name, value in content.items() if isinstance(value, Tensor)}
    dropped += [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if not tensors:
        raise CheckpointError(
            f"checkpoint: {where} must hold tensors, none came (entries: {', '.join(dropped[:8])}); "
            "choose the model file itself"
        )
    return tensors, dropped


def _inner_container(content: Mapping[object, object]) -> str | None:
    """The entry that holds the weights; ``None`` if this level is the model, or nothing leads on."""
    names = [name for name, value in content.items() if isinstance(value, Tensor)]
    if find_prefix({_plain_name(str(name)): None for name in names}) is not None:
        return None
    containers = [name for name in CONTAINERS if isinstance(content.get(name), Mapping)]
    full = next((name for name in containers if _holds_tensors(content[name], MAX_NESTING)), None)
    if full is None and not names:
        return next(iter(containers), None)
    return full


def _holds_tensors(content: object, levels: int) -> bool:
    if not isinstance(content, Mapping) or levels == 0:
        return False
    if any(isinstance(value, Tensor) for value in content.values()):
        return True
    return any(_holds_tensors(content.get(name), levels - 1) for name in CONTAINERS)


def plain_names(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The same tensors without the wrappers' parts in their names; a prefix stays."""
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        _add_once(plain, _plain_name(name), tensor, where)
    return plain


def _plain_name(name: str) -> str:
    for old, new in RENAMED:
        name = name.replace(old, new)
    return name


def find_prefix(names: Mapping[str, object]) -> str | None:
    """What stands before the native names, ``None`` if this is no Wan transformer at all."""
    for prefix in PREFIXES:
        if f"{prefix}head.modulation" in names or f"{prefix}patch_embedding.weight" in names:
            return prefix
    for prefix in PREFIXES:  # a part of a model may hold blocks alone
        start = f"{prefix}blocks."
        if any(name.startswith(start) and name.endswith(".modulation") for name in names):
            return prefix
    return None


def to_native(plain: Mapping[str, Tensor], prefix: str, where: str) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors without the prefix, int8 pairs of ComfyUI under our names; and the harmless keys left out."""
    native: dict[str, Tensor] = {}
    ignored: list[str] = []
    for name, tensor in plain.items():
        short = name.removeprefix(prefix)
        if is_harmless(short):
            ignored.append(name)
        else:
            _add_once(native, short, tensor, where)
    for name in [name for name in native if name.endswith(".weight_scale")]:
        layer = name.removesuffix(".weight_scale")
        codes = native.get(f"{layer}.weight")
        if codes is not None and codes.dtype == torch.int8:
            _add_once(native, f"{layer}.int8_weight", native.pop(f"{layer}.weight"), where)
            _add_once(native, f"{layer}.scale", native.pop(name), where)
    return native, ignored


def _add_once(tensors: dict[str, Tensor], name: str, tensor: Tensor, where: str) -> None:
    if name in tensors:
        raise CheckpointError(
            f"checkpoint: {where} must name each tensor once, {name} comes twice; save the model again"
        )
    tensors[name] = tensor


def is_harmless(name: str) -> bool:
    return name.startswith(HARMLESS_STARTS) or f".{name}".endswith(HARMLESS_ENDS)


def expected_tensors(config: WanConfig) -> dict[str, Expected]:
    """Every native name that a file of this configuration must hold, no more and no less."""
    c = config
    expected: dict[str, Expected] = {
        "patch_embedding.weight": Expected((c.dim, c.in_dim, *c.patch_size)),
        "patch_embedding.bias": Expected((c.dim,)),
        "head.modulation": Expected((1, 2, c.dim)),
    }
    for name, out_features, in_features in (
        ("text_embedding.0", c.dim, c.text_dim),
        ("text_embedding.2", c.dim, c.dim),
        ("time_embedding.0", c.dim, c.freq_dim),
        ("time_embedding.2", c.dim, c.dim),
        ("time_projection.1", 6 * c.dim, c.dim),
        ("head.head", c.patch_volume * c.out_dim, c.dim),
    ):
        expected |= _dense_linear(name, out_features, in_features)
    for index in range(c.num_layers):
        for name, entry in _block(c):
            expected[f"blocks.{index}.{name}"] = entry
    return expected


def _block(config: WanConfig) -> Iterator[tuple[str, Expected]]:
    dim, ffn_dim = config.dim, config.ffn_dim
    linear = _int8_linear if config.quantized else _dense_linear
    yield "modulation", Expected((1, 6, dim))
    yield "norm3.weight", Expected((dim,))
    yield "norm3.bias", Expected((dim,))
    for attention in ("self_attn", "cross_attn"):
        for norm in ("norm_q", "norm_k"):
            yield f"{attention}.{norm}.weight", Expected((dim,))
    for name in BLOCK_LINEARS:
        rows, columns = {"ffn.0": (ffn_dim, dim), "ffn.2": (dim, ffn_dim)}.get(name, (dim, dim))
        yield from linear(name, rows, columns).items()
    if config.has_proj_l:
        yield from _dense_linear("self_attn.proj_l", config.head_dim, config.head_dim).items()


def _dense_linear(name: str, rows: int, columns: int) -> dict[str, Expected]:
    return {f"{name}.weight": Expected((rows, columns)), f"{name}.bias": Expected((rows,))}


def _int8_linear(name: str, rows: int, columns: int) -> dict[str, Expected]:
    blocks = (-(-rows // BLOCK), -(-columns // BLOCK))
    return {
        f"{name}.int8_weight": Expected((rows, columns), "codes"),
        f"{name}.scale": Expected(blocks, "scale"),
        f"{name}.bias": Expected((rows,)),
    }


def is_block_linear_weight(name: str, tensor: Tensor) -> bool:
    """A dense weight that quantization replaces: the 2-D Linears inside the blocks, without ``proj_l``."""
    head, _, layer = name.partition(".")
    layer = layer.partition(".")[2].removesuffix(".weight")
    return head == "blocks" and name.endswith(".weight") and layer in BLOCK_LINEARS and tensor.ndim == 2
