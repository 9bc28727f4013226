"""Kernels compiled ahead: all of them, without running one, with progress and a way out."""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor

import pytest
import tiny
import torch

from turbowan.kernels import compile_ahead as ahead
from turbowan.kernels.compile_ahead import compile_ahead
from turbowan.turbo_core import native_names, vae_weights
from turbowan.turbo_core.config import WanConfig
from turbowan.turbo_core.model import TurboWan


class Stop(Exception):
    pass


def test_waiting_reports_every_kernel_and_says_so_once(monkeypatch, caplog) -> None:
    monkeypatch.setattr(ahead, "QUIET_SECONDS", 0.0)
    monkeypatch.setattr(ahead, "POLL_SECONDS", 0.01)
    gates = [threading.Event() for _ in range(3)]
    seen: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        seen.append((done, total))
        gates[min(done, 2)].set()

    with ThreadPoolExecutor(3) as pool, caplog.at_level("INFO"):
        futures = [pool.submit(gate.wait, 10) for gate in gates]
        ahead._wait(futures, progress, None)
    assert seen[0] == (0, 3)
    assert seen[-1] == (3, 3)
    assert seen == sorted(seen)
    assert caplog.text.count("compiling 3 kernels") == 1


def test_kernels_that_come_from_the_cache_are_not_worth_a_word(caplog) -> None:
    seen: list[tuple[int, int]] = []
    with ThreadPoolExecutor(1) as pool, caplog.at_level("INFO"):
        ahead._wait([pool.submit(int)], lambda *at: seen.append(at), None)
    assert not seen
    assert "compiling" not in caplog.text


def test_waiting_can_be_interrupted() -> None:
    gate = threading.Event()
    calls = iter(range(3))

    def interrupted() -> None:
        if next(calls, None) is None:
            raise Stop

    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(Stop):
            ahead._wait([pool.submit(gate.wait, 10)], None, interrupted)
        gate.set()


def test_fresh_tensors_are_zeros_on_the_walk_alone(poisoned_memory) -> None:
    x = torch.ones(3)
    with ahead._Zeros():
        made = [torch.empty(4), torch.empty_like(x), x.new_empty(2, 2), torch.empty((2,), dtype=torch.int64)]
        made.append(torch.empty((1, 2, 3, 4, 5), memory_format=torch.channels_last_3d))
    assert all(not tensor.any() for tensor in made)
    assert made[3].dtype == torch.int64
    assert torch.empty(4).isnan().all()


@pytest.fixture
def pretended(monkeypatch) -> None:
    """A device on which kernels could be compiled, and one thread that compiles them."""
    if not hasattr(pytest.importorskip("triton"), "AsyncCompileMode"):
        pytest.skip("this Triton compiles each kernel at its first use")
    monkeypatch.setattr(ahead, "triton_refusal", lambda *_: None)
    monkeypatch.setattr(ahead, "gluon_refusal", lambda *_: "not here")
    monkeypatch.setattr(ahead, "WORKERS", 1)
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)


def test_a_walk_that_fails_leaves_without_compiling_the_rest(pretended) -> None:
    """A host interrupts the walk itself too: at a loan of weights."""
    from triton.runtime._async_compile import active_mode

    started = threading.Event()
    compiled = []

    def compile_one(number: int):
        started.set()
        time.sleep(0.2)
        compiled.append(number)
        return types.SimpleNamespace(run=None)

    def walk() -> None:
        submit = active_mode.get().submit
        callbacks = [lambda _: None] * (len(inspect.signature(submit).parameters) - 2)  # one in Triton 3.6, two in 3.9
        for number in range(20):
            submit(number, functools.partial(compile_one, number), *callbacks)
        assert started.wait(10)
        raise Stop

    with pytest.raises(Stop):
        compile_ahead(walk, torch.device("cpu"), gluon_probes=())
    assert compiled == [0]


