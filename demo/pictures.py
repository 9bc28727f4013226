"""Pictures of clips: ``python -m turbowan.demo.pictures OUT CLIP.mp4 [CLIP.mp4 …]``.

OUT.png is a contact sheet, one clip a row in frames evenly spaced, each under its caption; OUT.webp or OUT.gif shows
the clips side by side, moving. The caption of a file is its metadata's title, else its name.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

GAP = 4  # pixels between pictures
CAPTION = 16  # pixels of a line of text
PAPER, INK = (255, 255, 255), (32, 32, 32)


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A clip [3, T, H, W] in [-1, 1] and what stands over it."""

    caption: str
    clip: Tensor


def _frame(clip: Tensor, index: int) -> Image.Image:
    pixels = ((clip[:, index].float().clamp(-1, 1) + 1) * 127.5).round().byte()
    return Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())


def contact_sheet(clips: Sequence[Shown], columns: int = 6) -> Image.Image:
    """A row for each clip, of ``columns`` frames from its first to its last."""
    rows = []
    for shown in clips:
        last = shown.clip.shape[1] - 1
        picked = torch.linspace(0, last, columns).round().int().tolist()
        rows.append([_frame(shown.clip, index) for index in picked])
    width = max(sum(frame.width + GAP for frame in row) for row in rows) + GAP
    height = sum(row[0].height + CAPTION + GAP for row in rows) + GAP
    sheet = Image.new("RGB", (width, height), PAPER)
    top = GAP
    for shown, row in zip(clips, rows, strict=True):
        _write(sheet, (GAP, top), shown.caption)
        for place, frame in enumerate(row):
            sheet.paste(frame, (GAP + place * (frame.width + GAP), top + CAPTION))
        top += row[0].height + CAPTION + GAP
    return sheet


def animation(clips: Sequence[Shown], across: int = 4, every: int = 1) -> list[Image.Image]:
    """Every so many-th frame of the clips, ``across`` of them in a row; the shorter ones hold their last frame."""
    frames = max(shown.clip.shape[1] for shown in clips)
    _, _, height, width = clips[0].clip.shape
    cell_width, cell_height = width + GAP, height + CAPTION + GAP
    rows = -(-len(clips) // across)
    size = min(len(clips), across) * cell_width + GAP, rows * cell_height + GAP
    pictures = []
    for index in range(0, frames, every):
        picture = Image.new("RGB", size, PAPER)
        for place, shown in enumerate(clips):
            left, top = GAP + place % across * cell_width, GAP + place // across * cell_height
            _write(picture, (left, top), shown.caption, width)
            picture.paste(_frame(shown.clip, min(index, shown.clip.shape[1] - 1)), (left, top + CAPTION))
        pictures.append(picture)
    return pictures


def save_animation(pictures: Sequence[Image.Image], path: Path, fps: Fraction | float) -> None:
    """As WebP or GIF by the name, without end."""
    if path.suffix not in (".webp", ".gif"):
        raise ValueError(f"pictures: an animation must be a .webp or .gif, got {path.name}; choose one of them")
    options = {"quality": 60, "method": 6} if path.suffix == ".webp" else {"optimize": True}
    first, *rest = pictures
    path.parent.mkdir(parents=True, exist_ok=True)
    first.save(path, save_all=True, append_images=rest, duration=round(1000 / fps), loop=0, **options)


def _write(picture: Image.Image, place: tuple[int, int], text: str, most: int | None = None) -> None:
    font = ImageFont.load_default(11)
    pen = ImageDraw.Draw(picture)
    while most is not None and pen.textlength(text, font) > most:
        text = text[:-2].rstrip(" .…") + "…"
    pen.text(place, text, INK, font)


def read_clip(path: Path) -> tuple[Shown, Fraction]:
    """A video file's frames and their rate."""
    import av

    with av.open(path) as file:
        stream = file.streams.video[0]
        frames = [torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in file.decode(stream)]
        caption = file.metadata.get("title", path.stem.replace("_", " "))
        clip = torch.stack(frames).permute(3, 0, 1, 2) / 127.5 - 1
        return Shown(caption=caption, clip=clip), Fraction(stream.average_rate)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help=".png, .webp or .gif")
    parser.add_argument("clips", type=Path, nargs="+")
    parser.add_argument("--columns", type=int, default=6, help="frames of a clip in a contact sheet")
    parser.add_argument("--across", type=int, default=4, help="clips in a row of an animation")
    parser.add_argument("--every", type=int, default=2, help="only each so many-th frame of an animation")
    arguments = parser.parse_args()
    clips, rates = zip(*map(read_clip, arguments.clips), strict=True)
    if arguments.out.suffix in (".webp", ".gif"):
        pictures = animation(clips, arguments.across, arguments.every)
        save_animation(pictures, arguments.out, rates[0] / arguments.every)
    else:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        contact_sheet(clips, arguments.columns).save(arguments.out)


if __name__ == "__main__":
    main()
