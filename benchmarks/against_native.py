"""Hold our dense network against ComfyUI's native WanModel: same weights, same timestep, one GPU.

    python -m turbowan.benchmarks.against_native --comfy DIR [--layers 30] [--size 832x480x81]

Both are compared with native's own fp32 result: ours in bf16 must be no farther from it than native's bf16 is.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys

import torch

from turbowan.benchmarks import synthetic
from turbowan.benchmarks.against_upstream import timed
from turbowan.benchmarks.dit_step import relative_error
from turbowan.turbo_core.attention import AttentionSettings
from turbowan.turbo_core.model import TurboWan


def native_model(config, tensors, dtype: torch.dtype) -> torch.nn.Module:
    import comfy.ldm.wan.model
    import comfy.ops

    net = comfy.ldm.wan.model.WanModel(
        dim=config.dim,
        ffn_dim=config.ffn_dim,
        num_heads=config.num_heads,
        num_layers=config.num_layers,
        in_dim=config.in_dim,
        device="cuda",
        dtype=dtype,
        operations=comfy.ops.disable_weight_init,
    )
    missing, unexpected = net.load_state_dict({n: t for n, t in tensors.items() if "proj_l" not in n}, strict=False)
    if missing or unexpected:
        raise SystemExit(f"native WanModel: missing {missing[:5]}, unexpected {unexpected[:5]}")
    return net.to(dtype) if dtype == torch.float32 else net


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfy", required=True)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--size", default="832x480x81")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    sys.path.insert(0, arguments.comfy)
    sys.argv = sys.argv[:1]

    width, height, frames = (int(part) for part in arguments.size.split("x"))
    device = torch.device("cuda")
    config = dataclasses.replace(synthetic.MODELS["1.3b"], num_layers=arguments.layers)
    tensors = synthetic.tensors(config, device, quantized=False)
    generator = torch.Generator(device=device).manual_seed(6)
    latent = ((frames - 1) // 4 + 1, height // 8, width // 8)
    x = torch.randn(1, 16, *latent, device=device, dtype=torch.bfloat16, generator=generator)
    context = torch.randn(1, 512, 4096, device=device, dtype=torch.bfloat16, generator=generator)
    t = torch.tensor([988.0], device=device)
    ours = TurboWan(config, device="meta")
    ours.load(tensors)
    ours.attention = AttentionSettings(mode="dense")

    native = native_model(config, tensors, torch.float32)
    exact = native(x.float(), t, context.float())
    ours32 = TurboWan(config, device="meta")
    ours32.load({name: tensor.float() for name, tensor in tensors.items()})
    ours32.attention = AttentionSettings(mode="dense")
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {arguments.size}, {arguments.layers} blocks, dense"
    )
    print(f"ours fp32 to native fp32:   {relative_error(ours32(x.float(), t, context.float()), exact):.2e}")
    del native, ours32
    torch.cuda.empty_cache()
    native = native_model(config, tensors, torch.bfloat16)
    theirs, own = (relative_error(net(x, t, context), exact) for net in (native, ours))
    print(f"native bf16 to native fp32: {theirs:.4e}\nours bf16 to native fp32:   {own:.4e}")
    if not own <= theirs:
        raise SystemExit("ours in bf16 is farther from fp32 than native's own bf16: nothing is timed")
    runs = {"native bf16 dense": lambda: native(x, t, context), "ours bf16 dense": lambda: ours(x, t, context)}
    for name, milliseconds in timed(runs, arguments.repeats).items():
        print(f"{name:18s} {milliseconds:8.1f} ms a step")


if __name__ == "__main__":
    main()
