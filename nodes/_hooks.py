"""ComfyUI's transformer_options, as the core's hooks: what other people's nodes change inside a Wan forward."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor

from ..turbo_core.hooks import BlockInputs, Hooks
from ..turbo_core.rope import RopeOptions
from ..turbo_core.text import EmbeddedText
from ._operations import throw_if_interrupted

Options = dict[str, Any]


def rope_options(options: Options) -> RopeOptions:
    """The host's rope_options (ScaleROPE); names that Wan does not know are the other models' own."""
    given = options.get("rope_options") or {}
    names = {field.name for field in dataclasses.fields(RopeOptions)}
    return RopeOptions(**{name: value for name, value in given.items() if name in names})


class ComfyHooks(Hooks):
    """Calls the patches found in one forward's transformer_options, with the arguments native Wan gives them."""

    def __init__(self, options: Options) -> None:
        self.options = options

    def start(self, grid: tuple[int, int, int], block_count: int) -> None:
        self.options.update(grid_sizes=grid, total_blocks=block_count, block_type="double")

    def interrupted(self) -> None:
        throw_if_interrupted()

    def block(self, index: int, run: Callable[[BlockInputs], Tensor], inputs: BlockInputs) -> Tensor:
        self.options["block_index"] = index
        replacement = self.options.get("patches_replace", {}).get("dit", {}).get(("double_block", index))
        if replacement is None:
            return run(inputs)

        def original(args: Options) -> Options:
            outer, self.options = self.options, args.get("transformer_options", self.options)
            try:
                # A patch may have changed txt, in place too: nothing that was made of it before is taken over.
                return {"img": run(BlockInputs(args["img"], EmbeddedText(args["txt"]), args["vec"], args["pe"]))}
            finally:
                self.options = outer

        args = {
            "img": inputs.x,
            "txt": inputs.text.x,
            "vec": inputs.modulation,
            "pe": inputs.rotation,
            "transformer_options": self.options,
        }
        try:
            return replacement(args, {"original_block": original})["img"]
        finally:
            inputs.text.forget()

    def after_block(self, index: int, x: Tensor, latent: Tensor, time: Tensor) -> Tensor:
        for patch in self._patches("double_block"):
            x = patch(
                {
                    "img": x,
                    "x": latent,
                    "vec": time.unsqueeze(1),
                    "block_index": index,
                    "img_offset": 0,
                    "transformer_options": self.options,
                }
            )["img"]
        return x

    def dense_attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads = q.shape[2]
        out = optimized_attention(
            q.flatten(2), k.flatten(2), v.flatten(2), heads=heads, transformer_options=self.options
        )
        return out.unflatten(2, (heads, -1))

    def replaces_dense_attention(self) -> bool:
        return "optimized_attention_override" in self.options

    def self_attention_patch(self) -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
        patches = self._patches("attn1_patch")
        if not patches:
            return None

        def apply(out: Tensor, q: Tensor, k: Tensor) -> Tensor:
            for patch in patches:
                out = patch({"x": out, "q": q, "k": k, "transformer_options": self.options})
            return out

        return apply

    def cross_attention(self, x: Tensor) -> Tensor:
        for patch in self._patches("attn2_patch"):
            x = patch({"x": x, "transformer_options": self.options})
        return x

    def _patches(self, name: str) -> list[Callable[[Options], Any]]:
        return self.options.get("patches", {}).get(name, [])
