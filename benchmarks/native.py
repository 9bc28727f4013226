"""ComfyUI's own Wan network and VAE from a checkout, as peers: built as the host builds them, without the host."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from turbowan.turbo_core.config import WanConfig


def use(checkout: Path) -> None:
    """Make `comfy` importable from `checkout`; it reads the command line when it is imported, so that is emptied."""
    if not (checkout / "comfy").is_dir():
        raise SystemExit(f"{checkout} must be a ComfyUI checkout, it has no folder comfy")
    if str(checkout) not in sys.path:
        sys.path.insert(0, str(checkout))
    sys.argv = sys.argv[:1]


def network(config: WanConfig, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> nn.Module:
    """The native WanModel over `tensors`; `proj_l`, which it does not know, is left out."""
    import comfy.ldm.wan.model
    import comfy.ops

    net = comfy.ldm.wan.model.WanModel(
        dim=config.dim,
        ffn_dim=config.ffn_dim,
        num_heads=config.num_heads,
        num_layers=config.num_layers,
        in_dim=config.in_dim,
        device="cuda",
        dtype=dtype,
        operations=comfy.ops.disable_weight_init,
    )
    missing, unexpected = net.load_state_dict({n: t for n, t in tensors.items() if "proj_l" not in n}, strict=False)
    if missing or unexpected:
        raise SystemExit(f"native WanModel: missing {missing[:5]}, unexpected {unexpected[:5]}")
    return net.to(dtype) if dtype == torch.float32 else net


def vae(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> nn.Module:
    """The native Wan 2.1 VAE over `tensors`, on the GPU in `dtype`."""
    import comfy.ldm.wan.vae

    with torch.device("cuda"):
        net = comfy.ldm.wan.vae.WanVAE(
            dim=tensors["decoder.head.0.gamma"].shape[0],
            z_dim=16,
            dim_mult=[1, 2, 4, 4],
            num_res_blocks=2,
            attn_scales=[],
            temperal_downsample=[False, True, True],
            image_channels=3,
            conv_out_channels=3,
            dropout=0.0,
        )
    net.load_state_dict(dict(tensors))
    return net.to("cuda", dtype).eval()
