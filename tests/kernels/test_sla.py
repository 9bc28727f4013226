import math

import pytest
import torch
from tolerances import HALF_PRODUCTS, ROUND_TRIP, SAME_MATHS_FP32, SQNR_SAGE_SCORES_DB, relative_error, sqnr_db

from turbowan.kernels import sage, sla

pytestmark = [pytest.mark.interpreter, pytest.mark.usefixtures("poisoned_memory")]

# batch, tokens, heads, ratio: tails of 1 in queries and keys, short clips, several samples, one block, all blocks.
SHAPES = [(1, 257, 2, 0.4), (2, 193, 1, 1.0), (1, 129, 1, 0.01), (1, 40, 2, 0.5), (1, 384, 1, 0.5)]
SHAPE_IDS = [f"B{b}-L{length}-H{h}-ratio{r}" for b, length, h, r in SHAPES]
DIM = 128


@pytest.fixture(params=SHAPES, ids=SHAPE_IDS)
def shape(request):
    return request.param


def qkv(shape, device, dtype, generator):
    """q, k, v [B, L, H, D] inside larger buffers of NaN, so that a read past the end shows; keys are off centre."""
    batch, length, heads, _ = shape
    out = []
    for scale, offset in ((1.5, 0.0), (1.5, 1.0), (1.0, 0.0)):
        buffer = torch.full((batch, length + 64, heads, DIM), math.nan, device=device, dtype=dtype)
        shift = offset * torch.randn(DIM, generator=generator)
        values = torch.randn(batch, length, heads, DIM, generator=generator) * scale + shift
        buffer[:, :length] = values.to(device, dtype)
        out.append(buffer[:, :length])
    return out


def proj_l(device, generator):
    return (
        (torch.randn(DIM, DIM, generator=generator) / DIM**0.5).to(device),
        torch.randn(DIM, generator=generator).to(device),
    )


def routed(q, k, ratio):
    pooled = sla.mean_pool_ref(k, sla.BLOCK_K)
    mean = sla.key_mean(pooled, k.shape[1])
    return mean, sla.route(sla.mean_pool_ref(q, sla.BLOCK_Q), pooled, mean, sla.kept_blocks(k.shape[1], ratio))


