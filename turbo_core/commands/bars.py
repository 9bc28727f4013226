"""Progress bars: one after another, for the stages of a video."""

from __future__ import annotations

from types import TracebackType

TITLES = {
    "prompt": "text encoder",
    "image": "first frame",
    "weights": "weights",
    "kernels": "kernels",
    "sampling": "sampling",
    "frames": "frames",
    "server": "on the server",
    "download": "download",
}


class Bars:
    """Called as (stage, done, in all); shows the stage that was told last."""

    def __init__(self) -> None:
        self._stage = ""
        self._bar = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        from tqdm import tqdm

        if stage != self._stage or self._bar is None or done < self._bar.n:
            self.close()
            self._stage = stage
            self._bar = tqdm(
                total=total, desc=f"{TITLES[stage]:<13}", bar_format="{desc} {percentage:3.0f}% |{bar:30}| {elapsed}"
            )
        self._bar.update(done - self._bar.n)
        if done >= total:
            self.close()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar = None

    def __enter__(self) -> Bars:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
