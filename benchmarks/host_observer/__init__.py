"""A ComfyUI pack for `host_run`: GPU memory of every node, and websocket times that mean finished GPU work.

The host tells its clients when a node starts and when a step ends. Before each such message the GPU is
synchronized, so that a message's time of arrival holds all work queued before it; at a node's start torch's peaks
are read and reset. Progress of other kinds (frames of a decode, kernels compiled) passes as it is: a decode that
waited for the GPU after every few frames would be slower than it is without an observer.
`GET /turbowan_bench/memory` gives `[{"node", "allocated", "reserved"}]` in bytes and forgets it.
"""

from __future__ import annotations

from typing import Any

import torch
from aiohttp import web
from comfy_api.latest import ComfyExtension, io
from server import PromptServer

NODE_START, PROGRESS, RUN_END = "executing", "progress", "execution_success"
MOST_STEPS = 4  # progress towards more is no few-step sampler's


class Observer:
    """Stands before a server's `send_sync`."""

    def __init__(self, server: PromptServer) -> None:
        self.send = server.send_sync
        self.node: str | None = None
        self.peaks: list[dict[str, Any]] = []

    def __call__(self, event: str, data: Any, sid: str | None = None) -> None:
        step_end = event == PROGRESS and data["max"] <= MOST_STEPS
        if (step_end or event in (NODE_START, RUN_END)) and torch.cuda.is_available():
            torch.cuda.synchronize()
            if not step_end:
                self._close(data.get("node"))
        self.send(event, data, sid)

    def _close(self, next_node: str | None) -> None:
        if self.node is not None:
            allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
            self.peaks.append({"node": self.node, "allocated": allocated, "reserved": reserved})
        torch.cuda.reset_peak_memory_stats()
        self.node = next_node

    async def report(self, _: web.Request) -> web.Response:
        peaks, self.peaks = self.peaks, []
        return web.json_response(peaks)


class HostObserver(ComfyExtension):
    async def on_load(self) -> None:
        server = PromptServer.instance
        observer = Observer(server)
        server.send_sync = observer
        server.routes.get("/turbowan_bench/memory")(observer.report)

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return []


async def comfy_entrypoint() -> ComfyExtension:
    return HostObserver()
