"""``turbowan prompts``: a prompt book from a text encoder's file."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..catalogue import TEXT_ENCODER, command_for
from .command import Command
from .output import check_output


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
    from tqdm import tqdm

    from ..errors import SettingsError
    from ..prompt_book import write_book
    from ..prompt_lines import check_prompt, read_prompt_lines
    from ..text_encoder import TextEncoder
    from .device import device

    given = [text.strip() for text in arguments.text]
    for text in given:
        check_prompt(text, "prompts")
    if arguments.source is not None:
        given += [line for _, line in read_prompt_lines(arguments.source, "prompts")]
    texts = list(dict.fromkeys(filter(None, given)))
    if not texts:
        raise SettingsError("prompts: there must be one prompt or more, none came; add some, or --from FILE")
    check_output(arguments.output, ".safetensors", arguments.force, "prompts")
    where = device(arguments.device)
    encoder = TextEncoder.open(arguments.encoder or _usual_encoder())
    with tqdm(desc=f"encoding {len(texts)} prompts", unit="block", disable=None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        states = encoder.encode(texts, where, progress=progress)
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