def test_walks_of_two_threads_leave_launching_as_it_was() -> None:
    """Whatever the order in which they end: a thread that has walked launches again."""
    jit = pytest.importorskip("triton.runtime.jit")
    asked = []
    original = jit.JITFunction.run
    first, second = ahead._launching_nothing(), ahead._launching_nothing()
    try:
        jit.JITFunction.run = lambda self, *args, grid, warmup, **options: asked.append(warmup)
        first.__enter__()
        with ThreadPoolExecutor(1) as other:
            other.submit(second.__enter__).result()
            jit.JITFunction.run(None, grid=None, warmup=False)
            first.__exit__(None, None, None)
            jit.JITFunction.run(None, grid=None, warmup=False)
            other.submit(jit.JITFunction.run, None, grid=None, warmup=False).result()
            other.submit(second.__exit__, None, None, None).result()
        jit.JITFunction.run(None, grid=None, warmup=False)
        assert asked == [True, False, True, False]
    finally:
        jit.JITFunction.run = original


def test_nothing_is_walked_where_no_kernel_can_run() -> None:
    assert compile_ahead(lambda: pytest.fail("walked"), torch.device("cpu"), gluon_probes=()) == 0


@pytest.fixture
def network() -> TurboWan:
    config = WanConfig(dim=256, ffn_dim=384, num_heads=2, num_layers=2, has_proj_l=True, quantized=True)
    net = TurboWan(config, device="meta")
    tensors = tiny.tiny_tensors(quantized=True)
    tensors, _ = native_names.to_native(native_names.plain_names(tensors, "test"), "", "test")
    tensors["patch_embedding.weight"] = tensors["patch_embedding.weight"].reshape(256, 16, 1, 2, 2)
    net.load({name: tensor.cuda() for name, tensor in tensors.items()})
    return net


def kernels() -> list:
    """Every kernel of the pack that is imported."""
    modules = [module for name, module in sys.modules.items() if name.startswith("turbowan.kernels")]
    return [value for module in modules for value in vars(module).values() if hasattr(value, "device_caches")]


def loaded() -> int:
    return sum(len(caches[0]) for kernel in kernels() for caches in kernel.device_caches.values())


@pytest.mark.gpu
def test_a_forward_after_it_compiles_nothing(network, tmp_path, monkeypatch) -> None:
    """An empty cache on disk: every kernel is compiled by the walk, which launches none, and the result is right."""
    from triton import knobs

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    x = torch.randn(1, 16, 3, 18, 14, device="cuda", dtype=torch.bfloat16)
    context = torch.randn(1, 512, 4096, device="cuda", dtype=torch.bfloat16)
    t = torch.tensor([988.0], device="cuda")
    launched = []
    hook = launched.append
    with torch.inference_mode():
        want = network(x, t, context)
        for kernel in kernels():
            kernel.device_caches.clear()
        knobs.runtime.launch_enter_hook.add(hook)
        try:
            count = network.compile_ahead(x, t, context)
            assert count == loaded() > 0
            assert not launched
            assert torch.equal(network(x, t, context), want)
            assert launched
        finally:
            knobs.runtime.launch_enter_hook.remove(hook)
        assert network.compile_ahead(x, t, context) == 0
        assert count == loaded()


@pytest.mark.gpu
@pytest.mark.parametrize("direction", ["decode", "encode"])
def test_a_vae_pass_of_any_size_after_it_compiles_nothing(direction, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    model = vae_weights.from_tensors(tiny.tiny_vae_tensors(96), device="cuda", dtype=torch.bfloat16)
    for kernel in kernels():
        kernel.device_caches.clear()
    assert model.compile_ahead(direction) > 0
    compiled = loaded()
    if direction == "decode":
        model.decode(torch.randn(1, 16, 4, 3, 5, device="cuda", dtype=torch.bfloat16))
    else:
        model.encode(torch.rand(1, 3, 13, 24, 40, device="cuda", dtype=torch.bfloat16))
    assert loaded() == compiled
