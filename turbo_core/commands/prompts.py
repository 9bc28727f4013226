"""``turbowan prompts``: a prompt book from a text encoder's file."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..catalogue import TEXT_ENCODER, command_for
from .command import Command


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", type=Path, help="the prompt book to write, .safetensors")
    parser.add_argument("text", nargs="*", help="a prompt")
    parser.add_argument("--from", dest="source", type=Path, metavar="FILE", help="a text file, a prompt a line")
    parser.add_argument(
        "--encoder", type=Path, help=f"the text encoder's file (default: {TEXT_ENCODER.name} in the models folder)"
    )
    parser.add_argument("--device", default="cpu", help="where to encode, as cuda (default: cpu)")
    parser.add_argument("--force", action="store_true", help="overwrite the output if it exists")


def _run(arguments: argparse.Namespace) -> None:
    import torch
    from tqdm import tqdm

    from ..errors import SettingsError
    from ..prompt_book import write_book
    from ..text_encoder import TextEncoder

    lines = arguments.source.read_text(encoding="utf-8").splitlines() if arguments.source else []
    texts = list(dict.fromkeys(text.strip() for text in [*arguments.text, *lines] if text.strip()))
    if not texts:
        raise SettingsError("prompts: there must be one prompt or more, none came; add some, or --from FILE")
    if arguments.output.suffix != ".safetensors":
        raise SettingsError(f"prompts: the output must end in .safetensors, came {arguments.output.name}; rename it")
    if arguments.output.exists() and not arguments.force:
        raise SettingsError(
            f"prompts: {arguments.output} must not exist, it does; choose another name, or overwrite it with --force"
        )
    encoder = TextEncoder.open(arguments.encoder or _usual_encoder())
    with tqdm(desc=f"encoding {len(texts)} prompts", unit="block", disable=None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        states = encoder.encode(texts, torch.device(arguments.device), progress=progress)
    book = {text: [[one, {"pooled_output": None}]] for text, one in zip(texts, states, strict=True)}
    write_book(arguments.output, book)
    print(f"{arguments.output}: {len(book)} prompts, {arguments.output.stat().st_size / 1e6:.1f} MB")


def _usual_encoder() -> Path:
    from ..errors import SettingsError
    from ..model_folders import find

    found = find(TEXT_ENCODER.name, TEXT_ENCODER.folder)
    if found is None:
        raise SettingsError(
            f"prompts: the text encoder must be there, {TEXT_ENCODER.name} is not; name another file with --encoder, "
            f"or run `{command_for(TEXT_ENCODER.name)}`"
        )
    return found


PROMPTS = Command(
    name="prompts",
    summary="encode prompts into a file that TurboPromptCache finds them in",
    add_arguments=_add_arguments,
    run=_run,
)
