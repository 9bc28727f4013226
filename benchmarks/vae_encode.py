"""Time the encode of one image before grey frames, what TurboImageToVideo does, against the encode of the whole clip.

    python -m turbowan.benchmarks.vae_encode [--comfy DIR] [--size 832x480x81] [--repeats 5]

Random weights at the released width in bf16. The still encode is first held against the fp32 encode of the whole clip:
it must be as near to it as the bf16 encode of the whole clip is. `--comfy` adds ComfyUI's own encoder, in turns.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from turbowan.benchmarks.against_upstream import timed
from turbowan.benchmarks.dit_step import relative_error
from turbowan.turbo_core import vae

ALLOWANCE = 1.02  # of the whole clip's own error: the passes round elsewhere
LARGE_BUDGET = 2**40


def random_weights(device: torch.device) -> dict[str, Tensor]:
    """Activations stay of order 1: weights scaled by 1/√fan-in, norms near 1."""
    generator = torch.Generator(device=device).manual_seed(0)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in vae.WanVAE(vae.VAEConfig()).state_dict().items()}
    out = {}
    for name, shape in shapes.items():
        tensor = torch.randn(shape, device=device, generator=generator)
        if name.endswith("gamma"):
            out[name] = 1 + 0.1 * tensor
        elif name.endswith("bias"):
            out[name] = 0.1 * tensor
        else:
            out[name] = tensor / tensor[0].numel() ** 0.5
    return out


def native_encoder(weights: dict[str, Tensor], folder: str) -> Callable[[Tensor], Tensor]:
    sys.path.insert(0, folder)
    sys.argv = sys.argv[:1]
    import comfy.ldm.wan.vae

    module = comfy.ldm.wan.vae.WanVAE(
        dim=96, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2, attn_scales=[],
        temperal_downsample=[False, True, True], dropout=0.0,
    )  # fmt: skip
    module.load_state_dict(weights)
    return module.to("cuda", torch.bfloat16).eval().encode


def peak_gib(run: Callable[[], Tensor]) -> float:
    """Above what was there before, the result included."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**30


def check(weights: dict[str, Tensor], model: vae.WanVAE, start: Tensor, whole: Tensor) -> None:
    exact = vae.from_tensors(weights).encode(whole[..., :128, :208].float())
    errors = [
        relative_error(out, exact)
        for out in (model.encode(whole[..., :128, :208]), model.encode(start[..., :128, :208], length=whole.shape[2]))
    ]
    print("error to the fp32 encode of the whole clip, 208x128: whole {:.4e}, still {:.4e}".format(*errors))
    if not errors[1] <= ALLOWANCE * errors[0]:
        raise SystemExit("the still encode is wrong: nothing is timed")


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfy")
    parser.add_argument("--size", default="832x480x81")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    width, height, frames = (int(part) for part in arguments.size.split("x"))
    device = torch.device("cuda")
    weights = random_weights(device)
    model = vae.from_tensors(weights, dtype=torch.bfloat16)
    start = torch.zeros(1, 3, 2, height, width, device=device, dtype=torch.bfloat16)
    start[:, :, 0].uniform_(-1, 1, generator=torch.Generator(device=device).manual_seed(1))
    whole = torch.cat([start, start[:, :, 1:].expand(-1, -1, frames - 2, -1, -1)], 2)
    check(weights, model, start, whole)

    runs = {
        "whole clip": lambda: model.encode(whole),
        "still": lambda: model.encode(start, length=frames),
        "still, large passes": lambda: model.encode(start, length=frames, memory_budget_bytes=LARGE_BUDGET),
    }
    if arguments.comfy:
        native = native_encoder(weights, arguments.comfy)
        runs = {"ComfyUI": lambda: native(whole)} | runs
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {arguments.size}")
    peaks = {name: peak_gib(run) for name, run in runs.items()}
    for name, ms in timed(runs, arguments.repeats).items():
        print(f"{name:20} {ms:8.1f} ms  {peaks[name]:.2f} GiB")


if __name__ == "__main__":
    main()
