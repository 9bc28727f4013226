"""A real ComfyUI for tests: headless, on a free loopback port, in a folder of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
TEST_PACKS = Path(__file__).resolve().parent / "packs"
START_TIMEOUT = 120
STOP_TIMEOUT = 15


class HostError(RuntimeError):
    """ComfyUI did not start or died; the message ends with the tail of its log."""


class ComfyProcess:
    """``checkout`` run by ``python`` with base directory ``base``; use as a context manager.

    ``packs`` maps names in ``custom_nodes`` to the folders they link to: by default this pack and the test nodes.
    ``device`` is "cpu" or "cuda".
    """

    def __init__(
        self,
        checkout: Path,
        python: Path,
        base: Path,
        *,
        flags: tuple[str, ...] = (),
        packs: dict | None = None,
        device: str = "cpu",
    ) -> None:
        self.checkout, self.python, self.base = checkout, python, base
        self.flags = (*(("--cpu",) if device == "cpu" else ()), *flags)
        self.packs = default_packs() if packs is None else packs
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def models(self) -> Path:
        return self.base / "models"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log_path(self) -> Path:
        return self.base / "comfyui.log"

    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def __enter__(self) -> ComfyProcess:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        for folder in ("custom_nodes", "input", "output", "temp", "user", "models/diffusion_models", "models/vae"):
            (self.base / folder).mkdir(parents=True, exist_ok=True)
        for name, target in self.packs.items():
            link = self.base / "custom_nodes" / name
            if not link.is_symlink():
                link.symlink_to(target, target_is_directory=True)
        self.port = free_port()
        command = [
            str(self.python), "main.py", "--listen", "127.0.0.1", "--port", str(self.port),
            "--disable-auto-launch", "--disable-api-nodes", "--database-url", "sqlite:///:memory:",
            "--base-directory", str(self.base), *self.flags,
        ]  # fmt: skip
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=self.checkout, stdout=log, stderr=subprocess.STDOUT, env=self.environment()
            )
        self._wait_until_ready()

    def environment(self) -> dict[str, str]:
        """What ComfyUI runs in: nothing of the tests' own."""
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "TRITON_INTERPRET")}
        environment.setdefault("OMP_NUM_THREADS", "1")  # tiny tensors: threads only wait for each other
        return environment

    def stop(self) -> None:
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(STOP_TIMEOUT)
        self._process = None

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            if not self.alive():
                raise HostError(f"ComfyUI must start, it exited; its log ends:\n{self.log()[-4000:]}")
            try:
                with urllib.request.urlopen(f"{self.url}/object_info/EmptyImage", timeout=5):
                    return
            except (urllib.error.URLError, TimeoutError, ConnectionError):
                time.sleep(0.2)
        self.stop()
        raise HostError(f"ComfyUI must answer within {START_TIMEOUT} s; its log ends:\n{self.log()[-4000:]}")


def default_packs() -> dict[str, Path]:
    packs = {path.name: path for path in TEST_PACKS.iterdir() if (path / "__init__.py").is_file()}
    return {"comfyui-turbowan": REPO, **packs}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
