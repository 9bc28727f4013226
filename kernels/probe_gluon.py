"""Small problems that show that the Gluon kernels compile, launch and compute with this Triton."""

import dataclasses

import torch

from . import channel_int8, sla, vae_conv, vae_upsample
from .block_int8 import BLOCK, QuantizedActivations, linear_ref, quantize_activations_ref, quantize_weight
from .block_int8_gluon import linear_gluon
from .channel_int8_gluon import launch_gluon
from .int8_heads import quantize_queries
from .key_pass import key_pass_ref
from .row_codes import quantize_rows_ref
from .sla_gluon import attend_gluon
from .sla_triton import BOUND_RANGE
from .text_attention import row_squares_ref, text_attention_ref
from .text_attention_gluon import text_attention_gluon


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


def run_channel_probe(device: torch.device) -> None:
    """Raise if the Gluon GEMM for scales per channel cannot be compiled and run on `device`, or computes wrongly."""
    generator = torch.Generator().manual_seed(0)
    a = quantize_rows_ref(torch.randn(BLOCK + 1, 6 * BLOCK, generator=generator).to(device), torch.int8)
    w = quantize_rows_ref(torch.randn(2 * BLOCK, 6 * BLOCK, generator=generator).to(device), torch.int8)
    x = torch.randn(BLOCK + 1, 2 * BLOCK, generator=generator).to(device, torch.bfloat16)
    y = torch.full_like(x, float("nan"))
    launch_gluon(a, w, None, False, x, None, y)
    expected = x + channel_int8.linear_ref(a, w, None, False, torch.float32)
    if not torch.allclose(y.float(), expected, rtol=2**-7, atol=2**-7):
        raise RuntimeError(f"the GEMM for scales per channel is off by up to {float((y - expected).abs().max())}")


def run_attention_probe(device: torch.device) -> None:
    """Raise if the Gluon attentions cannot be compiled and run on `device`, or compute wrongly."""
    generator = torch.Generator().manual_seed(0)
    length, heads = BLOCK + 1, 2
    q, k, v = torch.randn(3, 1, length, heads, BLOCK, generator=generator).to(device, torch.bfloat16)
    blocks = torch.tensor([0, 2], dtype=torch.int32, device=device).expand(1, heads, 2, 2)
    keys = key_pass_ref(k, v, k.float().mean(dim=1), torch.eye(BLOCK, device=device), v[0, 0, 0], int8=True)
    inputs = sla.SlaInputs(q, k, v, blocks, keys, quantize_queries(q))
    codes = torch.empty(length, heads * BLOCK, dtype=torch.int8, device=device)
    scale = torch.full((heads, length), float("nan"), device=device)
    attend_gluon(inputs, codes, scale, BOUND_RANGE[q.dtype])
    expected = sla.attend_ref(dataclasses.replace(inputs, q=q.float(), k=k.float(), v=v.float()))
    off = float((QuantizedActivations(codes, scale).dequantize(torch.float32) - expected.flatten(2)[0]).abs().max())
    if not off < 0.05:  # NaN fails too
        raise RuntimeError(f"the sparse attention is off by up to {off}")
    repeats = torch.ones(1, dtype=torch.int32, device=device)
    text_attention_gluon(q, k, v, 1e-6, repeats, row_squares_ref(q), codes, scale)
    expected = text_attention_ref(q.float(), k, v, 1e-6)
    off = float((QuantizedActivations(codes, scale).dequantize(torch.float32) - expected.flatten(2)[0]).abs().max())
    if not off < 0.05:
        raise RuntimeError(f"the cross-attention is off by up to {off}")


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
