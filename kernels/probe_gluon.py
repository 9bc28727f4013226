"""Small problems that show that the Gluon kernels compile, launch and compute with this Triton."""

import torch

from . import vae_conv, vae_upsample
from .block_int8 import BLOCK, linear_ref, quantize_activations_ref, quantize_weight
from .block_int8_gluon import linear_gluon


def run_probe(device: torch.device) -> None:
    """Raise if the Gluon GEMM cannot be compiled and run on `device`, or computes wrongly."""
    generator = torch.Generator().manual_seed(0)
    a = quantize_activations_ref(torch.randn(BLOCK + 1, 2 * BLOCK, generator=generator).to(device))
    w = quantize_weight(torch.randn(BLOCK, 2 * BLOCK, generator=generator).to(device))
    bias = torch.zeros(BLOCK, dtype=torch.bfloat16, device=device)
    y = torch.full((BLOCK + 1, BLOCK), float("nan"), dtype=torch.bfloat16, device=device)
    linear_gluon(a, w, bias, gelu=False, y=y)
    expected = linear_ref(a, w, bias, False, torch.bfloat16)
    if not torch.allclose(y, expected, rtol=2**-7, atol=2**-7):
        raise RuntimeError(f"the GEMM is off by up to {float((y - expected).abs().max())}")


def run_vae_probe(device: torch.device) -> None:
    """Raise if the Gluon convolutions of the VAE cannot be compiled and run on `device`, or compute wrongly."""
    generator = torch.Generator().manual_seed(0)

    def half(*shape: int) -> torch.Tensor:
        values = torch.randn(shape, generator=generator) / (3 * 96**0.5 if len(shape) > 1 else 1)
        layout = torch.channels_last_3d if len(shape) == 5 else torch.contiguous_format
        return values.to(device, torch.bfloat16).contiguous(memory_format=layout)

    x, past, residual, bias = half(1, 96, 3, 9, 17), half(1, 96, 2, 9, 17), half(1, 96, 3, 9, 17), half(96)
    weight, small = half(96, 96, 3, 3, 3), half(96, 96, 3, 3)
    products = {
        "convolution": (
            vae_conv.causal_conv((x,), past, vae_conv.pack_weight(weight), bias, residual, 3),
            vae_conv.causal_conv_ref(*(part.float() for part in (x, past, weight, bias, residual))),
        ),
        "upsampling": (
            vae_upsample.upsample_conv(x, vae_upsample.pack_weight(small), bias, 1),
            vae_upsample.upsample_conv_ref(x.float(), small.float(), bias.float(), 1),
        ),
    }
    for name, (out, expected) in products.items():
        off = float((out - expected).abs().max())
        if not off < 0.05:  # NaN fails too
            raise RuntimeError(f"the VAE's {name} is off by up to {off}")
