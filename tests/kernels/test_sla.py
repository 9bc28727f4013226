import dataclasses
import math

import pytest
import torch
from attention_inputs import DIM, SHAPE_IDS, SHAPES, proj_l, qkv
from tolerances import HALF_PRODUCTS, INT8_OUTPUT, SAME_MATHS_FP32, SQNR_SAGE_SCORES_DB, relative_error, sqnr_db

from turbowan.kernels import int8_heads, qk_norm, routing, sla
from turbowan.kernels.block_int8 import quantize_activations_ref
from turbowan.kernels.key_pass import key_pass_ref

pytestmark = [pytest.mark.interpreter, pytest.mark.usefixtures("poisoned_memory")]

MODES = pytest.mark.parametrize("int8", [False, True], ids=["sla", "sagesla"])


@pytest.fixture(params=SHAPES, ids=SHAPE_IDS)
def shape(request):
    return request.param


def attention_inputs(q, k, v, ratio, generator, int8=False) -> sla.SlaInputs:
    """The reference's preparation of given tensors."""
    weight, bias = proj_l(q.device, generator)
    pooled_q, pooled_k = routing.mean_pool(q, routing.BLOCK_Q), routing.mean_pool(k, routing.BLOCK_K)
    k_mean = routing.key_mean_ref(pooled_k, k.shape[1])
    blocks = routing.route_ref(pooled_q, pooled_k, k_mean, routing.kept_blocks(k.shape[1], ratio))
    keys = key_pass_ref(k, v, k_mean, weight, bias, int8)
    return sla.SlaInputs(q, k, v, blocks, keys, int8_heads.quantize_queries(q) if int8 else None)


def in_fp32(inputs: sla.SlaInputs) -> sla.SlaInputs:
    return dataclasses.replace(inputs, q=inputs.q.float(), k=inputs.k.float(), v=inputs.v.float())


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
    state = generator.get_state()
    inputs = attention_inputs(q, k, v, shape[3], generator)
    weight, bias = proj_l("cpu", generator.set_state(state))
    assert relative_error(sla.attend_ref(inputs), formula(q, k, v, inputs.blocks, weight, bias)) < SAME_MATHS_FP32


def test_all_blocks_kept_is_dense_softmax(generator):
    q, k, v = qkv((2, 200, 2, 1.0), "cpu", torch.float32, generator)
    blocks = attention_inputs(q, k, v, 1.0, generator).blocks
    dense = torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    assert relative_error(sla.sparse_attention_ref(q, k, v, blocks), dense) < SAME_MATHS_FP32


def test_reference_works_in_groups_when_memory_is_short(generator, monkeypatch):
    q, k, v = qkv((1, 513, 1, 0.5), "cpu", torch.float32, generator)
    blocks = attention_inputs(q, k, v, 0.5, generator).blocks
    whole = sla.sparse_attention_ref(q, k, v, blocks)
    monkeypatch.setattr(sla, "TORCH_GROUP_BYTES", 1)
    assert relative_error(sla.sparse_attention_ref(q, k, v, blocks), whole) < SAME_MATHS_FP32


@MODES
# Small scores stay near the bound that shifts the softmax; large ones need the running maximum, bf16's very large ones.
@pytest.mark.parametrize("magnitude", [0.3, 1.5, 6.0])
@pytest.mark.usefixtures("attention_kernel")
def test_attention_kernel_equals_reference(shape, magnitude, int8, half, device, generator):
    from turbowan.kernels.sla_triton import attend_triton

    q, k, v = qkv(shape, device, half, generator, magnitude)
    inputs = attention_inputs(q, k, v, shape[3], generator, int8)
    limit = HALF_PRODUCTS[half] * (2 if int8 else 1)
    assert relative_error(attend_triton(inputs), sla.attend_ref(in_fp32(inputs))) < limit


@pytest.mark.parametrize(("magnitude", "near"), [(0.3, True), (6.0, False)])
def test_both_loops_are_tested(magnitude, near, half, generator):
    """That the magnitudes above lie on both sides of what a shift by the bound allows."""
    from turbowan.kernels.sla_triton import BOUND_RANGE

    shape = SHAPES[0]
    q, k, v = (x.float() for x in qkv(shape, "cpu", half, generator, magnitude))
    inputs = attention_inputs(q, k, v, shape[3], generator)
    ball = inputs.keys.ball
    bound = torch.einsum("blhd,bhd->bhl", q, ball.centre) + q.norm(dim=-1).transpose(1, 2) * ball.radius[..., None]
    first = inputs.blocks[..., -1].repeat_interleave(128, dim=2)[..., : shape[1]].long()
    every = torch.einsum("blhd,bshd->bhls", q, k)
    in_block = torch.arange(shape[1])[None, None, None] // 64 == first[..., None]
    reached = every.masked_fill(~in_block, -math.inf).amax(dim=-1)
    gap = (bound - reached) / math.sqrt(DIM) * math.log2(math.e)
    assert (gap.max() <= BOUND_RANGE[half][1]) == near


