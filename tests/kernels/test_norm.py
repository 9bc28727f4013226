import pytest
import torch
from tolerances import ROUND_TRIP, SAME_MATHS_FP32, codes_agree, relative_error

from turbowan.kernels import norm
from turbowan.kernels.block_int8 import quantize_activations_ref
from turbowan.turbo_core import rope

pytestmark = [pytest.mark.interpreter, pytest.mark.usefixtures("poisoned_memory")]

SHAPES = [(1, 1, 128), (2, 5, 384), (3, 33, 1536)]


@pytest.fixture(params=SHAPES, ids=str)
def x(request, half, device, generator):
    return (torch.randn(request.param, generator=generator) * 2 + 0.5).to(device, half)


def vector(x, generator, batch=None):
    return torch.randn(batch or x.shape[0], x.shape[2], generator=generator).to(x.device)


def test_layer_norm_reference_equals_the_formula(generator):
    x = torch.randn(2, 5, 384, generator=generator)
    multiplier, offset = vector(x, generator), vector(x, generator)
    x64 = x.double()
    normed = (x64 - x64.mean(-1, keepdim=True)) / (x64.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    expected = normed * multiplier.double()[:, None] + offset.double()[:, None]
    assert relative_error(norm.layer_norm_ref(x, multiplier, offset, 1e-6), expected) < SAME_MATHS_FP32


@pytest.mark.parametrize("shared", [False, True])
def test_layer_norm_kernel(x, shared, generator):
    from turbowan.kernels.norm_triton import layer_norm_triton

    batch = 1 if shared else x.shape[0]
    multiplier, offset = vector(x, generator, batch), vector(x, generator, batch)
    ref = norm.layer_norm_ref(x.float(), multiplier, offset, 1e-6)
    assert relative_error(layer_norm_triton(x, multiplier, offset, 1e-6), ref) < ROUND_TRIP[x.dtype]


def test_layer_norm_kernel_takes_a_shared_and_a_separate_vector(x, generator):
    from turbowan.kernels.norm_triton import layer_norm_triton

    one, each = vector(x, generator, 1), vector(x, generator)
    for multiplier, offset in ((one, each), (each, one)):
        ref = norm.layer_norm_ref(x.float(), multiplier, offset, 1e-6)
        assert relative_error(layer_norm_triton(x, multiplier, offset, 1e-6), ref) < ROUND_TRIP[x.dtype]


def test_layer_norm_kernel_writes_fp32_where_asked(x, generator):
    from turbowan.kernels.norm_triton import layer_norm_triton

    multiplier, offset = vector(x, generator), vector(x, generator)
    out = layer_norm_triton(x, multiplier, offset, 1e-6, torch.float32)
    ref = norm.layer_norm_ref(x, multiplier, offset, 1e-6, torch.float32)
    assert out.dtype == ref.dtype == torch.float32
    assert relative_error(out, ref) < ROUND_TRIP[torch.float32]


@pytest.mark.parametrize("width", [16, 640, 1792, 3584, 5120])
def test_layer_norm_kernel_at_any_width(half, device, generator, width):
    """Widths of several pieces, of a power of two of them and not, with a last piece that is not full."""
    from turbowan.kernels.norm_triton import layer_norm_quantized_triton, layer_norm_triton

    x = (torch.randn(2, 5, width, generator=generator) * 2 + 0.5).to(device, half)
    multiplier, offset = vector(x, generator), vector(x, generator)
    ref = norm.layer_norm_ref(x.float(), multiplier, offset, 1e-6)
    assert relative_error(layer_norm_triton(x, multiplier, offset, 1e-6), ref) < ROUND_TRIP[half]
    if width % 128 == 0:
        codes, ref = layer_norm_quantized_triton(x, multiplier, offset, 1e-6), quantize_activations_ref(ref)
        assert relative_error(codes.scale, ref.scale) < SAME_MATHS_FP32
        assert (codes.codes.int() - ref.codes.int()).abs().max() <= 1


def test_layer_norm_kernel_takes_vectors_as_they_lie(x, generator):
    """Rows of a [B, 6, C] modulation, and a 16-bit affine weight, without a copy."""
    from turbowan.kernels.norm_triton import layer_norm_triton

    modulation = torch.randn(x.shape[0], 6, x.shape[2], generator=generator).to(x.device)
    weight = vector(x, generator, 1).to(x.dtype)
    ref = norm.layer_norm_ref(x.float(), weight, modulation[:, 4], 1e-6)
    assert relative_error(layer_norm_triton(x, weight, modulation[:, 4], 1e-6), ref) < ROUND_TRIP[x.dtype]


def test_a_vector_of_the_wrong_width_is_refused(half, device):
    from turbowan.kernels.norm_triton import layer_norm_triton

    x, narrow = torch.zeros(2, 3, 128, device=device, dtype=half), torch.zeros(2, 64, device=device)
    with pytest.raises(ValueError, match=r"\[1 or 2, 128\]"):
        layer_norm_triton(x, narrow, narrow, 1e-6)


@pytest.mark.parametrize("shared", [False, True])
def test_layer_norm_kernel_with_quantized_output(x, shared, generator):
    from turbowan.kernels.norm_triton import layer_norm_quantized_triton

    batch = 1 if shared else x.shape[0]
    multiplier, offset = vector(x, generator, batch), vector(x, generator, batch)
    ref = quantize_activations_ref(norm.layer_norm_ref(x.float(), multiplier, offset, 1e-6))
    out = layer_norm_quantized_triton(x, multiplier, offset, 1e-6)
    assert relative_error(out.scale, ref.scale) < SAME_MATHS_FP32
    assert codes_agree(out.codes, ref.codes)


@pytest.mark.parametrize("rotated", [False, True])
def test_rms_norm_rope_kernel(x, rotated, generator):
    from turbowan.kernels.norm_triton import rms_norm_rope_triton

    weight = vector(x, generator, 1)[0]
    table = rope.rotation((x.shape[1], 1, 1), 128, x.device) if rotated else None
    ref = norm.rms_norm_rope_ref(x.float(), weight, 1e-6, table)
    assert relative_error(rms_norm_rope_triton(x, weight, 1e-6, table), ref) < ROUND_TRIP[x.dtype]


@pytest.mark.parametrize("shared", [False, True])
def test_gated_residual_kernel(x, shared, generator):
    from turbowan.kernels.norm_triton import gated_residual_triton

    y = torch.randn(x.shape, generator=generator).to(x)
    gate = vector(x, generator, 1 if shared else x.shape[0])
    ref = norm.gated_residual_ref(x.float(), y.float(), gate)
    assert relative_error(gated_residual_triton(x, y, gate), ref) < ROUND_TRIP[x.dtype]


def test_rotation_turns_pairs_by_the_token_angle(generator):
    x = torch.randn(1, 6, 256, generator=generator)
    table = rope.rotation((1, 2, 3), 128, x.device)
    ones = torch.ones(256)
    out = norm.rms_norm_rope_ref(x, ones, 0.0, table).reshape(1, 6, 2, 64, 2)
    plain = norm.rms_norm_rope_ref(x, ones, 0.0, None).reshape(1, 6, 2, 64, 2)
    angle = torch.atan2(table.sin.double(), table.cos.double())
    turned = torch.view_as_complex(plain.double()) * torch.polar(torch.ones_like(angle), angle)[None, :, None]
    assert relative_error(out, torch.view_as_real(turned)) < SAME_MATHS_FP32
