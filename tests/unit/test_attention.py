import dataclasses
import sys

import pytest
import torch
from tolerances import SAME_MATHS_FP32, relative_error

from turbowan.kernels import routing, sageattention
from turbowan.kernels.qk_norm import pooled
from turbowan.turbo_core import attention
from turbowan.turbo_core.config import WanConfig
from turbowan.turbo_core.errors import BackendUnavailableError, SettingsError

TRAINED = WanConfig(dim=256, ffn_dim=384, num_heads=2, num_layers=1, has_proj_l=True)
PLAIN = dataclasses.replace(TRAINED, has_proj_l=False)
CPU = torch.device("cpu")


@pytest.mark.parametrize(("config", "mode"), [(TRAINED, "sla"), (PLAIN, "dense")])
def test_auto_follows_the_file(config, mode):
    assert attention.resolve("auto", 0.1, config, CPU).mode == mode


@pytest.mark.parametrize(("mode", "config", "told"), [("dense", TRAINED, 1), ("dense", PLAIN, 0), ("sla", TRAINED, 0)])
def test_leaving_out_a_trained_linear_branch_is_told(mode, config, told, caplog):
    attention.warn_of_cost(attention.resolve(mode, 0.1, config, CPU), config)
    assert [config.name in record.getMessage() for record in caplog.records] == [True] * told


@pytest.mark.parametrize("topk", [0.0, -0.1, 1.01])
def test_topk_out_of_range(topk):
    with pytest.raises(SettingsError, match="topk: must be above 0 and at most 1"):
        attention.resolve("sla", topk, TRAINED, CPU)


def test_unknown_mode():
    with pytest.raises(SettingsError, match="'flash'; choose auto"):
        attention.resolve("flash", 0.1, TRAINED, CPU)


@pytest.mark.parametrize("mode", ["sla", "sagesla"])
def test_sla_needs_a_file_trained_with_it(mode):
    with pytest.raises(SettingsError, match="proj_l.*choose dense or auto"):
        attention.resolve(mode, 0.1, PLAIN, CPU)


def test_sagesla_says_why_it_cannot_run_and_what_to_choose():
    with pytest.raises(BackendUnavailableError, match="the device is cpu, not cuda; choose sla or auto"):
        attention.resolve("sagesla", 0.1, TRAINED, CPU)


def test_dense_attention_is_softmax_over_all_keys(generator):
    q, k, v = (torch.randn(2, n, 2, 128, generator=generator) for n in (5, 9, 9))
    score = torch.einsum("blhd,bshd->bhls", q, k) / 128**0.5
    expected = torch.einsum("bhls,bshd->blhd", score.softmax(-1), v)
    assert relative_error(attention.dense_attention(q, k, v), expected) < SAME_MATHS_FP32


def test_full_ratio_is_dense_softmax_plus_the_linear_branch(generator):
    q, k, v = (torch.randn(1, 200, 2, 128, generator=generator) for _ in range(3))
    weight, bias = torch.randn(128, 128, generator=generator) / 11, torch.randn(128, generator=generator)
    settings = attention.AttentionSettings(mode="sla", topk=1.0)
    fq, fk = (x.double().softmax(-1).transpose(1, 2) for x in (q, k))
    linear = fq @ (fk.transpose(-1, -2) @ v.double().transpose(1, 2)) / (1e-5 + fq @ fk.sum(-2)[..., None])
    expected = attention.dense_attention(q, k, v).double() + (linear @ weight.double().T + bias).transpose(1, 2)
    heads = pooled(q, routing.BLOCK_Q), pooled(k, routing.BLOCK_K)
    out = attention.sparse_linear_attention(*heads, v, weight, bias, settings)
    assert relative_error(out, expected) < SAME_MATHS_FP32


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Install a stand-in `sageattention` whose sageattn is given as source."""

    def install(body):
        (tmp_path / "sageattention.py").write_text(f"import torch\ndef sageattn(q, k, v, tensor_layout):\n    {body}\n")
        monkeypatch.syspath_prepend(tmp_path)
        sageattention.refusal.cache_clear()
        sys.modules.pop("sageattention", None)

    yield install
    sys.modules.pop("sageattention", None)
    sageattention.refusal.cache_clear()


SDPA = "torch.nn.functional.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))"


def test_a_working_sageattention_is_taken(package, generator):
    package(f"return {SDPA}.transpose(1, 2)")
    assert attention.resolve("sageattention", 0.1, PLAIN, CPU).mode == "sageattention"
    q, k, v = (torch.randn(1, 9, 2, 128, generator=generator) for _ in range(3))
    assert torch.equal(sageattention.sage_dense_attention(q, k, v), attention.dense_attention(q, k, v))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("return q * 0.5", "computes wrongly on cpu"),
        ("return q * float('nan')", "computes wrongly on cpu"),
        ("raise RuntimeError('no kernel image')", "fails on cpu.*no kernel image"),
    ],
)
def test_a_broken_sageattention_says_why_and_what_to_choose(package, body, reason):
    package(body)
    with pytest.raises(BackendUnavailableError, match=f"{reason}.*choose dense or auto"):
        attention.resolve("sageattention", 0.1, PLAIN, CPU)


def test_a_missing_sageattention_says_so():
    sageattention.refusal.cache_clear()
    with pytest.raises(BackendUnavailableError, match="cannot be imported.*choose dense or auto"):
        attention.resolve("sageattention", 0.1, PLAIN, CPU)
