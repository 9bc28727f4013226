import pytest
import tiny
import torch
from tolerances import (
    CODE_SCALES,
    HARDWARE_TANH,
    ROUND_TRIP,
    SAME_MATHS_FP32,
    SQNR_BLOCK_INT8_LINEAR_DB,
    SQNR_BLOCK_INT8_WEIGHT_DB,
    codes_agree,
    relative_error,
    sqnr_db,
)

from turbowan.kernels import block_int8
from turbowan.kernels.block_int8 import BlockInt8

pytestmark = [pytest.mark.interpreter, pytest.mark.usefixtures("poisoned_memory", "few_programs")]

SHAPES = [(1, 1, 128, 128), (1, 129, 256, 128), (2, 130, 128, 200), (3, 64, 384, 129)]
SHAPE_IDS = [f"B{b}-L{length}-K{k}-N{n}" for b, length, k, n in SHAPES]


def normal(*shape, generator):
    return torch.randn(*shape, generator=generator)


@pytest.mark.parametrize("shape", [(128, 128), (200, 300), (1, 7), (256, 129)])
def test_weight_codes_and_scales_equal_an_independent_quantization(shape, generator):
    w = normal(*shape, generator=generator)
    codes, scale = tiny.quantize_block(w)
    ours = block_int8.quantize_weight(w)
    assert torch.equal(ours.scale, scale)
    # x·(128/amax) and (x·128)/amax differ in the last bit, which may move a tie by one code.
    assert codes_agree(ours.codes, codes)
    assert sqnr_db(ours.dequantize(torch.float32), w) > SQNR_BLOCK_INT8_WEIGHT_DB


def test_weight_of_zeros_stays_zero():
    quantized = block_int8.quantize_weight(torch.zeros(130, 128))
    assert torch.equal(quantized.dequantize(torch.float32), torch.zeros(130, 128))


def test_largest_value_saturates_at_127_and_smallest_reaches_minus_128():
    w = torch.zeros(128, 128)
    w[0, 0], w[0, 1] = 2.0, -2.0
    codes = block_int8.quantize_weight(w).codes
    assert codes[0, 0] == 127
    assert codes[0, 1] == -128


def test_scale_of_the_wrong_shape_is_refused():
    with pytest.raises(ValueError, match=r"scale \(2, 1\)"):
        BlockInt8(torch.zeros(200, 128, dtype=torch.int8), torch.zeros(1, 1))
    with pytest.raises(ValueError, match="got torch.int8 .* with torch.float16 scale"):
        BlockInt8(torch.zeros(200, 128, dtype=torch.int8), torch.zeros(2, 1, dtype=torch.float16))


@pytest.mark.parametrize("rows", [1, 128])
@pytest.mark.parametrize("shape", SHAPES, ids=SHAPE_IDS)
def test_activation_kernel_equals_reference(shape, rows, half, device, generator):
    from turbowan.kernels.block_int8_triton import quantize_activations_triton

    batch, length, k, _ = shape
    x = (normal(batch, length, k, generator=generator) * 3).to(device, half)
    ref = block_int8.quantize_activations_ref(x, rows)
    out = quantize_activations_triton(x, rows)
    assert relative_error(out.scale, ref.scale) < CODE_SCALES
    assert codes_agree(out.codes, ref.codes)


def test_row_blocks_start_anew_for_each_sample(generator):
    x = normal(2, 130, 128, generator=generator)
    both = block_int8.quantize_activations_ref(x, 128)
    second = block_int8.quantize_activations_ref(x[1], 128)
    assert torch.equal(both.codes[130:], second.codes)
    assert torch.equal(both.scale[:, 130:], second.scale)


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("rows", [1, 128])
@pytest.mark.parametrize("shape", SHAPES, ids=SHAPE_IDS)
def test_gemm_kernel_equals_reference(shape, rows, gelu, half, device, generator):
    from turbowan.kernels.block_int8_triton import linear_triton

    batch, length, k, n = shape
    a = block_int8.quantize_activations_ref(normal(batch, length, k, generator=generator), rows)
    a = block_int8.QuantizedActivations(a.codes.to(device), a.scale.to(device))
    w = block_int8.quantize_weight(normal(n, k, generator=generator) / k**0.5).to(device)
    bias = normal(n, generator=generator).to(device, half)
    ref = block_int8.linear_ref(a, w, bias, gelu, torch.float32)
    assert relative_error(linear_triton(a, w, bias, gelu, half), ref) < ROUND_TRIP[half]


def test_gemm_without_bias(device, generator):
    from turbowan.kernels.block_int8_triton import linear_triton

    a = block_int8.quantize_activations_ref(normal(5, 128, generator=generator).to(device))
    w = block_int8.quantize_weight(normal(128, 128, generator=generator)).to(device)
    ref = block_int8.linear_ref(a, w, None, False, torch.float32)
    assert relative_error(linear_triton(a, w, None, False, torch.float32), ref) < ROUND_TRIP[torch.float32]


@pytest.mark.parametrize(("rows", "floor"), [(1, 36.0), (128, SQNR_BLOCK_INT8_LINEAR_DB)])
def test_recipe_stays_above_its_sqnr_floor(rows, floor, generator):
    x, w = normal(256, 512, generator=generator), normal(256, 512, generator=generator) / 512**0.5
    a = block_int8.quantize_activations_ref(x, rows)
    y = block_int8.linear_ref(a, block_int8.quantize_weight(w), None, False, torch.float32)
    assert sqnr_db(y, x @ w.T) > floor


