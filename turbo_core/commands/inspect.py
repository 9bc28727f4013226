"""``turbowan inspect``."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

from .command import Command


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", type=Path, help="checkpoint (.pth, .pt, .ckpt, .safetensors), or a video of ours (.mp4)"
    )


def _run(arguments: argparse.Namespace) -> None:
    if arguments.file.suffix.lower() == ".mp4":
        _show_parameters(arguments.file)
    else:
        _show_checkpoint(arguments.file)


def _show_parameters(path: Path) -> None:
    from ..video_file import read_comment

    print(json.dumps(read_comment(path), indent=2, ensure_ascii=False))


def _show_checkpoint(path: Path) -> None:
    from ..checkpoint import read

    checkpoint = read(path)
    config = checkpoint.config
    count: Counter[str] = Counter()
    size: Counter[str] = Counter()
    for tensor in checkpoint.tensors.values():
        dtype = str(tensor.dtype).removeprefix("torch.")
        count[dtype] += 1
        size[dtype] += tensor.nbytes
    rows = {
        "file": f"{checkpoint.path} ({checkpoint.path.stat().st_size / 1e9:.2f} GB)",
        "model": f"{config.name}: dim {config.dim}, ffn {config.ffn_dim}, {config.num_heads} heads, "
        f"{config.num_layers} blocks, {config.in_dim} channels in",
        "layout": checkpoint.layout,
        "attention": "SLA-trained (proj_l in every block)" if config.has_proj_l else "dense (no proj_l)",
        "weights": "block-int8" if config.quantized else "unquantized",
        "expert": checkpoint.expert or "not named",
        "tensors": ", ".join(f"{n} {dtype} ({size[dtype] / 1e9:.2f} GB)" for dtype, n in count.most_common()),
        "ignored": ", ".join(checkpoint.ignored) or "none",
    }
    for label, value in rows.items():
        print(f"{label:<10} {value}")


INSPECT = Command(
    name="inspect",
    summary="say what model a file holds, or how a video was made",
    add_arguments=_add_arguments,
    run=_run,
)
