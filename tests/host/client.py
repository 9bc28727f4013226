"""ComfyUI's HTTP and websocket API as the tests need it; every wait is bounded."""

from __future__ import annotations

import json
import struct
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import websocket

PREVIEW_IMAGE, TEXT = 1, 3
WISH_AGAIN = 2.0
FREE_TIMEOUT = 30
ENDINGS = ("execution_success", "execution_error", "execution_interrupted")
Prompt = dict[str, dict[str, Any]]


class PromptRefused(Exception):
    """``POST /prompt`` answered 400; ``answer`` is the host's JSON."""

    def __init__(self, answer: dict[str, Any]) -> None:
        super().__init__(json.dumps(answer, indent=1))
        self.answer = answer


@dataclass
class Run:
    """What the websocket told about one prompt; `texts` are the lines written on nodes, by id."""

    prompt_id: str
    ending: str = ""
    events: list[dict[str, Any]] = field(default_factory=list)
    previews: list[bytes] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return self.ending == "execution_success"

    @property
    def error(self) -> str:
        """Type and text of the exception that ended the run."""
        data = self.events[-1]["data"]
        return f"{data.get('exception_type')}: {data.get('exception_message')}" if "exception_message" in data else ""

    def progress(self, node: str) -> list[tuple[int, int]]:
        """(value, max) of the progress messages that ``node`` sent."""
        data = (event["data"] for event in self.events if event["type"] == "progress")
        return [(item["value"], item["max"]) for item in data if str(item.get("node")) == node]

    def executed(self) -> list[str]:
        """Ids of the nodes that ran, in order (a cached node does not)."""
        data = (event["data"] for event in self.events if event["type"] == "executing")
        return [str(item["node"]) for item in data if item.get("node") is not None]

    def report(self, node: str) -> Any:
        """The JSON that one of the test nodes left in its UI output."""
        return json.loads(self.outputs[node]["report"][0])


class ComfyClient:
    """One websocket client of the ComfyUI at ``url``."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.client_id = uuid.uuid4().hex

    def get(self, path: str, *, timeout: float = 30) -> Any:
        return json.loads(self.get_bytes(path, timeout=timeout))

    def get_bytes(self, path: str, *, timeout: float = 30) -> bytes:
        with urllib.request.urlopen(self.url + path, timeout=timeout) as answer:
            return answer.read()

    def post(self, path: str, body: dict[str, Any], *, timeout: float = 30) -> Any:
        data, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, data=data, headers=headers)
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            content = answer.read()
        return json.loads(content) if content else None

    def object_info(self, node: str = "") -> dict[str, Any]:
        return self.get(f"/object_info/{node}" if node else "/object_info")

    def history(self, prompt_id: str) -> dict[str, Any]:
        return self.get(f"/history/{prompt_id}")[prompt_id]

    def interrupt(self) -> None:
        self.post("/interrupt", {})

    def free(self, *, caches: bool = True) -> None:
        """Have all models unloaded, and the caches dropped, before the next prompt."""
        # The host notes the wish and may still run a prompt that comes at once first: wait until its worker has
        # taken the note; the same thread runs the prompts. A note that comes while the worker collects garbage behind
        # a prompt wakes nobody, and would lie there until the next prompt: leave it again.
        deadline = time.monotonic() + FREE_TIMEOUT
        noted = float("-inf")
        while time.monotonic() < deadline:
            if time.monotonic() - noted >= WISH_AGAIN:
                self.post("/free", {"unload_models": True, "free_memory": caches})
                noted = time.monotonic()
            if not self.get("/turbowan_test/wishes"):
                return
            time.sleep(0.02)
        raise TimeoutError("the host must take a /free within 30 s; a prompt is still running")

    def view(self, filename: str, subfolder: str = "", kind: str = "output") -> bytes:
        query = urllib.parse.urlencode({"filename": filename, "subfolder": subfolder, "type": kind})
        return self.get_bytes(f"/view?{query}")

    def upload_image(self, path: Path) -> str:
        """Upload to the input folder; returns the name to put into LoadImage."""
        boundary = uuid.uuid4().hex
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{path.name}"\r\n'
        body = (head + "Content-Type: image/png\r\n\r\n").encode() + path.read_bytes()
        body += f"\r\n--{boundary}--\r\n".encode()
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        request = urllib.request.Request(f"{self.url}/upload/image", data=body, headers=headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read())["name"]

    def queue(self, prompt: Prompt, workflow: dict[str, Any] | None = None) -> str:
        """``workflow``: what the frontend would send beside the prompt."""
        extra = {"extra_pnginfo": {"workflow": workflow}} if workflow else {}
        body = {"prompt": prompt, "client_id": self.client_id, "extra_data": extra}
        try:
            return self.post("/prompt", body)["prompt_id"]
        except urllib.error.HTTPError as error:
            raise PromptRefused(json.loads(error.read())) from error

    def run(
        self,
        prompt: Prompt,
        *,
        timeout: float = 120,
        on_event: Callable[[dict[str, Any]], None] | None = None,
        workflow: dict[str, Any] | None = None,
    ) -> Run:
        """Queue ``prompt`` and follow it to its end; ``on_event`` sees each message as it comes."""
        address = self.url.replace("http://", "ws://") + f"/ws?clientId={self.client_id}"
        socket = websocket.create_connection(address, timeout=10)
        try:
            run = Run(self.queue(prompt, workflow))
            _follow(socket, run, time.monotonic() + timeout, on_event)
        finally:
            socket.close()
        return run


def _follow(
    socket: websocket.WebSocket, run: Run, deadline: float, on_event: Callable[[dict[str, Any]], None] | None
) -> None:
    while not run.ending:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"prompt must end in time; last messages: {run.events[-5:]}")
        socket.settimeout(min(left, 5))
        try:
            message = socket.recv()
        except websocket.WebSocketTimeoutException:
            continue
        if isinstance(message, bytes):
            kind, length = struct.unpack(">II", message[:8])
            if kind == PREVIEW_IMAGE:
                run.previews.append(message[8:])
            elif kind == TEXT:
                run.texts[message[8 : 8 + length].decode()] = message[8 + length :].decode()
            continue
        event = json.loads(message)
        if event.get("data", {}).get("prompt_id", run.prompt_id) != run.prompt_id:
            continue
        run.events.append(event)
        if event["type"] == "executed":
            run.outputs[str(event["data"]["node"])] = event["data"]["output"] or {}
        if event["type"] in ENDINGS:
            run.ending = event["type"]
        if on_event is not None:
            on_event(event)
