"""Start images from files: every kind of picture means the same colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from turbowan.turbo_core.errors import ConditioningError
from turbowan.turbo_core.start_image import image_size, load_image

RAMP = np.linspace(0, 255, 64).round().astype(np.uint8)[None].repeat(48, axis=0)  # [H, W]


@pytest.mark.parametrize("kind", ["8 bits", "16 bits", "32-bit integers", "palette", "transparent", "black and white"])
def test_grey_is_grey(tmp_path: Path, kind: str) -> None:
    grey, path = Image.fromarray(RAMP), tmp_path / ("a.tiff" if kind == "32-bit integers" else "a.png")
    image = {
        "8 bits": grey,
        "16 bits": Image.fromarray(RAMP.astype(np.uint16) * 257),
        "32-bit integers": Image.fromarray(RAMP.astype(np.int32) * 257),
        "palette": grey.convert("P"),
        "transparent": grey.convert("LA"),
        "black and white": grey.point(lambda value: 255 * (value > 127)).convert("1"),
    }[kind]
    image.save(path)
    expected = (RAMP > 127) * 1.0 if kind == "black and white" else RAMP / 255
    loaded = load_image(path)
    assert loaded.shape == (1, 48, 64, 3)
    torch.testing.assert_close(
        loaded, torch.from_numpy(expected).float()[None, ..., None].expand(-1, -1, -1, 3), atol=1e-6, rtol=0
    )


def test_a_turned_photo_is_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90° clockwise
    Image.fromarray(RAMP).save(tmp_path / "a.jpg", exif=exif)
    assert image_size(tmp_path / "a.jpg") == (48, 64)


def test_pictures_that_are_none(tmp_path: Path) -> None:
    Image.fromarray(RAMP.astype(np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(ConditioningError, match="must have 8 or 16 bits a colour"):
        load_image(tmp_path / "float.tiff")
    Image.fromarray(RAMP).save(tmp_path / "a.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:80])
    with pytest.raises(ConditioningError, match="must be a readable picture"):
        load_image(tmp_path / "cut.png")
    with pytest.raises(ConditioningError, match="must exist"):
        image_size(tmp_path / "none.png")
