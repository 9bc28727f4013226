"""Hold our dense network against ComfyUI's native WanModel: same weights, same timestep, one GPU.

    python -m turbowan.benchmarks.against_native --comfy DIR [--layers 30] [--size 832x480x81]

Both are compared with native's own fp32 result: ours in bf16 must be no farther from it than native's bf16 is.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import torch

from turbowan.benchmarks import native, synthetic
from turbowan.benchmarks.dit_step import relative_error
from turbowan.benchmarks.request import size_argument, size_text
from turbowan.benchmarks.timing import interleaved
from turbowan.turbo_core.attention import AttentionSettings
from turbowan.turbo_core.model import TurboWan
from turbowan.turbo_core.vae import latent_size


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfy", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--size", type=size_argument, default="832x480x81", help="width x height x frames")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    native.use(arguments.comfy)

    width, height, frames = arguments.size
    device = torch.device("cuda")
    config = dataclasses.replace(synthetic.MODELS["1.3b"], num_layers=arguments.layers)
    tensors = synthetic.tensors(config, device, quantized=False)
    generator = torch.Generator(device=device).manual_seed(6)
    x = torch.randn(
        1, 16, *latent_size(frames, height, width), device=device, dtype=torch.bfloat16, generator=generator
    )
    context = torch.randn(1, 512, 4096, device=device, dtype=torch.bfloat16, generator=generator)
    t = torch.tensor([988.0], device=device)
    ours = TurboWan(config, device="meta")
    ours.load(tensors)
    ours.attention = AttentionSettings(mode="dense")

    theirs = native.network(config, tensors, torch.float32)
    exact = theirs(x.float(), t, context.float())
    ours32 = TurboWan(config, device="meta")
    ours32.load({name: tensor.float() for name, tensor in tensors.items()})
    ours32.attention = AttentionSettings(mode="dense")
    size = size_text(arguments.size)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {size}, {arguments.layers} blocks, dense")
    print(f"ours fp32 to native fp32:   {relative_error(ours32(x.float(), t, context.float()), exact):.2e}")
    del theirs, ours32
    torch.cuda.empty_cache()
    theirs = native.network(config, tensors, torch.bfloat16)
    error, own = (relative_error(net(x, t, context), exact) for net in (theirs, ours))
    print(f"native bf16 to native fp32: {error:.4e}\nours bf16 to native fp32:   {own:.4e}")
    if not own <= error:
        raise SystemExit("ours in bf16 is farther from fp32 than native's own bf16: nothing is timed")
    runs = {"native bf16 dense": lambda: theirs(x, t, context), "ours bf16 dense": lambda: ours(x, t, context)}
    for name, timing in interleaved(runs, arguments.repeats).items():
        print(f"{name:18s} {timing.ms:8.1f} ms a step")


if __name__ == "__main__":
    main()
