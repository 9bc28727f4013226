"""Nodes for tests only: inputs without large models, probes that report JSON in the UI, hooks that count."""

from aiohttp import web
from server import PromptServer

from . import clips, hooks, memory, probes, sources

NODE_CLASS_MAPPINGS = {cls.__name__: cls for module in (sources, clips, probes, hooks, memory) for cls in module.NODES}


@PromptServer.instance.routes.get("/turbowan_test/wishes")
async def wishes(_: web.Request) -> web.Response:
    """What ``POST /free`` asked for and the prompt worker has not taken yet."""
    return web.json_response(PromptServer.instance.prompt_queue.get_flags(reset=False))
