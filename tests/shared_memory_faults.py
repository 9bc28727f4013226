"""What no compiler refuses and a GPU punishes now and then, found in the TTGIR of a compiled Gluon kernel."""

from __future__ import annotations

import re
from collections.abc import Iterator

VIEW = re.compile(r"(%\S+) = ttg\.memdesc_\w+ (%[\w#]+)")
COPY = re.compile(r"ttng\.async_tma_copy_global_to_local .*\] (%[\w#]+), ")
LOAD = re.compile(r"ttg\.local_load (%[\w#]+) ")


def idle_barriers(ttgir: str) -> set[str]:
    """Names of the allocations whose barriers are initialised and then left alone: nobody waits or arrives.

    Triton gives their memory to something else while the kernel runs, and where another process has the GPU in
    between, the hardware puts a barrier back over it.
    """
    lines = ttgir.splitlines()

    def users(name: str) -> list[str]:
        use = re.compile(re.escape(name) + r"(?![\w#])")
        return [line for line in lines if use.search(line.split(" = ", 1)[-1])]

    idle = set()
    for name in re.findall(r"(%\S+) = ttg\.local_alloc : \(\) -> !ttg\.memdesc<\d+x1xi64", ttgir):
        views = [line.split(" = ")[0].strip() for line in users(name) if "ttg.memdesc_index" in line]
        others = [line for line in users(name) if "ttg.memdesc_index" not in line]
        others += [line for view in views for line in users(view) if "ttng.init_barrier" not in line]
        if not others:
            idle.add(name)
    return idle


def filled_by_copies(ttgir: str) -> set[str]:
    """Names of the allocations that TMA fills."""
    return {root for _, root in _with_roots(ttgir, COPY) if root}


def unfenced_reads(ttgir: str) -> set[str]:
    """Names of the allocations that TMA fills and that are given back for it after loads without a fence.

    TMA's writes go another way than loads: they can come before loads that were issued earlier and still queue. Found
    where the barrier behind a load is in the lines behind it, not where a loop leads back to it.
    """
    filled = filled_by_copies(ttgir)
    unfenced, read = set(), set()
    for line, root in _with_roots(ttgir, LOAD):
        if root in filled:
            read.add(root)
        elif "ttng.fence_async_shared" in line or re.match(r"\s*partition\d+\(", line):
            read.clear()
        elif "ttng.arrive_barrier" in line:
            unfenced |= read
            read.clear()
    return unfenced


def _with_roots(ttgir: str, use: re.Pattern[str]) -> Iterator[tuple[str, str | None]]:
    """Each line, and of the value that `use` finds in it the allocation it is a view of."""
    roots: dict[str, str] = {}
    captured: list[str] = []
    for line in ttgir.splitlines():
        if "ttg.warp_specialize(" in line:
            captured = re.search(r"warp_specialize\(([^)]*)\)", line)[1].split(", ")
        if "partition0(" in line:
            first = int(re.search(r"partition0\(%arg(\d+):", line)[1])
            roots |= {f"%arg{first + i}": roots.get(value, value) for i, value in enumerate(captured)}
        if view := VIEW.search(line):
            roots[view[1]] = roots.get(view[2], view[2])
        found = use.search(line)
        yield line, roots.get(found[1], found[1]) if found else None
