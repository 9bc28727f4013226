"""The least time a step, a decode or an encode can take on a GPU: counted work over its ceilings.

    floor = Σ over operations of max(FLOPs / rate, bytes / copy rate)

An operation is what one kernel of an ideal implementation does: every norm with its quantization, every epilogue
(bias, GELU, gate, residual) inside its product, each input read and each output written once. Left out: text and time
embeddings and the head (under 1 %), and that two operations may overlap.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from turbowan.benchmarks.ceilings import Ceilings
from turbowan.kernels.routing import BLOCK_K, kept_blocks
from turbowan.turbo_core.config import WanConfig
from turbowan.turbo_core.vae import WanVAE
from turbowan.turbo_core.vae_still import StillClip

HALF = 2  # bytes of bf16
TEXT_TOKENS = 512


@dataclass(frozen=True, kw_only=True)
class Work:
    """One operation: 8-bit, 16-bit and attention FLOPs, and the bytes it reads and writes."""

    name: str
    int8: float = 0
    bf16: float = 0
    attention: float = 0
    bytes: float = 0

    def milliseconds(self, ceilings: Ceilings) -> float:
        compute = self.int8 / ceilings.int8 + self.bf16 / ceilings.bf16 + self.attention / ceilings.attention
        return max(compute, self.bytes / ceilings.copy) / 1e9


def total_ms(works: Iterable[Work], ceilings: Ceilings) -> float:
    return sum(work.milliseconds(ceilings) for work in works)


def combined(name: str, works: Iterable[Work]) -> Work:
    """One kernel that does all of it."""
    works = list(works)
    kinds = ("int8", "bf16", "attention", "bytes")
    return Work(name=name, **{kind: sum(getattr(work, kind) for work in works) for kind in kinds})


def tokens_of(size: tuple[int, int, int]) -> int:
    """Tokens of a video of width, height, frames."""
    width, height, frames = size
    return ((frames - 1) // 4 + 1) * (height // 16) * (width // 16)


def linear(
    name: str, rows: int, columns: int, inner: int, *, bits: int, extra_bytes: float = 0, out: int = HALF
) -> Work:
    """[rows, inner] · [columns, inner]ᵀ, operands of `bits`, `out` bytes an output element."""
    flops = 2.0 * rows * columns * inner
    operands = (rows * inner + columns * inner) * bits / 8
    kind = {"int8": flops} if bits == 8 else {"bf16": flops}
    return Work(name=name, bytes=operands + rows * columns * out + extra_bytes, **kind)


def block(config: WanConfig, tokens: int, *, bits: int, mode: str, topk: float) -> list[Work]:
    """One transformer block over `tokens` tokens; `mode` is dense, or any of the sparse ones."""
    length, dim, ffn = tokens, config.dim, config.ffn_dim
    code = bits // 8  # bytes of an element that feeds a product
    half = HALF * length * dim  # one 16-bit tensor of tokens
    fed = code * length * dim  # the same as a product's input
    norm = half + fed
    residual = half  # x, read by an epilogue
    return [
        Work(name="norm 1", bytes=norm),
        linear("q, k, v", length, 3 * dim, dim, bits=bits),
        Work(name="q, k norm, rotation", bytes=4 * half),
        *self_attention(config, length, mode, topk, fed),
        linear("self o", length, dim, dim, bits=bits, extra_bytes=residual),
        Work(name="norm 3", bytes=norm),
        linear("cross q", length, dim, dim, bits=bits),
        Work(name="cross q norm", bytes=2 * half),
        Work(name="cross attention", attention=4.0 * length * TEXT_TOKENS * dim, bytes=half + fed),
        linear("cross o", length, dim, dim, bits=bits, extra_bytes=residual),
        Work(name="norm 2", bytes=norm),
        linear("ffn up", length, ffn, dim, bits=bits, out=code),
        linear("ffn down", length, dim, ffn, bits=bits, extra_bytes=residual),
    ]


def self_attention(config: WanConfig, length: int, mode: str, topk: float, fed: float) -> list[Work]:
    dim, head = config.dim, config.head_dim
    half = HALF * length * dim
    if mode == "dense":
        return [Work(name="attention", attention=4.0 * length * length * dim, bytes=3 * half + fed)]
    keys = min(length, kept_blocks(length, topk) * BLOCK_K)
    branch = 2.0 * length * head * dim
    return [
        Work(name="linear branch's sums", bf16=branch, bytes=2 * half),
        Work(name="attention", attention=4.0 * length * keys * dim, bf16=branch, bytes=3 * half + fed),
    ]


def step(config: WanConfig, tokens: int, *, bits: int, mode: str, topk: float = 0.1) -> list[Work]:
    """A forward of the whole network."""
    return block(config, tokens, bits=bits, mode=mode, topk=topk) * config.num_layers


def vae(shapes: Mapping[str, tuple[int, ...]], part: str, size: tuple[int, int, int]) -> list[Work]:
    """Decode or encode of a video of width, height, frames; `shapes` are a Wan 2.1 VAE's, `part` decoder or encoder.

    Convolutions alone, norms and activations inside them; each reads its input and writes its output once in 16 bits.
    A clip's first frames have fewer taps to sum, which at 81 frames is 1 % of the work and counted here.
    """
    width, height, frames = size
    pixels = width * height / 64  # of a latent frame
    works = []
    for name, shape in shapes.items():
        if not name.startswith(part + ".") or not name.endswith("weight") or len(shape) < 4:
            continue
        area, images = _place(name, part, (frames - 1) // 4)
        places = pixels * area * images
        flops = 2.0 * places * math.prod(shape)
        works.append(Work(name=name, bf16=flops, bytes=HALF * places * (shape[0] + shape[1])))
    return works


def start_image(net: WanVAE, size: tuple[int, int, int]) -> list[Work]:
    """Encode of one image before grey frames: of each layer's work the share of its frames that it must compute."""
    names = {module: name for name, module in net.named_modules()}
    clip, shares = StillClip(frames=size[2], distinct=min(2, size[2])), {}
    for level in net.encoder.levels():
        for layer in level.layers:
            shares[names[layer] + "."] = clip.wanted(layer) / clip.frames
            clip = clip.behind(layer)
    works = []
    for work in vae({name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}, "encoder", size):
        share = next(share for prefix, share in shares.items() if work.name.startswith(prefix))
        works.append(replace(work, bf16=share * work.bf16, bytes=share * work.bytes))
    return works


def _place(name: str, part: str, later: int) -> tuple[int, int]:
    """Where a convolution writes: area in latent pixels, images of a clip with `later` latent frames after the first.

    Both halves have four levels; from the latent up their areas are 1, 4, 16, 64 and a latent frame after the first is
    1, 2, 4, 4 images. A level's last layer resamples: in the decoder to the level above, in the encoder to the one
    below. `time_conv` does the temporal half of that and leaves the first frame alone.
    """
    areas, rates = (1, 4, 16, 64), (1, 2, 4, 4)
    decoding = part == "decoder"
    kind, index = name.split(".")[1:3]
    if kind == "middle":
        level = 0
    elif kind in ("head", "conv1"):
        level = 3 if (kind == "head") == decoding else 0
    else:
        level = int(index) // 4 if decoding else 3 - int(index) // 3
    if "time_conv" in name:
        level -= 0 if decoding else 1
        # In the decoder it runs before the upsampling, in the encoder after the downsampling.
        return areas[level], rates[level] * later
    if "resample" in name:
        # In the encoder the images are still those of the level above: time is halved afterwards.
        area = areas[level + 1] if decoding else areas[level - 1]
        return area, 1 + rates[level + 1 if decoding else level] * later
    return areas[level], 1 + rates[level] * later