def test_row_scales_survive_a_row_of_outliers_where_block_scales_do_not(generator):
    x = normal(128, 128, generator=generator)
    x[0] *= 1000
    for rows, keeps in ((1, True), (128, False)):
        a = block_int8.quantize_activations_ref(x, rows)
        restored = a.codes[1:].float() * a.scale[0, 1:, None]
        assert (sqnr_db(restored, x[1:]) > 30) == keeps


def problem(shape, half, device, generator):
    """Codes, weight and bias of a shape."""
    batch, length, k, n = shape
    a = block_int8.quantize_activations_ref(normal(batch, length, k, generator=generator).to(device))
    w = block_int8.quantize_weight(normal(n, k, generator=generator) / k**0.5).to(device)
    return a, w, normal(n, generator=generator).to(device, half)


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=SHAPE_IDS)
def test_gemm_with_quantized_output_equals_quantizing_the_reference(shape, gelu, half, device, generator):
    from turbowan.kernels.block_int8_triton import linear_quantized_triton

    a, w, bias = problem(shape, half, device, generator)
    exact = block_int8.linear_ref(a, w, bias, gelu, torch.float32)
    ref = block_int8.quantize_activations_ref(exact)
    out = linear_quantized_triton(a, w, bias, gelu)
    assert (out.codes.int() - ref.codes.int()).abs().max() <= 1
    # Hopper's GELU takes the hardware's tanh: its codes may round elsewhere, but are no farther from the exact result.
    assert relative_error(out.scale, ref.scale) < (HARDWARE_TANH if gelu else ROUND_TRIP[torch.float32])
    errors = [relative_error(x.dequantize(torch.float32), exact) for x in (out, ref)]
    assert errors[0] < 1.01 * errors[1]


@pytest.mark.parametrize("shape", SHAPES, ids=SHAPE_IDS)
def test_gemm_leaves_the_squares_of_what_it_wrote(shape, half, device, generator):
    from turbowan.kernels.block_int8_triton import linear_triton, linear_with_squares_triton

    a, w, bias = problem(shape, half, device, generator)
    y, squares = linear_with_squares_triton(a, w, bias, half)
    assert torch.equal(y, linear_triton(a, w, bias, False, half))
    assert relative_error(squares, block_int8.row_squares_ref(y)) < SAME_MATHS_FP32
    assert relative_error(squares.sum(dim=0), y.float().square().sum(dim=1)) < SAME_MATHS_FP32


@pytest.mark.parametrize("gate_rows", ["none", "shared", "per sample"])
@pytest.mark.parametrize("shape", SHAPES, ids=SHAPE_IDS)
def test_gated_residual_in_the_epilogue_equals_the_reference(shape, gate_rows, half, device, generator):
    from turbowan.kernels.block_int8_triton import linear_triton

    a, w, bias = problem(shape, half, device, generator)
    batch, length, _, n = shape
    x = normal(batch, length, n, generator=generator).to(device, half)
    gates = {
        "none": None,
        "shared": normal(1, n, generator=generator),
        "per sample": normal(batch, n, generator=generator),
    }
    gate = gates[gate_rows]
    residual = block_int8.GatedResidual(x, gate if gate is None else gate.to(device))
    ref = residual.add(block_int8.linear_ref(a, w, bias, False, torch.float32)).reshape(-1, n)
    assert relative_error(linear_triton(a, w, bias, False, half, residual), ref) < ROUND_TRIP[half]


def test_residual_of_another_shape_is_refused(device, generator):
    from turbowan.kernels.block_int8_triton import linear_triton

    a, w, bias = problem((1, 4, 128, 128), torch.float16, device, generator)
    residual = block_int8.GatedResidual(torch.zeros(1, 5, 128, dtype=torch.float16, device=device))
    with pytest.raises(ValueError, match=r"residual must be \[4, 128\], got \(1, 5, 128\)"):
        linear_triton(a, w, bias, False, torch.float16, residual)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [*SHAPES, (1, 191, 384, 256), (1, 193, 1536, 8960), (2, 500, 8960, 1536)])
def test_hopper_gemm_gives_the_bits_of_the_plain_one(shape, half, device, generator):
    from turbowan.kernels import block_int8_triton
    from turbowan.kernels.dispatch import gluon_refusal

    if gluon_refusal(device) is not None:
        pytest.skip(gluon_refusal(device))
    a, w, bias = problem(shape, half, device, generator)
    m, n = a.codes.shape[0], w.shape[0]
    if n % 16:
        pytest.skip("TMA writes whole 16-byte rows")
    results = []
    for launch in (block_int8_triton._launch_linear, block_int8_triton._launch_plain):
        y = torch.full((m, n), float("nan"), dtype=half, device=device)
        launch(a, w, bias, False, y, None, None)
        results.append(y)
    assert torch.equal(*results)


def test_quantized_activations_come_back(generator):
    x = normal(5, 200, generator=generator)
    assert sqnr_db(block_int8.quantize_activations_ref(x).dequantize(torch.float32), x) > 36
