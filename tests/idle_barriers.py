"""Barriers of a compiled Gluon kernel that nobody waits for or arrives at."""

from __future__ import annotations

import re


def idle_barriers(ttgir: str) -> set[str]:
    """Names of the allocations in a kernel's TTGIR whose barriers are initialised and then left alone.

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
