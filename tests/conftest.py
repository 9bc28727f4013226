"""Shared fixtures: where kernels run in this session, and poisoned memory."""

import os
from collections import Counter

import pytest
import torch

# Kernels are compiled where there is a GPU and interpreted elsewhere; Triton reads this when it is imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


NEED_MORE = ("host", "browser")  # markers of tests that skip where something is not there, loudly
_skipped: Counter[tuple[str, str]] = Counter()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item):
    outcome = yield
    report = outcome.get_result()
    if report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        _skipped.update((marker, reason) for marker in NEED_MORE if item.get_closest_marker(marker))


def pytest_terminal_summary(terminalreporter):
    for (marker, reason), count in _skipped.items():
        line = f"{count} {marker.upper()} TESTS DID NOT RUN: {reason}"
        terminalreporter.write_sep("!", line, yellow=True, bold=True)


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The GPU, else the CPU through Triton's interpreter."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


# bf16 tl.dot is wrong in Triton's interpreter, so bf16 is for the GPU.
HALF_DTYPES = [torch.float16, torch.bfloat16] if torch.cuda.is_available() else [torch.float16]


@pytest.fixture(params=HALF_DTYPES, ids=str)
def half(request) -> torch.dtype:
    """Each 16-bit dtype that can be tested here."""
    return request.param


@pytest.fixture(params=["plain", pytest.param("hopper", marks=pytest.mark.gpu)])
def attention_kernel(request, device, monkeypatch):
    """Whether the attentions' launchers take the kernels for every GPU or those for Hopper."""
    from turbowan.kernels import dispatch, sla_triton, text_attention_triton

    if request.param == "plain":
        for module in (sla_triton, text_attention_triton):
            monkeypatch.setattr(module, "gluon_refusal", lambda *_: "the test asks for the plain kernel")
    elif reason := dispatch.gluon_refusal(device, "run_attention_probe"):
        pytest.skip(reason)


@pytest.fixture
def few_programs(device, monkeypatch):
    """Hopper's int8 GEMMs run as two programs, each of which then walks through several tiles of a small problem."""
    from turbowan.kernels import dispatch

    if dispatch.gluon_refusal(device) is None:
        from turbowan.kernels import gemm_gluon

        monkeypatch.setattr(gemm_gluon, "multiprocessors", lambda _: 2)


@pytest.fixture
def poisoned_memory():
    """torch.empty gives NaN (integers: their maximum), so that an unwritten output shows."""
    before = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before, warn_only=warned)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1234)


@pytest.fixture(scope="module")
def one_thread():
    """Threads that wait for each other on a busy machine cost tiny convolutions tenfold."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
