import dataclasses
import logging

import pytest
import torch

from turbowan.kernels import channel_fp8, dispatch
from turbowan.kernels.dispatch import BackendUnavailableError, Kernel

KERNEL = Kernel(name="test kernel", last_dim_multiple=128)


@pytest.fixture(autouse=True)
def _forget_answers():
    answers = dispatch.triton_refusal, dispatch.gluon_refusal
    for answer in answers:
        answer.cache_clear()
    yield
    for answer in answers:
        answer.cache_clear()


def test_cpu_is_refused_with_the_reason():
    assert KERNEL.refusal(torch.zeros(1, 128)) == "the device is cpu, not cuda"
    with pytest.raises(BackendUnavailableError, match="test kernel: .*the device is cpu.*; choose sla"):
        KERNEL.require(torch.zeros(1, 128), "choose sla")


@pytest.mark.parametrize(
    ("x", "reason"),
    [
        (torch.zeros(1, 128, dtype=torch.float32), "float32 is none of"),
        (torch.zeros(1, 100, dtype=torch.float16), "100 is not a multiple of 128"),
        (torch.zeros(1, 128, dtype=torch.bfloat16), None),
    ],
)
def test_dtype_and_shape_constraints(x, reason, monkeypatch):
    monkeypatch.setattr(dispatch, "triton_refusal", lambda *_: None)
    found = KERNEL.refusal(x)
    assert (found is None) if reason is None else reason in found


def test_an_old_gpu_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert dispatch.triton_refusal(torch.device("cuda:0")) == "compute capability 7.5 is below 8.0"


def test_rocm_is_refused(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.2")
    assert "ROCm" in dispatch.triton_refusal(torch.device("cuda:0"))


def test_a_choice_is_logged_once(caplog):
    kernel = Kernel(name="logged once")
    with caplog.at_level(logging.INFO, logger=dispatch.log.name):
        for _ in range(3):
            assert not kernel.accepts(torch.zeros(1, 16))
    assert [r.getMessage() for r in caplog.records] == [
        "logged once on cpu: torch, because the device is cpu, not cuda"
    ]


def test_what_computes_is_logged_by_its_name(caplog, monkeypatch):
    monkeypatch.setattr(channel_fp8, "scaled_mm_refusal", lambda _: None)
    linear = dataclasses.replace(channel_fp8.LINEAR, name="fp8 logged once")
    with caplog.at_level(logging.INFO, logger=dispatch.log.name):
        assert linear.accepts(torch.zeros(1, 16, dtype=torch.bfloat16))
        assert not linear.accepts(torch.zeros(1, 20, dtype=torch.bfloat16))
    assert [r.getMessage() for r in caplog.records] == [
        "fp8 logged once on cpu: torch._scaled_mm",
        "fp8 logged once on cpu: torch, because last dimension 20 is not a multiple of 16",
    ]


def test_a_device_is_asked_once(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: asked.append(device) or (7, 5))
    for device in ("cuda:0", "cuda:0", "cuda:1"):
        assert "below 8.0" in dispatch.triton_refusal(torch.device(device))
    assert asked == [torch.device("cuda:0"), torch.device("cuda:1")]
    for probe in ("run_probe", "run_probe", "run_attention_probe"):
        assert dispatch.gluon_refusal(torch.device("cuda:1"), probe) == "the device is not a Hopper GPU"
    assert len(asked) == 4
