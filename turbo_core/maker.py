"""What makes videos of requests: this machine (`local_maker`), or a ComfyUI (`server_maker`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from .request import Request


class Maker(Protocol):
    def check(self, request: Request) -> None:
        """Raise a TurboWanError for what the model cannot do."""

    def prepare(self, requests: Sequence[Request]) -> None:
        """Do at once what is cheaper for all the videos that come next."""

    def make(self, request: Request, output: Path) -> None:
        """Write the video; the file is complete, or it is not there."""
