"""``turbowan convert``."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path

from .command import Command


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", type=Path, help="checkpoint: .pth, .pt, .ckpt or .safetensors")
    parser.add_argument("output", type=Path, help="the .safetensors file to write")
    parser.add_argument("--int8", action="store_true", help="quantize an unquantized model to block-int8")
    parser.add_argument("--expert", choices=("high", "low"), help="which of the two I2V experts this file is")
    parser.add_argument("--force", action="store_true", help="overwrite the output if it exists")


def _run(arguments: argparse.Namespace) -> None:
    from tqdm import tqdm

    from ..convert import convert

    with ExitStack() as stack:
        bar: tqdm | None = None

        def progress(written: int, total: int) -> None:
            nonlocal bar
            if bar is None:  # nothing of it is seen where the input is refused
                bar = tqdm(total=total, unit="B", unit_scale=True, desc=arguments.output.name)
                stack.enter_context(bar)
            bar.update(written)

        checkpoint = convert(
            arguments.input,
            arguments.output,
            int8=arguments.int8,
            expert=arguments.expert,
            force=arguments.force,
            progress=progress,
        )
    print(f"{arguments.output}: {checkpoint.config.name}, {arguments.output.stat().st_size / 1e9:.2f} GB")


CONVERT = Command(
    name="convert",
    summary="write a checkpoint as safetensors with native Wan names",
    add_arguments=_add_arguments,
    run=_run,
)
