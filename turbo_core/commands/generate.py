"""``turbowan generate``: a prompt to an MP4."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from . import video_options
from .command import Command


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", help="what the video shows")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("out.mp4"), help="the MP4 to write (default: out.mp4)"
    )
    parser.add_argument("--force", action="store_true", help="overwrite the output if it exists")
    video_options.add_arguments(parser)


def _run(arguments: argparse.Namespace) -> None:
    from .bars import Bars

    started = time.monotonic()
    video_options.check_output(arguments.output, arguments.force, "generate")
    choice = video_options.choose(arguments, image=arguments.image is not None)
    request = video_options.request(arguments, choice, arguments.prompt)
    with Bars() as bars:
        maker = video_options.maker(arguments, choice, bars)
        maker.check(request)
        maker.make(request, arguments.output)
    width, height = request.size
    print(f"{arguments.output}: {width}x{height}, {request.frames} frames, in {time.monotonic() - started:.1f} s")


GENERATE = Command(
    name="generate",
    summary="make a video from a prompt, or a prompt and an image",
    add_arguments=_add_arguments,
    run=_run,
)
