"""Download files of the catalogue: resumed after a break, verified against the sha256 that the hub reports.

hub's size and sha256 → free disk → ``.NAME.SHA256.partial`` beside the file's place, which grows over any number of
runs → checksum → the file's own name. The checksum in the partial's name keeps two versions of a file apart.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers
from tqdm import tqdm

from .catalogue import HUB, HubFile
from .errors import DownloadError
from .model_folders import find, target_folder

log = logging.getLogger("turbowan")

READ_BYTES = 1 << 22
RESERVE_BYTES = 1 << 28  # left free on the disk
# The exceptions of the HTTP library below the hub's client, which differs by version.
HTTP_ERRORS = tuple(kind for kind in HfHubHTTPError.__mro__ if kind.__module__ != "builtins")
AGAIN = "run the same command again, what came is kept"


@dataclass(frozen=True, kw_only=True)
class Job:
    """A file of the hub and its place on this machine."""

    file: HubFile
    target: Path
    size: int
    sha256: str

    @property
    def partial(self) -> Path:
        return self.target.with_name(f".{self.target.name}.{self.sha256[:12]}.partial")

    @property
    def missing_bytes(self) -> int:
        """What is still to come."""
        if _size(self.target) == self.size:
            return 0
        return max(self.size - _size(self.partial), 0)


def download(
    files: Sequence[HubFile],
    *,
    to: Path | None = None,
    force: bool = False,
    endpoint: str | None = None,
    report: Callable[[str], None] = log.info,
) -> list[Path]:
    """Bring every file to its folder and return their paths; DownloadError says why one cannot be had.

    Args:
        to: a folder that stands for ComfyUI's models folder.
        force: replace a file of the same name whose content is another.
        endpoint: the hub's address, HF_ENDPOINT's or the public one if not given.
        report: told a line for each finished file.
    """
    jobs = plan(files, to=to, endpoint=endpoint)
    _require_disk(jobs)
    for job in jobs:
        report(_bring(job, force, endpoint))
    return [job.target for job in jobs]


def plan(files: Sequence[HubFile], *, to: Path | None = None, endpoint: str | None = None) -> list[Job]:
    """Ask the hub for each file's size and checksum, and find each file's place."""
    places = {file: find(file.name, file.folder, to) or target_folder(file.folder, to) / file.name for file in files}
    api = HfApi(endpoint=endpoint)
    jobs = []
    for repository in dict.fromkeys(file.repository for file in files):
        wanted = [file for file in files if file.repository == repository]
        with _hub_errors(repository):
            entries = api.get_paths_info(repository, [file.path for file in wanted])
        known = {entry.path: entry for entry in entries}
        for file in wanted:
            entry = known.get(file.path)
            if entry is None:
                raise DownloadError(
                    f"download: {repository} must hold {file.path}, it does not (any more); look at {file.page} for "
                    "its new name, download it by hand, and report this"
                )
            if entry.lfs is None:
                raise DownloadError(
                    f"download: the hub must report a sha256 of {file.name}, it reports none; download it by hand "
                    f"from {file.page}"
                )
            jobs.append(Job(file=file, target=places[file], size=entry.size, sha256=entry.lfs.sha256))
    return jobs


def _bring(job: Job, force: bool, endpoint: str | None) -> str:
    """One file, whole and verified; returns a line that says what was done."""
    job.target.parent.mkdir(parents=True, exist_ok=True)
    with _alone(job):
        if job.target.exists() and not force:
            return _keep(job)
        _transfer(job, endpoint)
        _verify_partial(job)
        os.replace(job.partial, job.target)
    return f"{job.target}: {job.size / 1e9:.2f} GB, verified"


@contextmanager
def _alone(job: Job) -> Iterator[None]:
    """No other process writes this file meanwhile."""
    path = Path(f"{job.partial}.lock")
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise DownloadError(
            f"download: {job.target.name} must be downloaded once at a time, another process is at it; wait for it"
        ) from error
    try:
        yield
    finally:
        lock.release()
        with suppress(OSError):  # Windows: the next process has it open already
            path.unlink()


def _keep(job: Job) -> str:
    """A file that is there must be the hub's."""
    same = _size(job.target) == job.size and _sha256(job.target) == job.sha256
    if not same:
        raise DownloadError(
            f"download: {job.target} must be the hub's file, it is another (or an older) one; rename it to keep it, "
            "or replace it with --force"
        )
    return f"{job.target}: already there, verified"


