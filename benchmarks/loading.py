"""How fast a model file's weights reach the GPU: by `file_reading` and from the mapping, beside the disk's own speed.

    python -m turbowan.benchmarks.loading [--model 14b] [--file FILE] [--cold-only]

Without a file a random quantized one is written in the released layout. Each way runs cold (the file's pages are
dropped from the page cache before) and then from the page cache. Seconds end when the GPU holds the last byte.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from turbowan.benchmarks import released_files, synthetic
from turbowan.turbo_core import checkpoint, file_reading
from turbowan.turbo_core.checkpoint import Checkpoint
from turbowan.turbo_core.file_reading import MappedFile

VAE_WIDTH = 96
DEVICE = torch.device("cuda")


def forget(path: Path) -> None:
    """Drop the file from the page cache; what is not on the disk yet goes there first. Linux."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def disk_alone(source: Checkpoint) -> None:
    """The same reads into memory that nobody copies from."""

    def read(start: int) -> None:
        buffer = bytearray(file_reading.CHUNK)
        with source.path.open("rb", buffering=0) as file:
            file.seek(start)
            file.readinto(buffer)

    with ThreadPoolExecutor(file_reading.THREADS) as pool:
        list(pool.map(read, range(0, source.path.stat().st_size, file_reading.CHUNK)))


def from_mapping(source: Checkpoint) -> None:
    """As ComfyUI moves a module."""
    for tensor in source.tensors.values():
        tensor.to(DEVICE)
    torch.cuda.synchronize()


def from_file(source: Checkpoint) -> None:
    for _ in MappedFile(source.path, source.spans).to_device(list(source.tensors.values()), DEVICE):
        pass
    torch.cuda.synchronize()


Way = Callable[[Checkpoint], None]
WAYS: dict[str, Way] = {
    "the disk alone": disk_alone,
    "file_reading": from_file,
    "the mapping": from_mapping,
}


def seconds(path: Path, way: Way, *, cold: bool) -> float:
    """Of one load, the checkpoint opened anew: pages that were mapped before cost nothing."""
    source = checkpoint.read(path)
    if cold:
        forget(path)
    started = time.perf_counter()
    way(source)
    return time.perf_counter() - started


def measure(path: Path, *, cold_only: bool) -> None:
    size = path.stat().st_size
    torch.zeros(1, device=DEVICE)
    for name, way in WAYS.items():
        for cold in (True,) if cold_only else (True, False):
            taken = seconds(path, way, cold=cold)
            state = "cold" if cold else "from the page cache"
            print(f"{name:16s} {state:20s} {taken:6.2f} s  {size / taken / 1e9:6.2f} GB/s", flush=True)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=synthetic.MODELS, default="14b")
    parser.add_argument("--file", type=Path, help="a checkpoint of your own instead of a random one")
    parser.add_argument("--cold-only", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.file
        if path is None:
            started = time.perf_counter()
            path = released_files.write(Path(folder), synthetic.MODELS[arguments.model], VAE_WIDTH, DEVICE)
            forget(path)
            print(f"written in {time.perf_counter() - started:.1f} s", flush=True)
        print(f"{path.name}, {path.stat().st_size / 1e9:.2f} GB, {torch.cuda.get_device_name()}", flush=True)
        measure(path, cold_only=arguments.cold_only)


if __name__ == "__main__":
    main()
