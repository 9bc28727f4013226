"""A trained transformer as users get one: block-int8, in TurboDiffusion's released layout or in native names.

    python -m turbowan.demo.export_dit work/t2v.safetensors demo/bundle/diffusion_models/TurboWanDemo-T2V-quant.pth
    python -m turbowan.demo.export_dit work/i2v_high.safetensors --expert high \
        demo/bundle/diffusion_models/TurboWanDemo-I2V-high-quant.safetensors

A `.pth` has the released names; a `.safetensors` is what `turbowan convert` makes of it.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from turbowan.benchmarks.released_files import released_layout
from turbowan.demo.export_vae import averaged
from turbowan.turbo_core.block_int8 import quantize_tensors
from turbowan.turbo_core.checkpoint import Checkpoint, read
from turbowan.turbo_core.convert import convert


def export(state: Path, output: Path, expert: str | None = None) -> Checkpoint:
    """Write it, and read it back."""
    quantized = quantize_tensors(averaged(state))
    kept = {
        name: tensor if tensor.dtype == torch.int8 or name.endswith(".scale") else tensor.to(torch.bfloat16)
        for name, tensor in quantized.items()
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.suffix == ".pth":
        torch.save(released_layout(kept), output)
    else:
        with tempfile.TemporaryDirectory() as folder:
            released = Path(folder) / "released.pth"
            torch.save(released_layout(kept), released)
            convert(released, output, expert=expert, force=True)
    return read(output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("state", type=Path, help="a stage's file")
    parser.add_argument("output", type=Path, help="the .pth or .safetensors to write")
    parser.add_argument("--expert", choices=("high", "low"), help="which of the two I2V models it is")
    arguments = parser.parse_args()
    checkpoint = export(arguments.state, arguments.output, arguments.expert)
    size = arguments.output.stat().st_size / 1e6
    print(f"{arguments.output}: {checkpoint.config.name}, {checkpoint.layout}, {size:.2f} MB")


if __name__ == "__main__":
    main()
