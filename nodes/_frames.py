"""Decoded frames on their way to an IMAGE: finished on the GPU, copied while the next ones are decoded.

Converting 81 frames of 832×480 on the CPU and copying them at the end costs the decode a good part of a second;
converted where they are, they come over in another stream behind the decoder's back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import torch
from torch import Tensor

IN_FLIGHT = 2  # pieces that wait for their copy and hold GPU memory meanwhile


class Frames:
    """IMAGE [samples · frames, H, W, 3], contiguous, filled by `receive`.

    Args:
        size: samples, frames, height and width.
        device: where the images lie.
        source: where the pieces are made; those that tiles blended come from `device`.
        dtype: of the images.
        finish: maps decoded values to 0…1 in fp32, as the host's VAE does it; may work in place.
    """

    def __init__(
        self,
        size: tuple[int, int, int, int],
        *,
        device: torch.device,
        source: torch.device,
        dtype: torch.dtype,
        finish: Callable[[Tensor], Tensor],
    ) -> None:
        samples, self._length, height, width = size
        self.images = torch.empty((samples * self._length, height, width, 3), dtype=dtype, device=device)
        self._finish = finish
        self._pending: deque[Future[None]] = deque()
        self._copier: ThreadPoolExecutor | None = None
        if source.type == "cuda" and device.type == "cpu":
            self._copier = ThreadPoolExecutor(1, "turbowan-frames")
            self._stream = torch.cuda.Stream(source)
            self._inference = torch.is_inference_mode_enabled()

    def receive(self, sample: int, frame: int, piece_1CTHW: Tensor) -> None:
        """Take finished frames of a sample from `frame` on."""
        images = self._finish(piece_1CTHW.to(torch.float32, copy=True)).movedim(1, -1)[0]
        first = sample * self._length + frame
        room = self.images[first : first + len(images)]
        if self._copier is None or not _on_gpu(images):
            room.copy_(images)
            return
        while len(self._pending) >= IN_FLIGHT:
            self._pending.popleft().result()
        images = images.to(room.dtype).contiguous()
        computed = torch.cuda.current_stream(images.device).record_event()
        self._pending.append(self._copier.submit(self._copy, images, room, computed))

    def _copy(self, images: Tensor, room: Tensor, computed: torch.cuda.Event) -> None:
        with torch.inference_mode(self._inference), torch.cuda.stream(self._stream):
            self._stream.wait_event(computed)
            room.copy_(images)

    def __enter__(self) -> Frames:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._copier is not None:
            self._copier.shutdown(wait=True)
        if kind is None:
            for copy in self._pending:
                copy.result()


def _on_gpu(images: Tensor) -> bool:
    return images.is_cuda
