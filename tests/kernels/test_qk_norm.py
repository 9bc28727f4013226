import pytest
import torch
from tolerances import CODE_SCALES, ROUND_TRIP, SAME_MATHS_FP32, codes_agree, relative_error

from turbowan.kernels import qk_norm, routing
from turbowan.turbo_core import rope

pytestmark = [pytest.mark.interpreter, pytest.mark.usefixtures("poisoned_memory")]

# batch, tokens, heads: whole and short tail blocks, a single token, a number of heads that is no power of 2.
SHAPES = [(1, 256, 1), (2, 129, 3), (1, 1, 2), (2, 65, 5)]


@pytest.fixture(params=SHAPES, ids=str)
def inputs(request, half, device, generator):
    """x [B, L, C] as a slice of wider rows, the norm's weight, RoPE tables, heads."""
    batch, length, heads = request.param
    width = heads * 128
    wide = torch.full((batch, length, 3 * width), torch.nan, device=device, dtype=half)
    wide[..., width : 2 * width] = (torch.randn(batch, length, width, generator=generator) * 2 + 0.5).to(device, half)
    weight = torch.randn(width, generator=generator).to(device)
    return wide[..., width : 2 * width], weight, rope.rotation((length, 1, 1), 128, device), heads


@pytest.mark.parametrize("block", [routing.BLOCK_Q, routing.BLOCK_K])
@pytest.mark.parametrize("int8", [False, True])
def test_qk_norm_kernel(inputs, block, int8):
    from turbowan.kernels.qk_norm_triton import qk_norm_triton

    x, weight, table, heads = inputs
    out = qk_norm_triton(x, weight, 1e-6, table, heads, block, int8)
    exact = qk_norm.qk_norm_ref(x.float(), weight, 1e-6, table, heads, block)
    assert relative_error(out.x, exact.x) < ROUND_TRIP[x.dtype]
    # Means and codes are those of the rounded tensor.
    ref = qk_norm.pooled(out.x, block, int8)
    assert relative_error(out.means, ref.means) < SAME_MATHS_FP32
    assert (out.codes is None) == (ref.codes is None) == (not int8)
    if int8:
        assert relative_error(out.codes.scale, ref.codes.scale) < CODE_SCALES
        assert codes_agree(out.codes.codes, ref.codes.codes)


def test_samples_of_a_batch_share_no_block(half, device, generator):
    from turbowan.kernels.qk_norm_triton import qk_norm_triton

    x = torch.randn(2, 70, 128, generator=generator).to(device, half)
    weight, table = torch.ones(128, device=device), rope.rotation((70, 1, 1), 128, device)
    both = qk_norm_triton(x, weight, 1e-6, table, 1, 64, True)
    for sample in range(2):
        alone = qk_norm_triton(x[sample : sample + 1], weight, 1e-6, table, 1, 64, True)
        assert torch.equal(both.means[sample], alone.means[0])
        assert torch.equal(both.codes.scale[sample], alone.codes.scale[0])


def test_tables_of_another_length_are_refused(half, device):
    from turbowan.kernels.qk_norm_triton import qk_norm_triton

    x, weight = torch.zeros(1, 5, 128, device=device, dtype=half), torch.ones(128, device=device)
    with pytest.raises(ValueError, match=r"RoPE tables \[5, 64\]"):
        qk_norm_triton(x, weight, 1e-6, rope.rotation((4, 1, 1), 128, device), 1, 64, False)
