import pytest
import torch
from tolerances import HALF_PRODUCTS, ROUND_TRIP, SAME_MATHS_FP32, relative_error

from turbowan.kernels import text_attention as text
from turbowan.kernels.block_int8 import quantize_activations_ref

pytestmark = [pytest.mark.interpreter, pytest.mark.usefixtures("poisoned_memory")]

EPS = 1e-6
# (batch, queries, keys, how many of the last keys are one and the same): tails of blocks, single tokens, all the same.
SHAPES = [(1, 1, 1, 1), (2, 130, 64, 1), (2, 150, 64, 64), (1, 128, 100, 30), (2, 33, 193, 64), (1, 40, 130, 129)]


def made(shape, dtype, device, generator, heads=2):
    """q, k, v, repeats; each sample's padding starts one key later than the one's before it."""
    batch, length, keys, repeated = shape
    q, k, v = (torch.randn(batch, n, heads, 128, generator=generator) for n in (length, keys, keys))
    q *= torch.rand(batch, length, 1, 1, generator=generator) * 3 + 0.1
    repeats = torch.tensor([max(1, repeated - sample) for sample in range(batch)], dtype=torch.int32)
    for sample, count in enumerate(repeats.tolist()):
        k[sample, keys - count :], v[sample, keys - count :] = k[sample, -1], v[sample, -1]
    return (*(x.to(device, dtype) for x in (q, k, v)), repeats.to(device))


@pytest.fixture(params=SHAPES, ids=str)
def given(request, half, device, generator):
    return made(request.param, half, device, generator)


def test_reference_equals_the_formula(generator):
    q, k, v, _ = made((2, 5, 9, 1), torch.float64, "cpu", generator)
    q_weight, k_weight = torch.rand(2, 256, generator=generator) + 0.5
    normed_q, normed_k = (x / (x.square().mean(dim=(2, 3), keepdim=True) + EPS).sqrt() for x in (q, k))
    normed_q, normed_k = normed_q * q_weight.reshape(2, 128), normed_k * k_weight.reshape(2, 128)
    score = torch.einsum("blhd,bshd->bhls", normed_q, normed_k) / 128**0.5
    expected = torch.einsum("bhls,bshd->blhd", score.softmax(-1), v)
    keys = text.norm_keys_ref(k.float(), q_weight, k_weight, EPS)
    out = text.text_attention_ref(q.float(), keys, v.float(), EPS)
    assert relative_error(out, expected) < SAME_MATHS_FP32


def test_trailing_repeats_counts_the_last_tokens_that_are_the_same(generator):
    tokens = torch.randn(4, 6, 8, generator=generator)
    tokens[1, 2:] = tokens[1, 5]
    tokens[2] = 0.0
    tokens[3, 0] = tokens[3, 5]  # equal, but not in the same run
    assert text.trailing_repeats(tokens).tolist() == [1, 4, 6, 1]
    tokens[0, 5, 0] = float("nan")
    assert text.trailing_repeats(tokens)[0] == 1


@pytest.mark.usefixtures("attention_kernel")
def test_kernel(given):
    from turbowan.kernels.text_attention_triton import row_squares_triton, text_attention_triton

    q, k, v, repeats = given
    out = text_attention_triton(q, k, v, EPS, repeats, row_squares_triton(q))
    ref = text.text_attention_ref(q.float(), k.float(), v.float(), EPS)
    assert out.dtype == q.dtype
    assert relative_error(out, ref) < HALF_PRODUCTS[q.dtype]


@pytest.mark.usefixtures("attention_kernel")
def test_kernel_with_quantized_output(given):
    from turbowan.kernels.text_attention_triton import row_squares_triton, text_attention_quantized_triton

    q, k, v, repeats = given
    out = text_attention_quantized_triton(q, k, v, EPS, repeats, row_squares_triton(q))
    ref = quantize_activations_ref(text.text_attention_ref(q.float(), k.float(), v.float(), EPS).flatten(2))
    assert out.codes.shape == ref.codes.shape
    assert relative_error(out.scale, ref.scale) < HALF_PRODUCTS[q.dtype]
    assert (out.codes.int() - ref.codes.int()).abs().max() <= 1


@pytest.mark.usefixtures("attention_kernel")
def test_without_repeats_every_key_is_walked_through(half, device, generator):
    """The count is a promise about the keys, not a mask: 1 is always allowed."""
    from turbowan.kernels.text_attention_triton import row_squares_triton, text_attention_triton

    q, k, v, repeats = made((2, 20, 100, 60), half, device, generator)
    squares = row_squares_triton(q)
    few, all_keys = (text_attention_triton(q, k, v, EPS, r, squares) for r in (repeats, torch.ones_like(repeats)))
    assert relative_error(few, all_keys.float()) < HALF_PRODUCTS[half]


@pytest.mark.usefixtures("attention_kernel")
def test_scores_far_apart_stay_finite(half, device, generator):
    from turbowan.kernels.text_attention_triton import row_squares_triton, text_attention_triton

    q, k, v, repeats = made((1, 20, 100, 60), half, device, generator)
    k *= 60
    out = text_attention_triton(q, k, v, EPS, repeats, row_squares_triton(q))
    ref = text.text_attention_ref(q.float(), k.float(), v.float(), EPS)
    assert relative_error(out, ref) < HALF_PRODUCTS[half]


@pytest.mark.parametrize("heads", [1, 3, 4, 12])
def test_row_squares(half, device, generator, heads):
    q = torch.randn(2, 9, heads, 128, generator=generator).to(device, half)
    from turbowan.kernels.text_attention_triton import row_squares_triton

    assert relative_error(row_squares_triton(q), text.row_squares_ref(q)) < SAME_MATHS_FP32


@pytest.mark.parametrize("heads", [1, 3, 12])
def test_norm_keys(half, device, generator, heads):
    from turbowan.kernels.text_attention_triton import norm_keys_triton

    k = (3 * torch.randn(2, 9, heads, 128, generator=generator)).to(device, half)
    q_weight, k_weight = (torch.randn(heads * 128, generator=generator).to(device) for _ in range(2))
    ref = text.norm_keys_ref(k.float(), q_weight, k_weight, EPS)
    assert relative_error(norm_keys_triton(k, q_weight, k_weight, EPS), ref) < ROUND_TRIP[half]


@pytest.mark.usefixtures("attention_kernel")
def test_squares_may_come_in_parts(half, device, generator):
    from turbowan.kernels.text_attention_triton import text_attention_triton

    q, k, v, repeats = made((2, 20, 100, 60), half, device, generator)
    parts = q.float().square().sum(dim=3).reshape(-1, q.shape[2]).T.contiguous()
    out = text_attention_triton(q, k, v, EPS, repeats, parts)
    ref = text.text_attention_ref(q.float(), k.float(), v.float(), EPS)
    assert relative_error(out, ref) < HALF_PRODUCTS[half]


def test_heads_of_another_size_are_refused(half, device):
    from turbowan.kernels.text_attention_triton import text_attention_triton

    x, ones = torch.zeros(1, 4, 2, 256, device=device, dtype=half), torch.ones(1, 4, device=device)
    with pytest.raises(ValueError, match="heads of 128"):
        text_attention_triton(x, x, x, EPS, ones.int(), ones)
