"""Videos made on this machine: requests to MP4 files through the pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from .expert import NetworkSettings
from .model_choice import Choice
from .parameters import parameters
from .pipeline import Pipeline, Progress
from .request import Request
from .video_file import VideoFile
from .video_size import FPS


class LocalMaker:
    """Keeps the models from one video to the next, as far as the device's memory allows.

    Args:
        choice: with the paths of its files (`model_choice.locate`).
    """

    def __init__(
        self,
        choice: Choice,
        settings: NetworkSettings,
        device: torch.device,
        progress: Progress | None = None,
    ) -> None:
        self._choice, self._settings = choice, settings
        self._pipeline = Pipeline(choice.files, settings, device, progress=progress)
        self._texts: dict[str, Tensor] = {}

    def check(self, request: Request) -> None:
        """Raise for what this model cannot do."""
        self._pipeline.check(request)

    def prepare(self, requests: Sequence[Request]) -> None:
        """Encode the prompts of the videos that come next, in one walk through the text encoder."""
        prompts = list(dict.fromkeys(request.prompt for request in requests))
        self._texts = dict(zip(prompts, self._pipeline.encode(prompts), strict=True))

    def make(self, request: Request, output: Path) -> None:
        """Write the video; the file is complete, or it is not there."""
        self.check(request)
        if request.prompt not in self._texts:
            self.prepare([request])
        try:
            latent = self._pipeline.sample(request, self._texts[request.prompt])
            told = parameters(request, self._choice, self._settings)
            with VideoFile(output, request.size, request.frames, FPS, told) as file:
                self._pipeline.decode(latent, file.write)
        except BaseException:
            self._pipeline.release()  # after running out of memory the next video should find some
            raise
