import pytest
import torch
from tolerances import ROUND_TRIP, SQNR_CHANNEL_LINEAR_DB, relative_error, sqnr_db

from turbowan.kernels import channel_fp8, channel_int8, dispatch
from turbowan.kernels.block_int8 import GatedResidual
from turbowan.kernels.row_codes import RowCodes, quantize_rows_ref

pytestmark = [pytest.mark.interpreter, pytest.mark.usefixtures("poisoned_memory", "few_programs")]

SHAPES = [(1, 128, 128), (129, 256, 128), (260, 128, 200), (192, 384, 520)]
SHAPE_IDS = [f"M{m}-K{k}-N{n}" for m, k, n in SHAPES]


def operands(m, k, n, generator, device, dtype=torch.int8) -> tuple[RowCodes, RowCodes]:
    a = quantize_rows_ref(torch.randn(m, k, generator=generator), dtype).to(device)
    return a, quantize_rows_ref(torch.randn(n, k, generator=generator) / k**0.5, dtype).to(device)


@pytest.fixture(params=["plain", pytest.param("hopper", marks=pytest.mark.gpu)])
def linear(request, device, monkeypatch):
    """`linear_triton` with the kernel for every GPU or the one for Hopper."""
    kernels = pytest.importorskip("turbowan.kernels.channel_int8_triton")
    if request.param == "plain":
        monkeypatch.setattr(kernels, "hopper_gemm_takes", lambda *_: False)
    elif reason := dispatch.gluon_refusal(device, "run_channel_probe"):
        pytest.skip(reason)
    return kernels.linear_triton


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=SHAPE_IDS)
def test_gemm_kernel_equals_reference(shape, gelu, linear, half, device, generator):
    a, w = operands(*shape, generator, device)
    bias = torch.randn(shape[2], generator=generator).to(device, half)
    ref = channel_int8.linear_ref(a, w, bias, gelu, torch.float32)
    assert relative_error(linear(a, w, bias, gelu, half), ref) < ROUND_TRIP[half]


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("gates", [None, 1, 2], ids=["no gate", "one gate", "gates"])
@pytest.mark.parametrize("shape", [(2, 65, 256, 208), (2, 300, 128, 384), (2, 200, 768, 260)], ids=str)
def test_gated_residual_is_added_in_the_epilogue(shape, gates, gelu, linear, half, device, generator):
    batch, length, k, n = shape
    a, w = operands(batch * length, k, n, generator, device)
    bias = torch.randn(n, generator=generator).to(device, half)
    gate = None if gates is None else torch.randn(gates, n, generator=generator).to(device)
    residual = GatedResidual(torch.randn(batch, length, n, generator=generator).to(device, half), gate)
    ref = residual.add(channel_int8.linear_ref(a, w, bias, gelu, torch.float32)).reshape(-1, n)
    assert relative_error(linear(a, w, bias, gelu, half, residual), ref) < ROUND_TRIP[half]


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(191, 384, 256), (1000, 512, 640), (20000, 1536, 1024), (500, 8960, 1536)], ids=str)
def test_hopper_gemm_gives_the_bits_of_the_plain_one_without_bias(shape, half, device, generator):
    from turbowan.kernels import channel_int8_triton

    if reason := dispatch.gluon_refusal(device, "run_channel_probe"):
        pytest.skip(reason)
    from turbowan.kernels.channel_int8_gluon import launch_gluon

    a, w = operands(*shape, generator, device)
    results = []
    for launch in (channel_int8_triton.launch_plain, launch_gluon):
        y = torch.empty(shape[0], shape[2], dtype=half, device=device)
        launch(a, w, None, False, None, None, y)
        results.append(y)
    assert torch.equal(*results)


def test_gemm_without_bias(linear, half, device, generator):
    a, w = operands(5, 128, 128, generator, device)
    ref = channel_int8.linear_ref(a, w, None, False, torch.float32)
    assert relative_error(linear(a, w, None, False, half), ref) < ROUND_TRIP[half]


def test_sums_of_the_largest_codes_do_not_overflow(linear, half, device):
    """14B's widest sum: 13,824 products of -128 by -128 are 2^27.75."""
    codes = torch.full((128, 13824), -128, dtype=torch.int8, device=device)
    scale = torch.full((128,), 2.0**-14, device=device)
    y = linear(RowCodes(codes, scale), RowCodes(codes, scale), None, False, half)
    assert torch.equal(y, torch.full_like(y, 13824 * 2.0**-14))


def test_columns_must_match(device, generator):
    from turbowan.kernels.channel_int8_triton import linear_triton

    a, w = operands(4, 128, 128, generator, device)[0], operands(4, 256, 128, generator, device)[1]
    with pytest.raises(ValueError, match=r"weight must have 128 columns, got \(128, 256\)"):
        linear_triton(a, w, None, False, torch.float16)
    residual = GatedResidual(torch.zeros(1, 4, 64, device=device))
    with pytest.raises(ValueError, match=r"residual must be \[4, 128\], got \(1, 4, 64\)"):
        linear_triton(a, operands(4, 128, 128, generator, device)[1], None, False, torch.float16, residual)


@pytest.mark.parametrize(
    ("module", "dtype"), [(channel_int8, torch.int8), (channel_fp8, torch.float8_e4m3fn)], ids=["int8", "fp8"]
)
def test_recipe_stays_above_its_sqnr_floor(module, dtype, generator):
    x, w = torch.randn(256, 1536, generator=generator), torch.randn(256, 1536, generator=generator) / 1536**0.5
    y = module.linear_ref(quantize_rows_ref(x, dtype), quantize_rows_ref(w, dtype), None, False, torch.float32)
    assert sqnr_db(y, x @ w.T) > SQNR_CHANNEL_LINEAR_DB[dtype]


@pytest.mark.gpu
@pytest.mark.parametrize("gelu", [False, True])
def test_scaled_mm_equals_reference(gelu, half, device, generator):
    reason = channel_fp8.scaled_mm_refusal(device)
    if reason is not None:
        pytest.skip(reason)
    a, w = operands(130, 256, 208, generator, device, torch.float8_e4m3fn)
    bias = torch.randn(208, generator=generator).to(device, half)
    like = torch.randn(2, 65, 208, generator=generator).to(device, half)
    residual = GatedResidual(like, torch.randn(2, 208, generator=generator).to(device)) if gelu else None
    ref = channel_fp8.linear_ref(a, w, bias, gelu, torch.float32)
    ref = residual.add(ref).reshape(-1, 208) if residual else ref
    out = channel_fp8.linear(a, w, bias, gelu=gelu, like=like, residual=residual)
    # torch writes the product in bf16, whatever the dtype asked for.
    assert relative_error(out, ref) < 2 * ROUND_TRIP[torch.bfloat16]


def test_fp8_says_why_it_cannot_run_on_a_cpu():
    assert channel_fp8.scaled_mm_refusal(torch.device("cpu")) == "the device is cpu, not cuda"