def _transfer(job: Job, endpoint: str | None) -> None:
    """Let the partial file grow to its full size; a broken connection is taken up for as long as it brings bytes."""
    url = hf_hub_url(job.file.repository, job.file.path, endpoint=endpoint)
    headers = build_hf_headers(library_name="turbowan")
    while True:
        if _size(job.partial) > job.size:  # where a proxy knows no ranges, older clients append the whole file
            job.partial.unlink()
        done = _size(job.partial)
        if done == job.size and job.partial.exists():
            return
        try:
            with _hub_errors(job.file.repository), job.partial.open("ab") as file:
                http_get(
                    url,
                    file,
                    resume_size=done,
                    headers=headers,
                    expected_size=job.size,
                    displayed_filename=job.target.name,
                )
        except DownloadError as error:
            if not isinstance(error, ConnectionBrokenError) or _size(job.partial) == done:
                raise
            log.warning("%s", error)


def _verify_partial(job: Job) -> None:
    found = _sha256(job.partial)
    if found != job.sha256:
        job.partial.unlink()
        raise DownloadError(
            f"download: the sha256 of {job.target.name} must be {job.sha256} as the hub reports it, came {found}; "
            "the piece was removed: run the same command again, without a proxy or mirror if there is one"
        )


def _require_disk(jobs: Sequence[Job]) -> None:
    """Every disk must have room for all of its files before the first one begins."""
    needed: Counter[int] = Counter()
    example: dict[int, Path] = {}
    for job in jobs:
        folder = next((parent for parent in job.target.absolute().parents if parent.exists()), None)
        if folder is None:  # Windows: a drive that is not there
            raise DownloadError(
                f"download: {job.target.parent} must be on a disk of this machine, it is not; choose another with "
                "--to DIR"
            )
        device = folder.stat().st_dev
        needed[device] += job.missing_bytes
        example[device] = folder
    for device, size in needed.items():
        free = shutil.disk_usage(example[device]).free
        if size and free < size + RESERVE_BYTES:
            raise DownloadError(
                f"download: {example[device]} must have {size / 1e9:.1f} GB free, it has {free / 1e9:.1f} GB; free "
                "some space, or choose another disk with --to DIR"
            )


class ConnectionBrokenError(DownloadError):
    """The hub could not be reached, or its answer broke off."""


@contextmanager
def _hub_errors(repository: str) -> Iterator[None]:
    """The hub's refusals in our words."""
    page = f"{HUB}/{repository}"
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise DownloadError(
            "download: the hub must be reachable, HF_HUB_OFFLINE is set; unset it, or download "
            f"by hand from {page} on another machine"
        ) from error
    except GatedRepoError as error:
        raise DownloadError(
            f"download: {repository} is given to those who accepted its terms; accept them at {page}, then run "
            "`hf auth login`, or set HF_TOKEN"
        ) from error
    except RepositoryNotFoundError as error:
        raise DownloadError(
            f"download: the repository {repository} must exist and be open to you, the hub says it is not; look at "
            f"{page}, and if it is private, set HF_TOKEN"
        ) from error
    except EntryNotFoundError as error:
        raise DownloadError(f"download: {repository} must hold the file, the hub says it does not; {page}") from error
    except HTTP_ERRORS as error:
        raise ConnectionBrokenError(_broken(error)) from error
    except OSError as error:
        if error.errno is not None and error.errno not in (errno.ECONNRESET, errno.EPIPE, errno.ETIMEDOUT):
            raise  # the disk's, not the network's
        raise ConnectionBrokenError(_broken(error)) from error


def _broken(error: BaseException) -> str:
    what = str(error).strip().splitlines()
    return (
        f"download: the hub must answer, {type(error).__name__} came: {what[0] if what else 'no more is known'}; check "
        f"the network (HTTPS_PROXY for a proxy, HF_ENDPOINT for a mirror) and {AGAIN}"
    )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with (
        path.open("rb") as file,
        tqdm(
            total=_size(path),
            unit="B",
            unit_scale=True,
            desc=f"verifying {path.name.lstrip('.')}"[:40],
            leave=False,
            disable=None,
        ) as bar,
    ):
        while piece := file.read(READ_BYTES):
            digest.update(piece)
            bar.update(len(piece))
    return digest.hexdigest()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
