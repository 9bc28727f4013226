"""``turbowan``: the commands around the models. Errors come as one line, without a traceback."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

INTERRUPTED = 130  # the shell's code for Ctrl-C


@dataclass(frozen=True, kw_only=True)
class Command:
    name: str
    summary: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]
    """Imports what it needs itself, so that ``--help`` answers at once."""


def _convert_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", type=Path, help="checkpoint: .pth, .pt, .ckpt or .safetensors")
    parser.add_argument("output", type=Path, help="the .safetensors file to write")
    parser.add_argument("--int8", action="store_true", help="quantize an unquantized model to block-int8")
    parser.add_argument("--expert", choices=("high", "low"), help="which of the two I2V experts this file is")
    parser.add_argument("--force", action="store_true", help="overwrite the output if it exists")


def _convert(arguments: argparse.Namespace) -> None:
    from tqdm import tqdm

    from .convert import convert

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


def _inspect_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="checkpoint: .pth, .pt, .ckpt or .safetensors")


def _inspect(arguments: argparse.Namespace) -> None:
    from .checkpoint import read

    checkpoint = read(arguments.file)
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


BENCH_STAGES = ("kernel", "block", "step", "vae", "prompt")


def _bench_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--stages", default="kernel,block,step,vae", help=f"some of {','.join(BENCH_STAGES)}")
    parser.add_argument("--model", choices=("1.3b", "14b"), default="1.3b", help="random weights of this size")
    parser.add_argument("--size", default="832x480x81", help="width x height x frames")
    parser.add_argument("--rows", default="", help="only rows of ours whose name contains this, as 'int8 + sagesla'")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--comfy", type=Path, default=os.environ.get("COMFYUI_DIR"), help="a ComfyUI checkout (default: COMFYUI_DIR)"
    )
    parser.add_argument("--peer", type=Path, help="a folder with peer.py over a built TurboDiffusion")
    parser.add_argument("--json", type=Path, help="the report to write, or to renew these stages' rows in")


def _bench(arguments: argparse.Namespace) -> None:
    from .errors import SettingsError

    stages = tuple(arguments.stages.split(","))
    if unknown := [stage for stage in stages if stage not in BENCH_STAGES]:
        raise SettingsError(f"bench: stages must be among {', '.join(BENCH_STAGES)}, got {', '.join(unknown)}")
    if arguments.repeats < 1:
        raise SettingsError(f"bench: repeats must be 1 or more, got {arguments.repeats}")
    request = _benchmark("request").Request(
        stages=stages,
        model=arguments.model,
        size=_benchmark("request").parse_size(arguments.size),
        rows=arguments.rows,
        repeats=arguments.repeats,
        comfy=arguments.comfy,
        peer=arguments.peer,
    )
    _benchmark("suite").run(request, arguments.json)


def _benchmark(name: str) -> ModuleType:
    """A module of the folder `benchmarks`, which lies beside the core in a checkout and nowhere else."""
    package = f"{__package__.rpartition('.')[0]}.benchmarks"
    try:
        return importlib.import_module(f"{package}.{name}")
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        from .errors import SettingsError

        raise SettingsError(
            "bench: the folder benchmarks must lie in the pack, this installation came without it; "
            "clone the repository and run `python comfyui-turbowan bench` beside it"
        ) from error


COMMANDS: tuple[Command, ...] = (
    Command(
        name="convert",
        summary="write a checkpoint as safetensors with native Wan names",
        add_arguments=_convert_arguments,
        run=_convert,
    ),
    Command(
        name="inspect",
        summary="say what model a file holds",
        add_arguments=_inspect_arguments,
        run=_inspect,
    ),
    Command(
        name="bench",
        summary="time this GPU, beside its peers",
        add_arguments=_bench_arguments,
        run=_bench,
    ),
)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="turbowan", description="TurboDiffusion's few-step Wan video models.")
    choices = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        sub = choices.add_parser(command.name, help=command.summary, description=command.summary)
        command.add_arguments(sub)
        sub.set_defaults(run=command.run)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the process's exit code (0 done, 1 refused or failed, 130 interrupted)."""
    parsed = parser().parse_args(arguments)
    try:
        from .errors import BackendUnavailableError, TurboWanError

        try:
            parsed.run(parsed)
        except (TurboWanError, BackendUnavailableError) as error:
            return _fail(str(error))
    except ModuleNotFoundError as error:
        return _fail(f"the Python package {error.name} must be installed; run `pip install {error.name}`")
    except OSError as error:
        return _fail(f"{error.filename or parsed.command}: {error.strerror or error}")
    except KeyboardInterrupt:
        _fail("interrupted; nothing was written")
        return INTERRUPTED
    return 0


def _fail(message: str) -> int:
    print(f"turbowan: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
