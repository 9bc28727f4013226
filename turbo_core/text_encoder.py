"""Prompts to conditioning, as ComfyUI makes it for Wan: umT5's last states, [1, 512, dim] fp32, padding rows zero.

Only a prompt's own tokens are computed: padding is masked in every layer and zeroed at the end, so that leaving it out
changes nothing. A longer prompt keeps all its tokens, as in ComfyUI.

The network is transformers', the weights stay where the file is mapped: each layer brings its own to the device for
the length of its product. umT5-XXL so takes the memory of one layer, some 0.3 GB, on a GPU and (in fp32) on a CPU
alike, and the time that reading the file once takes, for one prompt or for many.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .errors import CheckpointError
from .umt5_file import Stored, UMT5File, UMT5Shape, read

LENGTH = 512
MAX_DISTANCE = 128  # from which on relative positions share a bucket
EPS = 1e-6
TOKENS_AT_ONCE = (
    4096  # of several prompts: 1.5 GiB of attention scores in umT5-XXL if they are long, 0.4 if they are not
)

Progress = Callable[[int, int], None]
"""Called with (blocks done, blocks in all)."""


class TextEncoder:
    """A umT5 encoder over its file."""

    def __init__(self, file: UMT5File) -> None:
        from sentencepiece import SentencePieceProcessor

        self.shape = file.shape
        self._embedding = file.weights["shared.weight"]
        self._network = _network(file)
        try:
            self._tokenizer = SentencePieceProcessor(model_proto=file.tokenizer)
        except RuntimeError as error:
            raise CheckpointError(
                f"text encoder: the sentencepiece model in {file.path.name} must be readable, it is not ({error}); "
                "download the file again"
            ) from error
        if self._tokenizer.get_piece_size() > self.shape.vocabulary:
            raise CheckpointError(
                f"text encoder: {file.path.name} must have a state for each token, its sentencepiece model knows "
                f"{self._tokenizer.get_piece_size()} and its embedding {self.shape.vocabulary}; download it again"
            )

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> TextEncoder:
        return cls(read(path))

    def tokens(self, prompt: str) -> list[int]:
        """The prompt's tokens and the end of text. The text is taken as it stands: parentheses are no weights."""
        return [*self._tokenizer.encode(prompt), self._tokenizer.eos_id()]

    @torch.inference_mode()
    def encode(
        self,
        prompts: Sequence[str],
        device: torch.device,
        *,
        progress: Progress | None = None,
        interrupted: Callable[[], None] | None = None,
    ) -> list[Tensor]:
        """Conditioning of each prompt on the CPU, many of them in one walk through the weights.

        Args:
            interrupted: called before each block; raises to cancel.
        """
        tokens = [self.tokens(prompt) for prompt in prompts]
        groups = _groups([len(row) for row in tokens])
        self._network.to(device)  # norms and position biases: 24 MB in umT5-XXL
        states: list[Tensor] = []
        total = len(groups) * self.shape.num_layers
        for number, group in enumerate(groups):

            def report(done: int, first: int = number * self.shape.num_layers) -> None:
                if progress is not None:
                    progress(first + done, total)

            with self._watched(report, interrupted or (lambda: None)):
                states += self._encode(tokens[group], device)
        return states

    def _encode(self, tokens: list[list[int]], device: torch.device) -> list[Tensor]:
        longest = max(map(len, tokens))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in tokens])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in tokens])
        embedded = self._embedding.rows(ids, torch.float32).to(device)
        states = self._network(inputs_embeds=embedded, attention_mask=mask.to(device)).last_hidden_state.cpu()
        if not torch.isfinite(states[mask.bool()]).all():
            raise CheckpointError(
                "text encoder: its states must be finite, got NaN or infinity; the file is damaged: download it again"
            )
        return [_padded(row[: len(own)]) for row, own in zip(states, tokens, strict=True)]

    @contextmanager
    def _watched(self, done: Callable[[int], None], interrupted: Callable[[], None]) -> Iterator[None]:
        """Calls around each block."""
        handles = []
        for index, block in enumerate(self._network.block, 1):

            def before(*_: object) -> None:
                interrupted()

            def after(*_: object, index: int = index) -> None:
                done(index)

            handles += [block.register_forward_pre_hook(before), block.register_forward_hook(after)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


class _StoredLinear(nn.Module):
    """y = x Wᵀ with W from the file for the length of the call."""

    weight = None  # transformers casts to the type of some layers' weight, which here would be fp8

    def __init__(self, stored: Stored) -> None:
        super().__init__()
        self.stored = stored

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.stored.on(x.device, x.dtype))


def _network(file: UMT5File) -> nn.Module:
    """transformers' encoder stack with every Linear over the file, and small tensors in fp32."""
    from transformers.models.umt5.modeling_umt5 import UMT5Stack

    with torch.device("meta"):
        network = UMT5Stack(_config(file.shape)).eval()
    network.embed_tokens = nn.Identity()  # it gets embedded tokens
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.Linear):
            parent, _, own = name.rpartition(".")
            setattr(network.get_submodule(parent), own, _StoredLinear(file.weights[f"encoder.{name}.weight"]))
    small = {
        name: file.weights[f"encoder.{name}"].on(torch.device("cpu"), torch.float32) for name in network.state_dict()
    }
    network.load_state_dict(small, assign=True)
    return network.requires_grad_(False)


def _config(shape: UMT5Shape) -> object:
    from transformers import UMT5Config

    return UMT5Config(
        vocab_size=shape.vocabulary,
        d_model=shape.dim,
        d_kv=shape.head_dim,
        d_ff=shape.ffn_dim,
        num_layers=shape.num_layers,
        num_heads=shape.num_heads,
        relative_attention_num_buckets=shape.buckets,
        relative_attention_max_distance=MAX_DISTANCE,
        layer_norm_epsilon=EPS,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
        use_cache=False,
        attn_implementation="eager",
    )


def _groups(lengths: Sequence[int]) -> list[slice]:
    """Neighbours that are encoded together, padded to the longest of them: TOKENS_AT_ONCE in all at most."""
    groups: list[slice] = []
    first, longest = 0, 0
    for index, length in enumerate(lengths):
        longest = max(longest, length)
        if index > first and longest * (index + 1 - first) > TOKENS_AT_ONCE:
            groups.append(slice(first, index))
            first, longest = index, length
    return [*groups, slice(first, len(lengths))] if lengths else []


def _padded(states: Tensor) -> Tensor:
    """[tokens, dim] → [1, at least 512, dim], zeros behind the tokens."""
    out = states.new_zeros(1, max(LENGTH, len(states)), states.shape[1])
    out[0, : len(states)] = states
    return out