@MODES
@pytest.mark.usefixtures("attention_kernel")
def test_quantized_output_is_the_output_quantized(shape, int8, half, device, generator):
    from turbowan.kernels.sla_triton import attend_quantized_triton

    inputs = attention_inputs(*qkv(shape, device, half, generator), shape[3], generator, int8)
    out = attend_quantized_triton(inputs)
    exact = sla.attend_ref(in_fp32(inputs)).flatten(2)
    ref = quantize_activations_ref(exact)
    assert relative_error(out.scale, ref.scale) < 2 * HALF_PRODUCTS[half]

    assert (out.codes.int() - ref.codes.int()).abs().max() <= 1 + 128 * 8 * HALF_PRODUCTS[half]
    assert relative_error(out.dequantize(torch.float32), exact.flatten(0, 1)) < INT8_OUTPUT


@pytest.mark.parametrize("peak", [10.0, 16.0, 40.0])
@pytest.mark.usefixtures("attention_kernel")
def test_linear_branch_of_keys_and_queries_that_never_meet(peak, half, device, generator):
    """Queries and keys that favour different features leave a tiny denominator; 16-bit factors must stay bounded."""
    from turbowan.kernels.sla_triton import attend_triton

    q, k, v = (torch.randn(1, 256, 1, DIM, generator=generator) * 0.1 for _ in range(3))
    q[..., 0] += peak
    k[..., 1] += peak
    k[..., 0] -= peak / 2
    q[..., 1] -= peak / 2
    inputs = attention_inputs(*(x.to(device, half) for x in (q, k, v)), 0.5, generator)
    assert relative_error(attend_triton(inputs), sla.attend_ref(in_fp32(inputs))) < HALF_PRODUCTS[half]


def test_kernels_from_projections_to_output(half, device, generator, monkeypatch):
    """Every kernel of the path in turn against every reference in turn."""
    from turbowan.kernels import dispatch

    q, k, v = qkv((2, 193, 2, 0.5), device, half, generator)
    weight, bias = proj_l(device, generator)
    outputs = []
    for refusal in (None, "the test asks for torch"):
        monkeypatch.setattr(dispatch, "triton_refusal", lambda *_, refusal=refusal: refusal)
        convert = (lambda x: x.float()) if refusal else (lambda x: x)
        heads = qk_norm.pooled(convert(q), routing.BLOCK_Q), qk_norm.pooled(convert(k), routing.BLOCK_K)
        outputs.append(sla.attend(sla.prepare(*heads, convert(v), weight, bias, 0.5)))
    assert relative_error(*outputs) < HALF_PRODUCTS[half]


def test_wrongly_shaped_blocks_are_refused(generator):
    q, k, v = qkv((1, 257, 1, 0.4), "cpu", torch.float32, generator)
    inputs = attention_inputs(q, k, v, 0.4, generator)
    with pytest.raises(ValueError, match="blocks must be"):
        dataclasses.replace(inputs, blocks=inputs.blocks[:, :, 1:])


def test_codes_of_queries_alone_are_refused(generator):
    q, k, v = qkv((1, 257, 1, 0.4), "cpu", torch.float32, generator)
    with pytest.raises(ValueError, match="both have int8 codes"):
        dataclasses.replace(attention_inputs(q, k, v, 0.4, generator), q_codes=int8_heads.quantize_queries(q))


def test_sagesla_needs_its_kernel(generator):
    q, k, v = qkv((1, 257, 1, 0.4), "cpu", torch.float32, generator)
    with pytest.raises(ValueError, match="choose attention 'sla'"):
        sla.attend(attention_inputs(q, k, v, 0.4, generator, int8=True))


def test_sage_recipe_stays_above_its_sqnr_floor(generator):
    q, k, v = qkv((1, 640, 2, 0.5), "cpu", torch.float32, generator)
    inputs = attention_inputs(q, k, v, 0.5, generator, int8=True)
    q_hat, k_hat = int8_heads.dequantize_queries(inputs.q_codes), int8_heads.dequantize_keys(inputs.keys.codes)
    exact = sla.sparse_attention_ref(q, k, v, inputs.blocks)
    assert sqnr_db(sla.sparse_attention_ref(q_hat, k_hat, v, inputs.blocks), exact) > SQNR_SAGE_SCORES_DB
