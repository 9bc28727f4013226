"""``turbowan``: the commands around the models. Errors come as one line, without a traceback."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from .commands.batch import BATCH
from .commands.bench import BENCH
from .commands.command import Command
from .commands.convert import CONVERT
from .commands.doctor import DOCTOR
from .commands.download import DOWNLOAD
from .commands.generate import GENERATE
from .commands.inspect import INSPECT
from .commands.prompts import PROMPTS

PACKAGES = {"PIL": "pillow", "websocket": "websocket-client", "yaml": "pyyaml"}  # named otherwise than their modules
INTERRUPTED = 130  # the shell's code for Ctrl-C
COMMANDS: tuple[Command, ...] = (GENERATE, BATCH, DOWNLOAD, DOCTOR, INSPECT, CONVERT, PROMPTS, BENCH)


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
            return parsed.run(parsed) or 0
        except (TurboWanError, BackendUnavailableError) as error:
            return _fail(str(error))
    except ModuleNotFoundError as error:
        package = PACKAGES.get(error.name or "", error.name)
        return _fail(f"the Python package {error.name} must be installed; run `pip install {package}`")
    except OSError as error:
        return _fail(f"{error.filename or parsed.command}: {error.strerror or error}")
    except (RuntimeError, MemoryError) as error:
        from .memory import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        return _fail(str(error) or "ran out of memory")
    except KeyboardInterrupt as stopped:  # a command that has written something says what
        _fail(f"interrupted; {stopped}" if stopped.args else "interrupted; nothing was written")
        return INTERRUPTED


def _fail(message: str) -> int:
    print(f"turbowan: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