def formula(q, k, v, blocks, weight, bias):
    """SLA written out with a dense mask, in fp64."""
    q, k, v = (x.double().transpose(1, 2) for x in (q, k, v))
    length = k.shape[2]
    kept = torch.zeros(*blocks.shape[:3], -(-length // 64), dtype=torch.bool, device=q.device)
    kept.scatter_(-1, blocks.long(), True)
    mask = kept.repeat_interleave(128, 2)[:, :, :length].repeat_interleave(64, 3)[..., :length]
    score = (q @ k.transpose(-1, -2) / DIM**0.5).masked_fill(~mask, -math.inf)
    sparse = score.softmax(-1) @ v
    fq, fk = q.softmax(-1), k.softmax(-1)
    linear = fq @ (fk.transpose(-1, -2) @ v) / (1e-5 + fq @ fk.sum(-2)[..., None])
    return (sparse + linear @ weight.double().T + bias.double()).transpose(1, 2)


def test_reference_equals_the_formula(shape, generator):
    q, k, v = qkv(shape, "cpu", torch.float32, generator)
    weight, bias = proj_l("cpu", generator)
    _, blocks = routed(q, k, shape[3])
    out = sla.add_branch(sla.sparse_attention_ref(q, k, v, blocks), q, sla.linear_branch_ref(k, v, weight, bias))
    assert relative_error(out, formula(q, k, v, blocks, weight, bias)) < SAME_MATHS_FP32


def test_all_blocks_kept_is_dense_softmax(generator):
    q, k, v = qkv((2, 200, 2, 1.0), "cpu", torch.float32, generator)
    _, blocks = routed(q, k, 1.0)
    dense = torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    assert relative_error(sla.sparse_attention_ref(q, k, v, blocks), dense) < SAME_MATHS_FP32


def test_reference_works_in_groups_when_memory_is_short(generator, monkeypatch):
    q, k, v = qkv((1, 513, 1, 0.5), "cpu", torch.float32, generator)
    _, blocks = routed(q, k, 0.5)
    whole = sla.sparse_attention_ref(q, k, v, blocks)
    monkeypatch.setattr(sla, "TORCH_GROUP_BYTES", 1)
    assert relative_error(sla.sparse_attention_ref(q, k, v, blocks), whole) < SAME_MATHS_FP32


@pytest.mark.parametrize(
    ("length", "ratio", "kept"),
    [(32760, 0.1, 51), (75600, 0.1, 118), (64, 0.1, 1), (640, 0.15, 1), (128, 1.0, 2), (1, 0.5, 1)],
)
def test_number_of_kept_blocks(length, ratio, kept):
    assert sla.kept_blocks(length, ratio) == kept


def test_routing_finds_the_block_that_matches(generator):
    k = torch.randn(1, 640, 1, DIM, generator=generator) * 0.1
    q = torch.zeros(1, 128, 1, DIM)
    k[:, 3 * 64 : 4 * 64, :, 0] += 5
    q[..., 0] = 1
    _, blocks = routed(q, k, 0.1)
    assert blocks.tolist() == [[[[3]]]]


def test_routing_of_a_short_tail_uses_its_own_count():
    k = torch.zeros(1, 65, 1, DIM)
    k[:, 64, :, 0] = 1.0
    assert sla.mean_pool_ref(k, 64)[0, 0, 1, 0] == 1.0


def test_pooling_kernel(shape, half, device, generator):
    from turbowan.kernels.sla_triton import mean_pool_triton

    q, _, _ = qkv(shape, device, half, generator)
    for block in (sla.BLOCK_Q, sla.BLOCK_K):
        assert relative_error(mean_pool_triton(q, block), sla.mean_pool_ref(q, block)) < SAME_MATHS_FP32


def test_feature_sums_kernel(shape, half, device, generator, monkeypatch):
    from turbowan.kernels import sla_triton

    monkeypatch.setattr(sla_triton, "FEATURE_CHUNK", 128)
    _, k, v = qkv(shape, device, half, generator)
    weight, bias = proj_l(device, generator)
    ref = sla.linear_branch_ref(k, v, weight, bias)
    kv, k_mean = sla_triton.feature_sums_triton(k, v)
    assert relative_error(kv / k_mean[..., None] @ weight.T, ref.values) < HALF_PRODUCTS[half]
    assert relative_error(k_mean, ref.k_mean) < SAME_MATHS_FP32


@pytest.mark.parametrize("with_branch", [True, False], ids=["linear", "sparse-only"])
def test_attention_kernel_equals_reference(shape, with_branch, half, device, generator):
    from turbowan.kernels.sla_triton import sparse_linear_attention_triton

    q, k, v = qkv(shape, device, half, generator)
    weight, bias = proj_l(device, generator)
    _, blocks = routed(q, k, shape[3])
    branch = sla.linear_branch_ref(k, v, weight, bias) if with_branch else None
    ref = sla.add_branch(sla.sparse_attention_ref(q.float(), k.float(), v.float(), blocks), q, branch)
    out = sparse_linear_attention_triton(q, k, v, blocks, branch)
    assert relative_error(out, ref) < HALF_PRODUCTS[half]


@pytest.mark.parametrize("peak", [10.0, 16.0, 40.0])
def test_linear_branch_of_keys_and_queries_that_never_meet(peak, half, device, generator):
    """Queries and keys that favour different features leave a tiny denominator; 16-bit factors must stay bounded."""
    from turbowan.kernels.sla_triton import sparse_linear_attention_triton

    q, k, v = (torch.randn(1, 256, 1, DIM, generator=generator) * 0.1 for _ in range(3))
    q[..., 0] += peak
    k[..., 1] += peak
    k[..., 0] -= peak / 2
    q[..., 1] -= peak / 2
    q, k, v = (x.to(device, half) for x in (q, k, v))
    branch = sla.linear_branch_ref(k, v, *proj_l(device, generator))
    _, blocks = routed(q, k, 0.5)
    ref = sla.add_branch(sla.sparse_attention_ref(q.float(), k.float(), v.float(), blocks), q, branch)
    assert relative_error(sparse_linear_attention_triton(q, k, v, blocks, branch), ref) < HALF_PRODUCTS[half]


def test_wrongly_shaped_blocks_are_refused(half, device, generator):
    from turbowan.kernels.sla_triton import sparse_linear_attention_triton

    q, k, v = qkv((1, 257, 1, 0.4), device, half, generator)
    _, blocks = routed(q, k, 0.4)
    with pytest.raises(ValueError, match="blocks must be"):
        sparse_linear_attention_triton(q, k, v, blocks[:, :, 1:], None)


def test_sage_quantization_kernels(shape, half, device, generator):
    from turbowan.kernels.sla_triton import quantize_keys_triton, quantize_queries_triton

    q, k, _ = qkv(shape, device, half, generator)
    mean, _ = routed(q, k, shape[3])
    pairs = [
        (quantize_queries_triton(q), sage.quantize_queries_ref(q)),
        (quantize_keys_triton(k, mean), sage.quantize_keys_ref(k, mean)),
    ]
    for out, ref in pairs:
        assert relative_error(out.scale, ref.scale) < 1e-6
        assert (out.codes.int() - ref.codes.int()).abs().max() <= 1
        assert (out.codes != ref.codes).float().mean() < 2e-3


def test_sage_kernel_equals_its_quantized_reference(shape, half, device, generator):
    from turbowan.kernels import sla_triton

    q, k, v = qkv(shape, device, half, generator)
    weight, bias = proj_l(device, generator)
    mean, blocks = routed(q, k, shape[3])
    branch = sla.linear_branch_ref(k, v, weight, bias)
    quantized = sla_triton.quantize_queries_triton(q), sla_triton.quantize_keys_triton(k, mean)
    out = sla_triton.sparse_linear_attention_triton(q, k, v, blocks, branch, quantized)
    ref = sage.sage_attention_ref(q.float(), k.float(), v.float(), mean, blocks, branch)
    assert relative_error(out, ref) < 2 * HALF_PRODUCTS[half]


def test_sage_recipe_stays_above_its_sqnr_floor(generator):
    q, k, v = qkv((1, 640, 2, 0.5), "cpu", torch.float32, generator)
    mean, blocks = routed(q, k, 0.5)
    exact = sla.sparse_attention_ref(q, k, v, blocks)
    assert sqnr_db(sage.sage_attention_ref(q, k, v, mean, blocks, None), exact) > SQNR_SAGE_SCORES_DB


def test_key_mean_is_the_mean_of_all_keys(shape, generator):
    _, k, _ = qkv(shape, "cpu", torch.float32, generator)
    mean = sla.key_mean(sla.mean_pool_ref(k, sla.BLOCK_K), k.shape[1])
    assert relative_error(mean, k.mean(dim=1)) < ROUND_TRIP[torch.float32]
