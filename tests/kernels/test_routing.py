import pytest
import torch
from attention_inputs import DIM, SHAPE_IDS, SHAPES, qkv
from tolerances import ROUND_TRIP, SAME_MATHS_FP32, relative_error

from turbowan.kernels import routing

pytestmark = [pytest.mark.interpreter, pytest.mark.usefixtures("poisoned_memory")]


def whole_numbers(shape, device, generator, largest=3):
    """Means whose scores are whole numbers, the same in every order of summation; many of them tie."""
    return torch.randint(-largest, largest + 1, shape, generator=generator).float().to(device)


@pytest.mark.parametrize(
    ("length", "ratio", "kept"),
    [(32760, 0.1, 51), (75600, 0.1, 118), (64, 0.1, 1), (640, 0.15, 1), (128, 1.0, 2), (1, 0.5, 1)],
)
def test_number_of_kept_blocks(length, ratio, kept):
    assert routing.kept_blocks(length, ratio) == kept


def test_routing_finds_the_block_that_matches(generator):
    k = torch.randn(1, 640, 1, DIM, generator=generator) * 0.1
    q = torch.zeros(1, 128, 1, DIM)
    k[:, 3 * 64 : 4 * 64, :, 0] += 5
    q[..., 0] = 1
    pooled = routing.mean_pool(k, routing.BLOCK_K)
    blocks = routing.route_ref(routing.mean_pool(q, routing.BLOCK_Q), pooled, routing.key_mean_ref(pooled, 640), 1)
    assert blocks.tolist() == [[[[3]]]]


def test_a_short_tail_is_pooled_over_its_own_tokens():
    k = torch.zeros(1, 65, 1, DIM)
    k[:, 64, :, 0] = 1.0
    assert routing.mean_pool(k, 64)[0, 0, 1, 0] == 1.0


def test_equal_scores_keep_the_lower_index():
    same = torch.ones(1, 1, 5, DIM)
    assert routing.route_ref(same[:, :, :1], same, torch.zeros(1, 1, DIM), 3).tolist() == [[[[0, 1, 2]]]]


@pytest.mark.parametrize("shape", SHAPES, ids=SHAPE_IDS)
def test_key_mean_is_the_mean_of_all_keys(shape, generator):
    _, k, _ = qkv(shape, "cpu", torch.float32, generator)
    mean = routing.key_mean_ref(routing.mean_pool(k, routing.BLOCK_K), k.shape[1])
    assert relative_error(mean, k.mean(dim=1)) < ROUND_TRIP[torch.float32]


@pytest.mark.parametrize("shape", SHAPES, ids=SHAPE_IDS)
def test_key_mean_kernel(shape, device, generator):
    from turbowan.kernels.routing_triton import key_mean_triton

    _, k, _ = qkv(shape, device, torch.float32, generator)
    pooled = routing.mean_pool(k, routing.BLOCK_K)
    assert relative_error(key_mean_triton(pooled, k.shape[1]), k.mean(dim=1)) < ROUND_TRIP[torch.float32]


@pytest.mark.parametrize(
    ("q_blocks", "k_blocks", "kept"), [(1, 1, 1), (3, 70, 7), (2, 70, 1), (2, 70, 70), (1, 512, 51), (2, 600, 60)]
)
def test_routing_kernel_equals_the_reference_bit_for_bit(q_blocks, k_blocks, kept, device, generator):
    from turbowan.kernels.routing_triton import route_triton

    q = whole_numbers((2, 2, q_blocks, DIM), device, generator)
    k = whole_numbers((2, 2, k_blocks, DIM), device, generator)
    mean = whole_numbers((2, 2, DIM), device, generator)
    assert torch.equal(route_triton(q, k, mean, kept), routing.route_ref(q, k, mean, kept))


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -1e-30, 1e30])
def test_routing_kernel_when_all_scores_are_equal(value, device):
    from turbowan.kernels.routing_triton import route_triton

    q, k = (torch.zeros(1, 1, n, DIM, device=device) for n in (2, 9))
    q[..., 0], k[..., 0] = 1.0, value
    k[..., ::2, 0] *= -1 if value == 0 else 1  # zeros of both signs are equal
    zero = torch.zeros(1, 1, DIM, device=device)
    assert route_triton(q, k, zero, 4).tolist() == [[[[0, 1, 2, 3]] * 2]]


def test_routing_kernel_chooses_almost_the_same_blocks_from_any_means(device, generator):
    """Scores differ in their last bits, and only blocks whose scores nearly tie may change places."""
    from turbowan.kernels.routing_triton import route_triton

    q, k = (torch.randn(1, 2, n, DIM, generator=generator).to(device) for n in (16, 256))
    mean = k.mean(dim=2)
    score = q.double() @ (k - mean[:, :, None]).double().transpose(-1, -2)
    kept = [
        score.gather(-1, chosen.long()).sort(dim=-1).values
        for chosen in (route_triton(q, k, mean, 26), routing.route_ref(q, k, mean, 26))
    ]
    assert relative_error(*kept) < SAME_MATHS_FP32


def test_routing_kernel_stays_in_range_where_scores_are_not_finite(device):
    from turbowan.kernels.routing_triton import route_triton

    q, k = (torch.ones(1, 1, n, DIM, device=device) for n in (2, 9))
    q[0, 0, 0] = torch.nan
    k[0, 0, 4] = -torch.inf
    chosen = route_triton(q, k, torch.zeros(1, 1, DIM, device=device), 4)[0, 0]
    assert chosen[1].tolist() == [0, 1, 2, 3]
    assert len(set(chosen[0].tolist())) == 4
    assert 0 <= int(chosen.min()) <= int(chosen.max()) < 9


def test_routing_kernel_refuses_to_keep_more_than_there_is(device):
    from turbowan.kernels.routing_triton import route_triton

    x = torch.zeros(1, 1, 3, DIM, device=device)
    with pytest.raises(ValueError, match="kept must lie in 1 … 3"):
        route_triton(x, x, x[:, :, 0], 4)


def test_scores_are_those_of_the_formula(device, generator):
    q, k = (torch.randn(1, 1, n, DIM, generator=generator, dtype=torch.float64) for n in (3, 40))
    mean = k.mean(dim=2)
    score = (q[0, 0] @ (k - mean[:, :, None])[0, 0].T).topk(5).indices.sort().values
    assert torch.equal(routing.route_ref(q, k, mean, 5)[0, 0].long(), score)
