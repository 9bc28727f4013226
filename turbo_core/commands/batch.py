"""``turbowan batch``: a file of prompts to a folder of MP4s."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import video_options
from .command import Command

if TYPE_CHECKING:
    from ..batch import Job, Line
    from ..model_choice import Choice

SOME_FAILED = 3  # the exit code


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompts", type=Path, help="a prompt a line; or .jsonl, a JSON object a line with its settings")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="the folder for the MP4s")
    video_options.add_arguments(parser)


def _run(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from ..batch import read_lines, run
    from ..errors import SettingsError
    from .bars import Bars

    lines = read_lines(arguments.prompts, _READERS)
    with_image = {"image" in line.settings or arguments.image is not None for line in lines}
    if len(with_image) == 2:
        raise SettingsError(
            f"batch: all lines of {arguments.prompts} must have an image or none, some have one; make two files of them"
        )
    choice = video_options.choose(arguments, image=with_image.pop())
    with Bars() as bars:
        maker = video_options.maker(arguments, choice, bars)
        jobs = [_job(arguments, choice, line) for line in lines]
        failed = run(jobs, arguments.output, maker, tqdm.write)
    print(f"{arguments.output}: {f'{failed} prompts failed' if failed else 'complete'}; manifest.jsonl tells more")
    return SOME_FAILED if failed else 0


def _job(arguments: argparse.Namespace, choice: Choice, line: Line) -> Job:
    from ..batch import Job
    from ..errors import TurboWanError
    from ..parameters import parameters

    try:
        request = video_options.request(arguments, choice, line.prompt, line.settings)
        return Job(
            line=line,
            parameters=parameters(request, choice, video_options.settings(arguments)),
            request=request,
        )
    except TurboWanError as error:  # of this prompt alone, as an image that is not there
        told = {name: str(value) for name, value in line.settings.items()}
        return Job(line=line, parameters={"prompt": line.prompt, **told}, request=None, problem=str(error))


def _reader(kind: Callable[[str], Any]) -> Callable[[Any], Any]:
    """What a value of a JSON line means; ValueError where it is of another type than the option's."""

    def read(value: Any) -> Any:
        wanted = {int: int, float: (int, float)}.get(kind, str)
        if isinstance(value, bool) or not isinstance(value, wanted):
            raise ValueError("another type is needed")
        return kind(value)

    return read


_READERS = {name: _reader(kind) for name, kind, _ in video_options.VIDEO_SETTINGS}

BATCH = Command(
    name="batch",
    summary="make a video of each line of a file, resumable",
    add_arguments=_add_arguments,
    run=_run,
)
