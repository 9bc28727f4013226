"""Other sizes, lengths and batches must not compile a kernel again."""

from importlib import import_module

import pytest
import torch

from turbowan.kernels import block_int8, channel_int8, dispatch, norm, qk_norm, routing, row_codes, sla, text_attention

pytestmark = pytest.mark.gpu

KERNEL_FILES = (
    "block_int8",
    "channel_int8",
    "key_pass",
    "norm",
    "qk_norm",
    "routing",
    "row_codes",
    "sla",
    "text_attention",
)
HOPPER_FILES = ("block_int8_gluon", "channel_int8_gluon", "sla_gluon", "text_attention_gluon")
# Lengths divisible by 16 and not, tails of blocks, one token, several samples, which begin at any address.
SHAPES = [(1, 640), (1, 1), (1, 257), (2, 1000), (3, 129), (2, 1001), (1, 4096)]


def compiled(*modules) -> int:
    """How many variants of their kernels the modules have compiled."""
    kernels = [value for module in modules for value in vars(module).values() if hasattr(value, "device_caches")]
    assert kernels, "no kernels found: has Triton renamed device_caches?"
    return sum(len(caches[0]) for kernel in kernels for caches in kernel.device_caches.values())


def run_all(batch: int, length: int) -> None:
    device, half = torch.device("cuda"), torch.bfloat16
    x = torch.randn(batch, length, 256, device=device, dtype=half)
    w = block_int8.quantize_weight(torch.randn(384, 256, device=device))
    bias, gate = torch.zeros(384, device=device, dtype=half), torch.ones(batch, 384, device=device)
    for rows in (1, 128):
        block_int8.linear(block_int8.quantize_activations(x, rows), w, bias, gelu=True, like=x)
    gated = block_int8.GatedResidual(torch.zeros(batch, length, 384, device=device, dtype=half), gate)
    block_int8.linear(block_int8.quantize_activations(x), w, bias, gelu=False, like=x, residual=gated)
    block_int8.linear_quantized(block_int8.quantize_activations(x), w, bias, gelu=True, like=x)
    block_int8.linear_with_squares(block_int8.quantize_activations(x), w, bias, like=x)
    w_rows = row_codes.quantize_rows_ref(torch.randn(384, 256, device=device), torch.int8)
    y = channel_int8.linear(row_codes.quantize_rows(x, torch.int8), w_rows, bias, gelu=False, like=x)
    channel_int8.linear(row_codes.quantize_rows(x, torch.int8), w_rows, bias, gelu=False, like=x, residual=gated)
    row_codes.quantize_rows(y, torch.int8, gelu=True)
    vector = torch.randn(batch, 256, device=device)
    table = norm.Rotation(torch.ones(length, 64, device=device), torch.zeros(length, 64, device=device))
    norm.layer_norm(x, vector, vector, 1e-6)
    norm.layer_norm_rows(x, vector, vector, 1e-6, torch.int8)
    norm.rms_norm_rope(x, vector[0], 1e-6, table)
    norm.gated_residual(x, x, vector)
    repeats = torch.ones(batch, dtype=torch.int32, device=device)
    for keys in (128, 100):  # whole blocks of keys, which tensor descriptors read, and a tail
        text = torch.randn(batch, keys, 2, 128, device=device, dtype=half)
        text = text_attention.norm_keys(text, vector[0], vector[0], 1e-6)
        text_attention.text_attention_quantized(x.unflatten(2, (2, 128)), text, text, 1e-6, repeats=repeats)
    v, proj = x.unflatten(2, (2, 128)), (torch.eye(128, device=device), torch.zeros(128, device=device))
    for int8 in (False, True):
        q = qk_norm.qk_norm(x, vector[0], 1e-6, table, 2, routing.BLOCK_Q, int8)
        k = qk_norm.qk_norm(x, vector[0], 1e-6, table, 2, routing.BLOCK_K)
        prepared = sla.prepare(q, k, v, *proj, 0.3)
        sla.attend(prepared)
        sla.attend_quantized(prepared)


def test_other_shapes_do_not_recompile():
    modules = [import_module(f"turbowan.kernels.{name}_triton") for name in KERNEL_FILES]
    if dispatch.gluon_refusal(torch.device("cuda")) is None:
        modules += [import_module(f"turbowan.kernels.{name}") for name in HOPPER_FILES]
    counts = []
    for batch, length in SHAPES:
        run_all(batch, length)
        counts.append(compiled(*modules))
    assert counts[0] > 0
    assert len(set(counts)) == 1, dict(zip(SHAPES, counts, strict=True))
