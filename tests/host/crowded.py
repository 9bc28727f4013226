"""A GPU whose memory another process holds."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_HOG = """
import sys, torch
free, _ = torch.cuda.mem_get_info()
held = torch.empty(int(free - float(sys.argv[1]) * 2**30), dtype=torch.uint8, device="cuda")
torch.cuda.synchronize()
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def crowded_gpu(left_gib: float) -> Iterator[None]:
    """Another process holds the first GPU's free memory down to `left_gib`."""
    hog = subprocess.Popen(
        [sys.executable, "-c", _HOG, str(left_gib)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert hog.stdout.readline().strip() == "held"
        yield
    finally:
        hog.stdin.close()
        hog.wait(60)
