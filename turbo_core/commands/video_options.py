"""What ``generate`` and ``batch`` share: their options, and what these mean."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..catalogue import RELEASES

if TYPE_CHECKING:
    from ..expert import NetworkSettings
    from ..maker import Maker
    from ..model_choice import Choice
    from ..request import Request


def size(text: str) -> tuple[int, int]:
    """WIDTHxHEIGHT."""
    found = re.fullmatch(r"(\d+)[x×](\d+)", text.strip())
    if not found:
        raise argparse.ArgumentTypeError(f"must be WIDTHxHEIGHT, as 832x480, got {text!r}")
    return int(found[1]), int(found[2])


# Settings of one video: option, key in a .jsonl line, argparse's type, help.
VIDEO_SETTINGS: tuple[tuple[str, Callable[[str], Any], str], ...] = (
    ("seed", int, "the same seed gives the same video (default: 0)"),
    ("steps", int, "1 to 4 (default: 4)"),
    (
        "size",
        size,
        "WIDTHxHEIGHT in multiples of 16 (default: the model's; with an image, its shape in the model's area)",
    ),
    ("frames", int, "4n+1 at 16 a second (default: 81)"),
    ("image", Path, "the first frame, for image to video"),
    ("sigma_max", float, "noise level of the first step (default: 80, with an image 200)"),
    ("boundary", float, "time at which an image-to-video pair's experts change (default: 0.9)"),
    ("sampler", str, "sde or ode (default: sde, with an image ode)"),
    ("noise", str, "comfy: of the CPU, the same on every machine; upstream: TurboDiffusion's order (default: comfy)"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    for name, kind, text in VIDEO_SETTINGS:
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help=text)
    models = parser.add_argument_group("model")
    models.add_argument(
        "--model", help=f"demo (default), {', '.join(RELEASES)}, or a file; of a pair the high-noise one"
    )
    models.add_argument("--low", metavar="FILE", help="the low-noise expert that goes with a file given as --model")
    models.add_argument("--vae", metavar="FILE", help="another VAE than the model's usual one")
    models.add_argument("--text-encoder", metavar="FILE", help="another umT5 file than the usual one")
    models.add_argument("--models-dir", type=Path, metavar="DIR", help="where models lie (default: ComfyUI's models)")
    models.add_argument("--attention", default="auto", help="auto, sla, sagesla, dense or sageattention")
    models.add_argument("--topk", type=float, default=0.1, help="share of key blocks that SLA keeps (default: 0.1)")
    models.add_argument("--precision", default="auto", help="auto, exact, int8, channelwise, fp8 or bf16")
    where = parser.add_argument_group("where")
    where.add_argument("--device", help="cuda, cuda:1, cpu, … (default: the GPU if there is one)")
    where.add_argument(
        "--server", metavar="URL", help="queue it on a running ComfyUI instead, as http://127.0.0.1:8188"
    )


def choose(arguments: argparse.Namespace, *, image: bool) -> Choice:
    """The model, with its files found, here or on the server."""
    from ..model_choice import Named, choose, locate

    named = Named(low=arguments.low, vae=arguments.vae, text_encoder=arguments.text_encoder)
    choice = choose(arguments.model, named, image=image, server=arguments.server is not None)
    if arguments.server is None:
        return locate(choice, arguments.models_dir)
    from ..comfy_client import ComfyClient
    from ..server_files import locate_on_server

    return locate_on_server(ComfyClient(arguments.server), choice)


def settings(arguments: argparse.Namespace) -> NetworkSettings:
    from ..expert import NetworkSettings

    return NetworkSettings(attention=arguments.attention, topk=arguments.topk, precision=arguments.precision)


def request(
    arguments: argparse.Namespace, choice: Choice, prompt: str, line: Mapping[str, Any] | None = None
) -> Request:
    """One video: the settings of its own line before the command's, these before the model's."""
    from ..prompt_lines import check_prompt
    from ..request import Request
    from ..start_image import image_size
    from ..video_size import adaptive_size

    check_prompt(prompt, "generate")
    given = {name: value for name, _, _ in VIDEO_SETTINGS if (value := getattr(arguments, name)) is not None}
    given |= line or {}
    image = given.get("image")
    shown = None if image is None else image_size(image)  # also where it decides nothing: it must be readable
    if "size" not in given:
        width, height = choice.size
        given["size"] = choice.size if shown is None else adaptive_size(width * height, shown[1] / shown[0])
    return dataclasses.replace(Request(prompt=prompt, size=given.pop("size"), frames=choice.frames), **given)


def maker(arguments: argparse.Namespace, choice: Choice, progress: Callable[[str, int, int], None]) -> Maker:
    """What will make the videos."""
    if arguments.server is not None:
        from ..comfy_client import ComfyClient
        from ..server_maker import ServerMaker

        return ServerMaker(ComfyClient(arguments.server), choice, settings(arguments), progress)
    from ..local_maker import LocalMaker
    from ..pipeline import default_device
    from .device import device

    where = default_device() if arguments.device is None else device(arguments.device)
    return LocalMaker(choice, settings(arguments), where, progress)
