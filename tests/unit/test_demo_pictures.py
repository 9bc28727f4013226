"""Contact sheets and animations of clips."""

from fractions import Fraction

import pytest
import torch
from PIL import Image, ImageSequence

from turbowan.demo.pictures import Shown, animation, contact_sheet, main, read_clip, save_animation

SIDE = 32


@pytest.fixture
def shown() -> list[Shown]:
    """Clips of one grey each frame, brighter from one to the next, of 5 and 3 frames."""
    ramps = (torch.linspace(-1, 1, count).view(1, count, 1, 1).expand(3, -1, SIDE, SIDE) for count in (5, 3))
    return [Shown(caption=f"clip of {clip.shape[1]}", clip=clip) for clip in ramps]


def greys(picture: Image.Image) -> list[int]:
    """The grey levels of the frames in a picture, most of whose pixels are frames."""
    counted = picture.convert("L").getcolors(1 << 16)
    return sorted(grey for count, grey in counted if count >= SIDE * SIDE // 2)


def test_a_sheet_shows_each_clip_from_first_to_last_frame(shown):
    sheet = contact_sheet(shown, columns=3)
    assert sheet.width > 3 * SIDE
    assert sheet.height > 2 * SIDE
    assert set(greys(sheet)) >= {0, 128, 255}


def test_an_animation_holds_the_last_frame_of_the_shorter_clips(shown, tmp_path):
    pictures = animation(shown, across=2)
    assert len(pictures) == 5
    assert set(greys(pictures[1])) >= {64, 128}
    for suffix in ("webp", "gif"):
        path = tmp_path / f"clips.{suffix}"
        save_animation(pictures, path, fps=8)
        with Image.open(path) as file:
            durations = [frame.copy() and frame.info["duration"] for frame in ImageSequence.Iterator(file)]
        assert len(durations) == 5
        assert durations[1] in (120, 125, 130)  # GIF counts hundredths


def test_another_suffix_is_refused(shown, tmp_path):
    with pytest.raises(ValueError, match=r"must be a \.webp or \.gif, got clips\.avi; choose"):
        save_animation(animation(shown), tmp_path / "clips.avi", fps=8)


def test_video_files_become_pictures_under_their_title(tmp_path, monkeypatch):
    av = pytest.importorskip("av")
    path = tmp_path / "a_clip.mp4"
    with av.open(path, "w") as file:
        file.metadata["title"] = "a red ball"
        stream = file.add_stream("libx264", rate=16)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for grey in (0, 128, 255):
            picture = Image.new("RGB", (64, 64), (grey,) * 3)
            file.mux(stream.encode(av.VideoFrame.from_image(picture)))
        file.mux(stream.encode())
    clip, rate = read_clip(path)
    assert (clip.caption, tuple(clip.clip.shape), rate) == ("a red ball", (3, 3, 64, 64), Fraction(16))
    assert clip.clip[:, :, 32, 32].mean(0) == pytest.approx(torch.tensor([-1.0, 0.0, 1.0]), abs=0.03)
    for out in ("sheet.png", "moving.webp"):
        monkeypatch.setattr("sys.argv", ["pictures", str(tmp_path / out), str(path)])
        main()
        assert (tmp_path / out).stat().st_size > 100
