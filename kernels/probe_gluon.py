"""A small product that shows that the Gluon GEMM compiles, launches and computes with this Triton."""

import torch

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
