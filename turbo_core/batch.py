"""Many prompts to one folder, in runs that may be killed at any time.

Prompts are lines of text, or JSON lines with a `prompt` and settings of its own. A video's name holds its prompt and a
checksum of everything that decides its content, so that the same line gives the same name wherever it stands. The
manifest, JSON lines too, gets a line for every video that is complete and every prompt that failed; a later run leaves
out what the manifest and the folder both hold. Two runs cannot have one folder at the same time.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from .errors import BackendUnavailableError, ServerGoneError, SettingsError, TurboWanError
from .maker import Maker
from .memory import is_out_of_memory
from .prompt_lines import check_prompt, read_prompt_lines
from .request import Request
from .video_file import PARTIAL

MANIFEST = "manifest.jsonl"
NAME_LENGTH = 48  # of the prompt, in a file's name
AHEAD = 32  # prompts that are encoded together
Key = str


@dataclass(frozen=True, kw_only=True)
class Line:
    """A prompt and the settings that its line gives."""

    number: int
    prompt: str
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A video to be made.

    Attributes:
        parameters: everything that decides it.
        request: None where `problem` says why the line cannot become one.
    """

    line: Line
    parameters: Mapping[str, Any]
    request: Request | None
    problem: str = ""

    @property
    def key(self) -> Key:
        """A checksum of the parameters."""
        text = json.dumps(self.parameters, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def file(self) -> str:
        words = re.sub(r"[^a-z0-9]+", "-", self.line.prompt.lower()).strip("-")[:NAME_LENGTH].strip("-")
        return f"{words or 'video'}-{self.key[:10]}.mp4"


def read_lines(path: Path, readers: Mapping[str, Callable[[Any], Any]]) -> list[Line]:
    """The prompts of a text file, or of a `.jsonl` with settings for `readers`; SettingsError names the line."""
    numbered = read_prompt_lines(path, "batch")
    if path.suffix.lower() == ".jsonl":
        lines = [_json_line(f"{path}: line {number}", number, line, readers, path.parent) for number, line in numbered]
    else:
        lines = [Line(number=number, prompt=line) for number, line in numbered]
    if not lines:
        raise SettingsError(f"batch: {path} must hold a prompt a line, it holds none; add some")
    return lines


def _json_line(where: str, number: int, text: str, readers: Mapping[str, Callable[[Any], Any]], folder: Path) -> Line:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise SettingsError(f"{where} must be JSON, it is not ({error.msg}); correct it") from error
    if not isinstance(content, dict) or not isinstance(content.get("prompt"), str):
        raise SettingsError(f'{where} must be an object with a "prompt", came {text[:60]}; write {{"prompt": "…"}}')
    check_prompt(content["prompt"], where)
    settings = {}
    for name, value in content.items():
        if name == "prompt":
            continue
        if name not in readers:
            raise SettingsError(f"{where}: a setting must be one of {', '.join(readers)}, came {name!r}; correct it")
        try:
            settings[name] = readers[name](value)
        except (ValueError, TypeError, ArgumentTypeError) as error:
            raise SettingsError(f"{where}: {name} came as {value!r} ({error}); correct it") from error
    if "image" in settings:
        settings["image"] = folder / settings["image"]  # an absolute path stays
    return Line(number=number, prompt=content["prompt"], settings=settings)


class Manifest:
    """The manifest of a folder, open for one run."""

    def __init__(self, folder: Path, file: IO[bytes]) -> None:
        self._folder, self._file = folder, file
        self._complete = {entry.get("key") for entry in _entries(file) if "error" not in entry}

    def done(self, job: Job) -> bool:
        """Whether the job's video was completed and is still there."""
        return job.key in self._complete and (self._folder / job.file).is_file()

    def add(self, entry: Mapping[str, Any]) -> None:
        """Append a line, and have it on the disk before anything else happens."""
        self._file.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        if "error" not in entry:
            self._complete.add(entry["key"])


@contextmanager
def manifest(folder: Path) -> Iterator[Manifest]:
    """The folder's manifest, made if need be and locked; what a killed run left half-done is taken away."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / MANIFEST).open("a+b") as file:
        _lock(file, folder)
        for left in folder.glob(f".*.mp4.*{PARTIAL}"):
            left.unlink()
        yield Manifest(folder, file)


def run(jobs: Sequence[Job], folder: Path, maker: Maker, tell: Callable[[str], None]) -> int:
    """Make what is not there yet; the number of prompts that failed.

    Raises:
        KeyboardInterrupt: after Ctrl-C, saying how far it came.
    """
    with manifest(folder) as book:
        wanted = _distinct(jobs)
        left = [job for job in wanted if not book.done(job)]
        tell(f"{len(wanted)} videos, {len(wanted) - len(left)} of them there already")
        failed = 0
        try:
            for start in range(0, len(left), AHEAD):
                group = left[start : start + AHEAD]
                maker.prepare([job.request for job in group if job.request is not None])
                for index, job in enumerate(group, start + 1):
                    tell(f"[{index}/{len(left)}] {job.line.prompt}")
                    failed += not _make(job, folder, book, maker, tell)
        except KeyboardInterrupt as stopped:
            there = sum(map(book.done, wanted))
            raise KeyboardInterrupt(
                f"{there} of {len(wanted)} videos are complete; run the same command again to go on"
            ) from stopped
    return failed


def _distinct(jobs: Sequence[Job]) -> list[Job]:
    """Of equal lines the first."""
    distinct: dict[Key, Job] = {}
    for job in jobs:
        distinct.setdefault(job.key, job)
    return list(distinct.values())


def _make(job: Job, folder: Path, book: Manifest, maker: Maker, tell: Callable[[str], None]) -> bool:
    started = time.monotonic()
    entry = {"prompt": job.line.prompt, "line": job.line.number, "key": job.key}
    try:
        if job.request is None:
            raise SettingsError(job.problem)
        maker.make(job.request, folder / job.file)
    except ServerGoneError:  # the next prompts would fare no better
        raise
    except (TurboWanError, BackendUnavailableError, OSError, RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and not is_out_of_memory(error):
            raise
        tell(f"failed: {error}")
        book.add({**entry, "error": str(error), "parameters": job.parameters})
        return False
    seconds = round(time.monotonic() - started, 2)
    file = folder / job.file
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    book.add({**entry, "file": job.file, "seconds": seconds, "sha256": sha256, "parameters": job.parameters})
    return True


def _entries(file: IO[bytes]) -> Iterator[dict[str, Any]]:
    """The manifest's lines; one that a killed run left torn is cut off."""
    file.seek(0)
    whole = 0
    for line in file:
        if not line.endswith(b"\n"):
            break
        whole += len(line)
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            yield entry
    file.truncate(whole)


def _lock(file: IO[bytes], folder: Path) -> None:
    """Held until the file is closed, also by a kill."""
    try:
        if os.name == "nt":
            import msvcrt

            file.seek(1 << 30)  # a lock may lie behind the end; on the text it would keep readers out
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise SettingsError(
            f"batch: {folder} must belong to one run at a time, another one is at work there; wait for it, or choose "
            "another folder"
        ) from error
