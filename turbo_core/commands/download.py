"""``turbowan download``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..catalogue import PARTS, RELEASES, HubFile, release
from .command import Command


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", help=f"one of {', '.join(RELEASES)}, or {' or '.join(PARTS)} alone")
    parser.add_argument("--unquantized", action="store_true", help="the 16-bit network, twice as large")
    parser.add_argument("--network-only", action="store_true", help="leave out the text encoder and the VAE")
    parser.add_argument(
        "--to",
        type=Path,
        metavar="DIR",
        help="a models folder; default: that of the ComfyUI that this pack lies in, else a folder of your own",
    )
    parser.add_argument("--force", action="store_true", help="replace a file of the same name and another content")
    parser.add_argument("--list", action="store_true", help="show the models, their files and which are there")


def _run(arguments: argparse.Namespace) -> None:
    from ..errors import SettingsError

    if arguments.list:
        _list(arguments.to)
        return
    if arguments.model is None:
        names = ", ".join((*RELEASES, *PARTS))
        raise SettingsError(f"download: model must be one of {names}, none was given; add one, or --list")
    from ..download import download

    try:
        download(_files(arguments), to=arguments.to, force=arguments.force, report=print)
    except KeyboardInterrupt as stopped:
        raise KeyboardInterrupt("what came is kept; run the same command again to go on") from stopped


def _files(arguments: argparse.Namespace) -> tuple[HubFile, ...]:
    from ..errors import SettingsError

    if arguments.model in PARTS:
        if arguments.unquantized or arguments.network_only:
            raise SettingsError(
                "download: --unquantized and --network-only must come with a model, "
                f"got {arguments.model}; leave them out"
            )
        return (PARTS[arguments.model],)
    chosen, quantized = release(arguments.model), not arguments.unquantized
    return chosen.network(quantized=quantized) if arguments.network_only else chosen.files(quantized=quantized)


def _list(to: Path | None) -> None:
    for entry in RELEASES.values():
        print(f"{entry.name}: {entry.title}")
        _list_files(entry.quantized, "", to)
        _list_files(entry.unquantized, " (--unquantized)", to)
    print("each of them needs")
    for part, file in PARTS.items():
        _list_files((file,), f" ({part})", to)


def _list_files(files: Sequence[HubFile], mark: str, to: Path | None) -> None:
    from ..model_folders import find

    for file in files:
        print(f"  {file.folder}/{file.name}{mark}: {find(file.name, file.folder, to) or 'not here'}")


DOWNLOAD = Command(
    name="download",
    summary="bring a model's files from the hub",
    add_arguments=_add_arguments,
    run=_run,
)
