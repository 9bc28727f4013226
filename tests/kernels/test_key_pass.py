import pytest
import torch
from attention_inputs import SHAPE_IDS, SHAPES, proj_l, qkv
from tolerances import CODE_SCALES, HALF_PRODUCTS, ROUND_TRIP, SAME_MATHS_FP32, codes_agree, relative_error

from turbowan.kernels import key_pass

pytestmark = [pytest.mark.interpreter, pytest.mark.usefixtures("poisoned_memory")]


@pytest.fixture(params=SHAPES, ids=SHAPE_IDS)
def inputs(request, half, device, generator):
    _, k, v = qkv(request.param, device, half, generator)
    return k, v, k.float().mean(dim=1), *proj_l(device, generator)


@pytest.mark.parametrize("programs", [1, 6], ids=["one stretch", "several stretches"])
@pytest.mark.parametrize("int8", [False, True])
def test_key_pass_kernels(inputs, int8, programs, half, monkeypatch):
    from turbowan.kernels import key_pass_triton

    monkeypatch.setattr(key_pass_triton, "PROGRAMS_PER_MULTIPROCESSOR", programs)
    monkeypatch.setattr(key_pass_triton, "multiprocessors", lambda device: 1)
    out = key_pass_triton.key_pass_triton(*inputs, int8)
    ref = key_pass.key_pass_ref(*inputs, int8)
    assert relative_error(out.branch.values, ref.branch.values) < HALF_PRODUCTS[half]
    assert relative_error(out.branch.k_mean, ref.branch.k_mean) < SAME_MATHS_FP32
    assert torch.equal(out.branch.bias, ref.branch.bias)
    assert out.branch.eps == ref.branch.eps
    assert relative_error(out.ball.radius, ref.ball.radius) < SAME_MATHS_FP32
    assert torch.equal(out.ball.centre, ref.ball.centre)
    assert (out.codes is None) == (ref.codes is None) == (not int8)
    if int8:
        assert relative_error(out.codes.scale, ref.codes.scale) < CODE_SCALES
        assert codes_agree(out.codes.codes, ref.codes.codes)


def test_the_ball_holds_every_score(inputs, generator):
    """q·k ≤ q·centre + |q|·radius, whatever q."""
    k = inputs[0].float()
    ball = key_pass.key_pass_ref(*inputs).ball
    q = torch.randn(k.shape, generator=generator).to(k.device)
    highest = torch.einsum("blhd,bshd->bhls", q, k).amax(dim=-1)
    bound = torch.einsum("blhd,bhd->bhl", q, ball.centre) + q.norm(dim=-1).transpose(1, 2) * ball.radius[..., None]
    assert (highest <= bound * (1 + torch.sign(bound) * ROUND_TRIP[torch.float32])).all()


def test_keys_and_values_of_different_lengths_are_refused(half, device, generator):
    from turbowan.kernels.key_pass_triton import key_pass_triton

    _, k, v = qkv((1, 129, 1, 0.5), device, half, generator)
    with pytest.raises(ValueError, match="k and v must have one shape"):
        key_pass_triton(k, v[:, 1:], k.float().mean(dim=1), *proj_l(device, generator), False)
