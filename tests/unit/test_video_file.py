"""MP4 files: colours and tags, parameters, and that no half of one is ever left."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from turbowan.turbo_core.errors import BackendUnavailableError, CheckpointError, SettingsError
from turbowan.turbo_core.video_file import VideoFile, read_comment

av = pytest.importorskip("av")
mp4 = pytest.importorskip("turbowan.turbo_core.mp4")

SIZE = (96, 64)


def clip(colour: tuple[int, int, int], frames: int = 5) -> torch.Tensor:
    return (torch.tensor(colour) / 255).view(3, 1, 1, 1).expand(3, frames, SIZE[1], SIZE[0])


def write(path: Path, frames: torch.Tensor, comment: dict | None = None) -> Path:
    with VideoFile(path, SIZE, frames.shape[1], 16, comment or {}) as file:
        file.write(frames[:, :1])
        file.write(frames[:, 1:])
    return path


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (128, 128, 128)])
def test_colours_are_bt709_as_tagged(tmp_path: Path, colour: tuple[int, int, int]) -> None:
    """BT.709: Y = 16 + 219·(0.2126 R + 0.7152 G + 0.0722 B)."""
    with av.open(str(write(tmp_path / "a.mp4", clip(colour)))) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        codec = stream.codec_context
        assert (codec.color_range, codec.colorspace, codec.color_primaries, codec.color_trc) == (1, 1, 1, 13)
        assert (codec.name, codec.pix_fmt, float(stream.average_rate)) == ("h264", "yuv420p", 16.0)
    assert len(frames) == 5
    red, green, blue = (value / 255 for value in colour)
    luma = 16 + 219 * (0.2126 * red + 0.7152 * green + 0.0722 * blue)
    assert abs(int(frames[2].to_ndarray()[10, 10]) - luma) < 1
    assert abs(torch.from_numpy(frames[2].to_rgb().to_ndarray())[10, 10].int() - torch.tensor(colour)).max() <= 2


def test_frames_keep_their_order(tmp_path: Path) -> None:
    steps = (torch.arange(0, 240, 12) / 255).view(1, -1, 1, 1).expand(3, -1, SIZE[1], SIZE[0])
    path = tmp_path / "a.mp4"
    with VideoFile(path, SIZE, 20, 16, {}) as file:
        for piece in steps.split(3, dim=1):
            file.write(piece)
    with av.open(str(path)) as container:
        shown = [int(frame.to_rgb().to_ndarray().mean()) for frame in container.decode(video=0)]
    assert len(shown) == 20
    assert shown == sorted(shown)


def test_parameters_are_read_back(tmp_path: Path) -> None:
    told = {"prompt": "a “red” ball\n=;# größer", "seed": 2**64 - 1, "topk": 0.1, "image": None}
    assert read_comment(write(tmp_path / "a.mp4", clip((1, 2, 3)), told)) == told


@pytest.mark.parametrize("failure", [KeyboardInterrupt, ValueError])
def test_a_failure_leaves_nothing(tmp_path: Path, failure: type[BaseException]) -> None:
    path = write(tmp_path / "a.mp4", clip((1, 2, 3)))
    before = path.read_bytes()

    def stopped() -> None:
        with VideoFile(path, SIZE, 9, 16, {}) as file:
            file.write(clip((9, 9, 9)))
            raise failure

    with pytest.raises(failure):
        stopped()
    assert path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_a_name_that_ffmpeg_would_take_for_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_comment(write(Path("scene:1.mp4"), clip((1, 2, 3)), {"seed": 1})) == {"seed": 1}


def test_a_video_is_not_lost_where_its_name_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Windows does while a player has the file open."""
    path, replace = write(tmp_path / "a.mp4", clip((1, 2, 3))), Path.replace

    def refuse(source: Path, target: Path) -> Path:
        if target == path:
            raise PermissionError
        return replace(source, target)

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(SettingsError, match="another program holds it; the video lies in (.*mp4)") as told:
        write(path, clip((9, 9, 9)), {"seed": 2})
    assert len(list(tmp_path.iterdir())) == 2
    assert read_comment(Path(str(told.value).rpartition("lies in ")[2])) == {"seed": 2}


def test_a_build_without_the_encoder_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise BackendUnavailableError("MP4: PyAV must have an H.264 encoder")

    monkeypatch.setattr(mp4, "h264_stream", refuse)
    with pytest.raises(BackendUnavailableError, match="must have an H.264 encoder"):
        VideoFile(tmp_path / "a.mp4", SIZE, 5, 16, {})
    assert list(tmp_path.iterdir()) == []


def test_a_failure_of_the_encoder_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error comes from another thread."""

    def fail(*_: object) -> int:
        raise OSError("no room")

    monkeypatch.setattr(mp4.Mp4, "add", fail)
    with pytest.raises(OSError, match="no room"):
        write(tmp_path / "a.mp4", clip((9, 9, 9)))
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="output: the folder .* must exist"):
        VideoFile(tmp_path / "none" / "a.mp4", SIZE, 5, 16, {})


def test_other_files_have_no_parameters(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(CheckpointError, match="must be readable"):
        read_comment(tmp_path / "text.mp4")
    with av.open(str(tmp_path / "other.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=16)
        stream.width, stream.height = SIZE
        container.mux(stream.encode(av.VideoFrame(*SIZE, "yuv420p")))
        container.mux(stream.encode())
    with pytest.raises(CheckpointError, match="must carry its parameters"):
        read_comment(tmp_path / "other.mp4")
