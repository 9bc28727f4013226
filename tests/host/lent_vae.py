"""A VAE whose weights ComfyUI streams, without a GPU: prints what a decode lent and what counts as free, as JSON.

    python lent_vae.py CHECKOUT PACK VAE_FILE

Run by `test_lent_vae`. The host streams only where comfy-aimdo works, and that needs a GPU. Here its two functions that
lend a module's weights are stood in for: half of the modules find room to stay, the others share one buffer, which
each of them overwrites.
"""

from __future__ import annotations

import importlib
import json
import sys
import types
from pathlib import Path
from typing import Any

import alone
import torch
from torch import Tensor, nn

CHECKOUT, PACK, VAE_FILE = map(Path, sys.argv[1:])


class Lender:
    """In place of the host's streaming: who has which weights out on loan, and who has asked for some."""

    def __init__(self) -> None:
        self.out: list[nn.Module] = []
        self.asked: list[nn.Module] = []
        self._buffer = torch.empty(0)

    def lend(self, module: nn.Module, *, dtype: torch.dtype, **_: object) -> tuple[Tensor, Tensor, object]:
        self.out.append(module)
        self.asked.append(module)
        module._v_signature = "kept" if module.has_room else None
        if module.has_room:
            return module.lent_weight, module.lent_bias, "loan"
        weight, bias = module.lent_weight, module.lent_bias
        if self._buffer.numel() < weight.numel() + bias.numel():
            self._buffer = torch.empty(4 * (weight.numel() + bias.numel()))
        place = self._buffer[: weight.numel()].view_as(weight).copy_(weight)
        return place, self._buffer[weight.numel() :][: bias.numel()].copy_(bias), "loan"

    def give_back(self, module: nn.Module, weight: Tensor, bias: Tensor, loan: object) -> None:
        assert loan == "loan"
        self.out.remove(module)


def import_pack() -> tuple[types.ModuleType, types.ModuleType, types.ModuleType]:
    """The host's `comfy.sd` and the pack's `nodes._decode` and `nodes._wan_vae`, for the CPU."""
    alone.enter(CHECKOUT)
    decode, wan_vae = alone.import_pack(PACK, "_decode", "_wan_vae")
    return importlib.import_module("comfy.sd"), decode, wan_vae


def stream(model: nn.Module) -> None:
    """Move the convolutions' weights out of the model's reach: what it holds itself is no use any more."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            module._v, module._v_signature, module.has_room = object(), None, module.out_channels % 16 == 0
            module.lent_weight, module.lent_bias = module.weight.detach().clone(), module.bias.detach().clone()
            module.weight.fill_(float("nan"))
            module.bias.zero_()


@torch.inference_mode()
def main() -> None:
    sd, decode, wan_vae = import_pack()
    from safetensors.torch import load_file

    vae = sd.VAE(sd=load_file(VAE_FILE))
    latent = torch.randn(1, 16, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    wanted = decode.decode(vae, latent)
    stream(vae.first_stage_model)
    lender = Lender()
    ops = importlib.import_module("comfy.ops")
    ops.cast_bias_weight, ops.uncast_bias_weight = lender.lend, lender.give_back
    same = torch.equal(decode.decode(vae, latent), wanted)
    names = {module: name for name, module in vae.first_stage_model.named_modules()}
    asked = sorted(names[module] for module in lender.asked)
    open_loans = len(lender.out)

    def fail(*_: object) -> None:
        during.append(len(lender.out))
        raise InterruptedError

    during: list[int] = []
    try:
        with decode.lend_decoder(vae, latent) as decoder:
            decoder.run(fail)
    except InterruptedError:
        pass
    kept = sum(module.has_room for module in lender.asked) // 2
    report = {"same": same, "asked": asked, "open": [open_loans, *during, len(lender.out)], "kept": kept}
    print(json.dumps(report | {"free": free(wan_vae, vae)}))


def free(wan_vae: types.ModuleType, vae: Any) -> dict[str, int]:
    """What `free_memory` says where 5 bytes are free and loaded models hold others; and the budget of 1,000 bytes."""
    management = importlib.import_module("comfy.model_management")
    management.get_free_memory = lambda device: 5

    def holding(size: int, *, model: Any = None, device: str = "cuda", **streaming: Any) -> types.SimpleNamespace:
        """A loaded model of `size` bytes and one more that streaming does not give up."""
        model = model or types.SimpleNamespace()
        model.model_loaded_weight_memory = 1
        patcher = types.SimpleNamespace(model=model, loaded_size=lambda: size + 1, **streaming)
        return types.SimpleNamespace(model=patcher, device=torch.device(device))

    def streams() -> bool:
        return True

    ours = types.SimpleNamespace(device=torch.device("cuda"), first_stage_model=types.SimpleNamespace())
    loaded = {
        "none": [],
        "streamed": [holding(2, is_dynamic=streams), holding(3, is_dynamic=streams)],
        "not streamed": [holding(2, is_dynamic=lambda: False)],
        "older": [holding(2)],
        "itself": [holding(2, model=ours.first_stage_model, is_dynamic=streams)],
        "elsewhere": [holding(2, device="cpu", is_dynamic=streams)],
        "gone": [types.SimpleNamespace(model=None, device=ours.device)],
    }
    found = {}
    for name, entries in loaded.items():
        management.current_loaded_models = entries
        found[name] = wan_vae.free_memory(ours)
    management.current_loaded_models = []
    wan_vae.free_memory = lambda vae: 1000
    with wan_vae.lend(vae, "decode", lambda ours: ours.plan_decode((1, 4, 4), chunk=None, budget=None)) as (_, budget):
        return found | {"budget": budget}


main()
