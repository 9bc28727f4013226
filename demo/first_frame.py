"""The picture that `make demo` begins a video with: a yellow star at the right of a clip that moves to the left.

python -m turbowan.demo.first_frame          writes demo/first_frame.png
"""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from turbowan.demo.clips import draw, draw_scenes
from turbowan.demo.vocabulary import Triple
from turbowan.turbo_core.model_choice import DEMO_SIZE, FRAMES

FILE = Path(__file__).with_suffix(".png")
SEED = 1


def first_frame(triple: Triple, seed: int, *, frames: int, height: int, width: int) -> Image.Image:
    """Of a drawn clip of the triple."""
    generator = torch.Generator().manual_seed(seed)
    scene = draw_scenes([triple], frames=frames, height=height, width=width, generator=generator)
    frame = draw(scene, height=height, width=width)[0, :, 0].permute(1, 2, 0)
    return Image.fromarray(((frame + 1) * 127.5).round().clamp(0, 255).byte().numpy())


def main() -> None:
    width, height = DEMO_SIZE
    picture = first_frame(Triple("yellow", "star", "left"), SEED, frames=FRAMES, height=height, width=width)
    picture.save(FILE, optimize=True)


if __name__ == "__main__":
    main()
