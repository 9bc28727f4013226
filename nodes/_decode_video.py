"""A latent to ComfyUI's VIDEO: an MP4 in memory, encoded while the frames are decoded."""

from __future__ import annotations

from typing import Any

import torch
from comfy.sd import VAE
from comfy_api.latest import InputImpl
from torch import Tensor

from ..turbo_core.errors import LatentError
from ..turbo_core.mp4 import Format, Mp4, Sound
from ..turbo_core.recorder import Recorder
from ._decode import decodes_here, lend_decoder, own_images, video_size
from ._operations import progress_bar, throw_if_interrupted
from ._sampling import VAE_REMEDY, memory_advice

WHERE = "TurboVAEDecodeVideo"
PIECE = 4  # frames handed on at a time where all are there already


def decode_to_video(
    vae: VAE, latent: Tensor, *, fps: float, crf: int, audio: dict[str, Any] | None
) -> InputImpl.VideoFromFile:
    """The host's VIDEO of the frames, batches one after another."""
    sound = None
    if audio is not None:
        sound = Sound(waveform=audio["waveform"][0], rate=int(audio["sample_rate"]))
    settings = {"fps": fps, "crf": crf, "sound": sound}
    if not decodes_here(vae, latent, WHERE):
        return _encoded(own_images(vae, latent), **settings)
    samples, frames, height, width = video_size(latent)
    file = Mp4(Format(width=width, height=height, frames=samples * frames, **settings))
    recorder = Recorder(file, progress=progress_bar(), interrupted=throw_if_interrupted)

    def receive(_: int, __: int, piece_1CTHW: Tensor) -> None:
        recorder.write(vae.process_output(piece_1CTHW[0].to(torch.float32, copy=True)))

    with memory_advice(WHERE, vae.device, VAE_REMEDY), recorder:
        with lend_decoder(vae, latent) as decoder:
            decoder.run(receive, progress=recorder.decoded)
        recorder.complete()
    return InputImpl.VideoFromFile(file.data)


def _encoded(images: Tensor, **settings: Any) -> InputImpl.VideoFromFile:
    """Of images [frames, H, W, channels] that another VAE made."""
    if images.shape[-1] not in (3, 4):
        raise LatentError(
            f"{WHERE}: the VAE must decode to RGB images, got {list(images.shape)}; use the decode node of its kind"
        )
    frames, height, width, _ = images.shape
    file = Mp4(Format(width=width, height=height, frames=frames, **settings))
    with Recorder(file, progress=progress_bar(), interrupted=throw_if_interrupted) as recorder:
        for first in range(0, frames, PIECE):
            recorder.write(images[first : first + PIECE, ..., :3].movedim(-1, 0).to(torch.float32))
            recorder.decoded(min(first + PIECE, frames), frames)
        recorder.complete()
    return InputImpl.VideoFromFile(file.data)
