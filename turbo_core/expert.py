"""A network whose weights lie in the system's memory, mapped from their file, and on the device while it is its turn.

On a GPU that cannot hold them all, the blocks that do not fit stay where they are: every layer lends its weights on
the device of its input (`layers`), so that they come over one layer at a time, in each step. What the activations of a
forward need is left free; measured peaks (docs/facts.md) are

    tokens · (12 · dim + h · ffn) + 24 · dim²      h: 1 where the hidden layer is kept as codes, else 4
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import at_precision, attention
from .attention import AttentionSettings
from .block_int8 import Progress
from .checkpoint import FLOATS, Checkpoint
from .config import WanConfig
from .file_reading import MappedFile
from .model import TurboWan
from .native_names import is_block_linear_weight

log = logging.getLogger("turbowan")

MARGIN = 1.15  # on the measured peaks
SMALL = 1 << 20  # bytes


@dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """How a network computes; the nodes' loader has the same choices."""

    attention: str = "auto"
    topk: float = 0.1
    precision: str = "auto"


class Expert:
    """A network over a checkpoint, ready to be brought to `device` and computing in `dtype`."""

    def __init__(
        self,
        source: Checkpoint,
        settings: NetworkSettings,
        device: torch.device,
        dtype: torch.dtype,
        progress: Progress | None = None,
    ) -> None:
        self.source, self.device, self.dtype = source, device, dtype
        self._file = MappedFile(source.path, source.spans)
        chosen = check_settings(source, settings, device, dtype)
        attention.warn_of_cost(chosen, source.config)
        with torch.no_grad():
            weights = at_precision.at_precision(source, settings.precision, device, progress)
        with torch.device("meta"):
            self.network = TurboWan(weights.config).eval()
        self.network.load(weights.tensors)
        self.network.attention = chosen
        if settings.precision == "exact":
            self.network.set_activation_rows(at_precision.PUBLISHED_ROWS)
        self._home: list[tuple[_Place, Tensor]] = []
        """What was brought over: where it belongs, and what lay there."""

    @property
    def nbytes(self) -> int:
        """Of all weights on the device."""
        return sum(self._size(place) for place in _places(self.network))

    @property
    def here(self) -> bool:
        """Whether some of its weights, or on the CPU all, are on the device."""
        return bool(self._home) or self.device.type == "cpu"

    def bring(self, free_bytes: int, tokens: int) -> None:
        """Copy weights to the device until what is left of `free_bytes` is what a forward of `tokens` needs."""
        if self.here:
            return
        room = free_bytes - working_bytes(self.network.config, tokens)
        left_out = 0
        fitting: list[_Place] = []
        for place in _places(self.network):
            if self._size(place) > room:
                left_out += self._size(place)
                continue
            room -= self._size(place)
            fitting.append(place)
        brought = self._file.to_device([place.weight for place in fitting], self.device)
        for place, weight in zip(fitting, brought, strict=True):
            dtype = self._dtype_there(place)
            self._home.append((place, place.weight))
            place.put(weight.to(dtype))
        if left_out:
            log.warning(
                "%s: %.1f of %.1f GiB of weights stay in system memory and come over in each step; the GPU has no room "
                "for them beside %d tokens",
                *(self.source.path.name, left_out / 2**30, self.nbytes / 2**30, tokens),
            )

    def release(self) -> None:
        """Give the device's memory back; the weights are where they were."""
        for place, weight in self._home:
            place.put(weight)
        self._home.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _size(self, place: _Place) -> int:
        return place.weight.numel() * self._dtype_there(place).itemsize

    def _dtype_there(self, place: _Place) -> torch.dtype:
        """Dense block matrices are kept in what they compute in; everything else is small, or codes."""
        weight = place.weight
        return self.dtype if weight.dtype in FLOATS and is_block_linear_weight(place.path, weight) else weight.dtype


def check_settings(
    source: Checkpoint, settings: NetworkSettings, device: torch.device, dtype: torch.dtype
) -> AttentionSettings:
    """The attention that the settings mean; an error where this file or device cannot serve them."""
    at_precision.check(source, settings.precision, device, dtype)
    return attention.resolve(settings.attention, settings.topk, source.config, device, dtype)


def working_bytes(config: WanConfig, tokens: int) -> int:
    """Beside its weights, what a forward of a network takes on a GPU."""
    hidden = config.ffn_dim * (1 if config.quantized else 4)
    return int(MARGIN * (tokens * (12 * config.dim + hidden) + 24 * config.dim**2))


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where a module keeps a weight."""

    owner: dict[str, Tensor | None]
    name: str
    path: str
    """In the network."""

    @property
    def weight(self) -> Tensor:
        return self.owner[self.name]

    def put(self, weight: Tensor) -> None:
        parameter = isinstance(self.weight, nn.Parameter) and not isinstance(weight, nn.Parameter)
        self.owner[self.name] = nn.Parameter(weight, requires_grad=False) if parameter else weight


def _places(network: nn.Module) -> list[_Place]:
    """Of every weight, the small ones first: those are many, and each would have to wait for its copy."""
    found = [
        _Place(owner=owner, name=name, path=f"{module_path}.{name}")
        for module_path, module in network.named_modules()
        for owner in (module._parameters, module._buffers)
        for name, tensor in owner.items()
        if tensor is not None
    ]
    return sorted(found, key=lambda place: place.weight.nbytes > SMALL)
