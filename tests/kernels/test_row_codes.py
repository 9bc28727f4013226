import pytest
import torch
import torch.nn.functional as F
from tolerances import HARDWARE_TANH, ROUND_TRIP, SQNR_ROW_CODES_DB, TANH_CODES, codes_agree, relative_error, sqnr_db
from torch.utils._python_dispatch import TorchDispatchMode

from turbowan.kernels import block_int8, norm, row_codes
from turbowan.kernels.row_codes import RowCodes

pytestmark = [pytest.mark.interpreter, pytest.mark.usefixtures("poisoned_memory")]

DTYPES = [torch.int8, torch.float8_e4m3fn]
# Triton's interpreter rounds one e4m3 code in forty to the wrong neighbour.
KERNEL_DTYPES = [torch.int8, pytest.param(torch.float8_e4m3fn, marks=pytest.mark.gpu)]
SHAPES = [(1, 16), (7, 256), (3, 1040), (5, 2048)]


def agree(out: RowCodes, ref: RowCodes, scales: float = ROUND_TRIP[torch.float32], limit: float | None = None) -> None:
    """Scales up to rounding; codes the same but for near ties."""
    assert relative_error(out.scale, ref.scale) < scales
    assert codes_agree(out.codes, ref.codes, limit)


@pytest.mark.parametrize("dtype", KERNEL_DTYPES, ids=str)
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_kernel_equals_reference(shape, gelu, dtype, half, device, generator):
    from turbowan.kernels.row_codes_triton import quantize_rows_triton

    x = (torch.randn(2, *shape, generator=generator) * 3).to(device, half)
    out, ref = quantize_rows_triton(x, dtype, gelu), row_codes.quantize_rows_ref(x, dtype, gelu=gelu)
    if gelu and x.is_cuda:  # by the hardware's tanh, exact to 2^-11
        agree(out, ref, scales=HARDWARE_TANH, limit=TANH_CODES[dtype])
    else:
        agree(out, ref)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sign", [1, -1])
def test_rows_of_gelu_are_rows_of_their_gelu(sign, dtype, generator):
    """The bound that stands for amax holds for rows of any sign, and costs nothing where a row reaches above it."""
    x = sign * torch.randn(64, 256, generator=generator).abs() * 2
    quantized = row_codes.quantize_rows_ref(x, dtype, gelu=True)
    wanted = F.gelu(x, approximate="tanh")
    assert (wanted.abs().amax(1) <= quantized.scale * row_codes.LARGEST[dtype] * (1 + 1e-6)).all()
    if sign > 0:
        agree(quantized, row_codes.quantize_rows_ref(wanted, dtype))
    assert sqnr_db(quantized.dequantize(torch.float32), wanted) > SQNR_ROW_CODES_DB[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zeros_stay_zero(dtype):
    quantized = row_codes.quantize_rows_ref(torch.zeros(3, 128), dtype)
    assert torch.equal(quantized.dequantize(torch.float32), torch.zeros(3, 128))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_largest_values_keep_their_sign_and_size(dtype):
    x = torch.zeros(2, 128)
    x[0, 0], x[1, 1] = 3.0, -3.0
    restored = row_codes.quantize_rows_ref(x, dtype).dequantize(torch.float32)
    assert relative_error(restored, x) < 1 / 127


class LargestFp32(TorchDispatchMode):
    """Elements of the largest fp32 tensor that an operation gives."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.dtype == torch.float32:
            self.elements = max(self.elements, out.numel())
        return out


@pytest.mark.parametrize("quantize", [*DTYPES, "blocks"], ids=str)
def test_codes_are_dequantized_without_a_wide_copy_of_all(quantize, generator, monkeypatch):
    """A streamed layer under a LoRA is lent dense, where memory is short: 75,600 tokens of 14B are 1.5 GB in fp32."""
    for module in (block_int8, row_codes):
        monkeypatch.setattr(module, "ROWS_AT_ONCE", 4)
    x = torch.randn(10, 200, generator=generator)
    if quantize == "blocks":
        codes = block_int8.quantize_activations_ref(x)
        wanted = codes.codes * codes.scale.T.repeat_interleave(128, dim=1)[:, :200]
    else:
        codes = row_codes.quantize_rows_ref(x, quantize)
        wanted = codes.codes.float() * codes.scale[:, None]
    with LargestFp32() as largest:
        out = codes.dequantize(torch.bfloat16)
    assert torch.equal(out, wanted.to(torch.bfloat16))
    assert 0 < largest.elements <= 4 * 256


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_recipe_stays_above_its_sqnr_floor(dtype, generator):
    x = torch.randn(256, 1536, generator=generator)
    assert sqnr_db(row_codes.quantize_rows_ref(x, dtype).dequantize(torch.float32), x) > SQNR_ROW_CODES_DB[dtype]


def test_scale_of_the_wrong_shape_or_dtype_is_refused():
    with pytest.raises(ValueError, match=r"got torch.int8 \(4, 128\) with torch.float32 scale \(4, 1\)"):
        RowCodes(torch.zeros(4, 128, dtype=torch.int8), torch.zeros(4, 1))
    with pytest.raises(ValueError, match="got torch.uint8"):
        RowCodes(torch.zeros(4, 128, dtype=torch.uint8), torch.zeros(4))


@pytest.mark.parametrize("dtype", KERNEL_DTYPES, ids=str)
@pytest.mark.parametrize("width", [128, 384, 1536])
def test_norm_kernel_writes_the_codes_of_its_rows(width, dtype, half, device, generator):
    from turbowan.kernels.norm_triton import layer_norm_rows_triton

    x = torch.randn(2, 5, width, generator=generator).to(device, half)
    multiplier, offset = (torch.randn(2, width, generator=generator).to(device) for _ in range(2))
    ref = row_codes.quantize_rows_ref(norm.layer_norm_ref(x, multiplier, offset, 1e-6, torch.float32), dtype)
    agree(layer_norm_rows_triton(x, multiplier, offset, 1e-6, dtype), ref)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_stochastic_rounding_takes_the_neighbours_and_is_right_on_average(dtype, generator):
    largest = row_codes.LARGEST[dtype]
    x = torch.cat((torch.randn(60, generator=generator) * largest / 4, torch.tensor([0.0, largest, -largest, 0.0003])))
    x = x.clamp(-largest, largest)
    codes = row_codes.round_stochastically(x.expand(4096, -1), dtype, generator).float()
    step = torch.ones_like(x) if dtype == torch.int8 else torch.exp2(torch.floor(torch.log2(x.abs())).clamp(min=-6) - 3)
    inside = x < largest - step  # the largest int8 code is 127
    assert ((codes - x).abs() < step)[:, inside].all()
    deviation = (codes.mean(0) - x)[inside] / step[inside]
    assert deviation.abs().max() < 5 / (2 * 4096**0.5)  # five sigma of a mean of coin tosses
    exact = codes[0].to(dtype).float()
    assert torch.equal(row_codes.round_stochastically(exact, dtype, generator).float(), exact)
