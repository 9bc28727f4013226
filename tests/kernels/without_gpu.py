"""Compile ahead for a GPU that is not there, then run without launching; prints a JSON line a kernel. Run by a test.

    python without_gpu.py CAPABILITY ATTENTION WEIGHTS       WEIGHTS: bf16, int8 or channelwise
    python without_gpu.py CAPABILITY vae bf16

Triton gets a driver that knows the GPU's properties and loads nothing; tensors are the CPU's, but say they are a GPU's.
Everything from the launchers to ptxas is real.
"""

from __future__ import annotations

import contextlib
import json
import sys
import types
from collections.abc import Iterator

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

SHARED_MEMORY = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 120: 101_376}  # bytes a program may take
MULTIPROCESSORS = 132
LATENTS = ((1, 1, 1), (1, 3, 5), (2, 2, 2), (3, 2, 3), (4, 3, 5), (6, 2, 1))  # frames, height, width

capability, attention, weights = int(sys.argv[1]), *sys.argv[2:]
properties = types.SimpleNamespace(
    multi_processor_count=MULTIPROCESSORS,
    shared_memory_per_block_optin=SHARED_MEMORY[capability],
    major=capability // 10,
    minor=capability % 10,
)


def tell(what: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(what) + "\n")  # one write, because several threads tell
    sys.stdout.flush()


class Launcher:
    allowed = False

    def __init__(self, *_: object) -> None:
        pass

    def __call__(self, *_: object) -> None:
        if not self.allowed:
            raise AssertionError("a kernel was launched")


@contextlib.contextmanager
def launching() -> Iterator[None]:
    """Launches do nothing, and what no kernel fills is zeros."""
    Launcher.allowed = True
    with _Zeros():
        yield
    Launcher.allowed = False


def forget() -> None:
    """Every kernel is loaded anew, as in a new process with this one's cache on disk."""
    for name, module in list(sys.modules.items()):
        for value in vars(module).values() if name.startswith("turbowan.kernels") else ():
            if hasattr(value, "device_caches"):
                value.device_caches.clear()


class Utils:
    @staticmethod
    def load_binary(name: str, binary: bytes, shared: int, device: int) -> tuple:
        tell({"kernel": name, "shared": shared, "bytes": len(binary)})
        return object(), object(), 0, 0, 1024

    @staticmethod
    def get_device_properties(device: int) -> dict[str, int]:
        return {
            "max_shared_mem": SHARED_MEMORY[capability],
            "multiprocessor_count": MULTIPROCESSORS,
            "warpSize": 32,
        }


class Driver:
    utils, launcher_cls = Utils, Launcher

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", capability, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


driver.set_active(Driver())
torch.Tensor.is_cuda = True
torch.cuda.get_device_capability = lambda *_: (capability // 10, capability % 10)
torch.cuda.get_device_properties = lambda *_: properties
torch.cuda.current_device = lambda: 0
torch.cuda.set_device = lambda *_: None
torch.cuda.device = lambda *_: contextlib.nullcontext()

from turbowan.kernels import dispatch  # noqa: E402

hopper = capability == 90
dispatch.triton_refusal = lambda device, least=(8, 0): None if (capability // 10, capability % 10) >= least else "old"
dispatch.gluon_refusal = lambda *_: None if hopper else "not here"
dispatch.use_tma = lambda device: hopper

from turbowan.benchmarks import random_vae, synthetic  # noqa: E402
from turbowan.kernels.compile_ahead import _Zeros  # noqa: E402
from turbowan.turbo_core import channelwise, vae_layers, vae_passes, vae_weights  # noqa: E402
from turbowan.turbo_core.attention import AttentionSettings  # noqa: E402
from turbowan.turbo_core.config import WanConfig  # noqa: E402
from turbowan.turbo_core.model import TurboWan  # noqa: E402


class ChannelsLast(types.ModuleType):
    """torch for `vae_passes`, which keeps the CPU's clips in another layout."""

    contiguous_format = torch.channels_last_3d

    def __getattr__(self, name: str) -> object:
        return getattr(torch, name)


class ConvolvesNothing(types.ModuleType):
    """torch.nn.functional for `vae_layers`: a CPU with AVX2 alone takes minutes for bf16 that nobody looks at."""

    def __getattr__(self, name: str) -> object:
        return getattr(torch.nn.functional, name)

    @staticmethod
    def conv3d(x: torch.Tensor, weight: torch.Tensor, _: None, stride: tuple, padding: tuple) -> torch.Tensor:
        lengths = zip(x.shape[2:], weight.shape[2:], stride, padding, strict=True)
        size = [(length + 2 * pad - kernel) // step + 1 for length, kernel, step, pad in lengths]
        shape = (x.shape[0], weight.shape[0], *size)
        return torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last_3d).zero_()


def compile_vae() -> None:
    vae_passes.torch = ChannelsLast("torch")
    vae_layers.F = ConvolvesNothing("functional")
    model = vae_weights.from_tensors(random_vae.tensors(96))
    for direction in ("decode", "encode"):
        forget()
        tell({"asked for": model.compile_ahead(direction)})
        with launching():
            for frames, height, width in LATENTS:
                if direction == "decode":
                    model.decode(torch.zeros(1, 16, frames, height, width, dtype=torch.bfloat16))
                else:
                    model.encode(torch.zeros(1, 3, 4 * frames - 3, 8 * height, 8 * width, dtype=torch.bfloat16))
        tell({"asked for": model.compile_ahead(direction)})


def compile_forwards() -> None:
    config = WanConfig(dim=1536, ffn_dim=8960, num_heads=12, num_layers=1, has_proj_l=True)
    device = torch.device("cpu")
    tensors = synthetic.tensors(config, device, quantized=weights == "int8")
    if weights == "channelwise":
        tensors, _ = channelwise.to_row_codes(tensors, torch.int8, device)
    network = TurboWan(config, device="meta")
    network.load(tensors)
    network.attention = AttentionSettings(mode=attention, topk=0.1)
    for batch, size in ((1, (3, 30, 52)), (1, (1, 2, 6)), (2, (2, 18, 16)), (2, (1, 6, 10))):
        x = torch.randn(batch, 16, *size, dtype=torch.bfloat16)
        timestep, context = torch.full((batch,), 988.0), torch.randn(batch, 512, 4096, dtype=torch.bfloat16)
        with torch.inference_mode():
            count = network.compile_ahead(x, timestep, context)
            with launching():
                network(x, timestep, context)
        tell({"asked for": count})


compile_vae() if attention == "vae" else compile_forwards()
