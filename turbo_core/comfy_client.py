"""A running ComfyUI's HTTP and websocket interface: upload, queue, follow, cancel, download."""

from __future__ import annotations

import hashlib
import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from .errors import ServerError, ServerGoneError, SettingsError
from .video_file import partial_name

Workflow = dict[str, dict[str, Any]]
NodeProgress = Callable[[str, int, int], None]
"""Called with (node id, done, in all)."""

TIMEOUT = 30.0  # seconds for an answer
SILENCE = 5.0  # of the websocket, after which the history is asked whether the prompt has ended
CONNECTIONS = 5  # attempts in a row before the server counts as gone
CHUNK = 1 << 20
LOOPBACK = ("localhost", "127.0.0.1", "::1")  # a proxy for the web would look for these on its own machine


class ComfyClient:
    def __init__(self, url: str) -> None:
        parts = urllib.parse.urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise SettingsError(f"server: must be a URL such as http://127.0.0.1:8188, got {url!r}; correct it")
        self.url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        self._id = uuid.uuid4().hex
        self._here = parts.hostname in LOOPBACK
        self._opener = urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if self._here else []))

    def node(self, kind: str) -> dict[str, Any] | None:
        """What the server says of a kind of node; None if it has none."""
        return self._json(f"/object_info/{urllib.parse.quote(kind)}").get(kind)

    def upload_image(self, path: Path) -> str:
        """The name under which LoadImage finds the image; the same content has the same name."""
        try:
            content = path.read_bytes()
        except OSError as error:
            raise SettingsError(f"image: {path} must be readable ({error.strerror}); check the name") from error
        name = f"turbowan-{hashlib.sha256(content).hexdigest()[:16]}{path.suffix.lower()}"
        boundary = uuid.uuid4().hex
        parts = [
            f'--{boundary}\r\nContent-Disposition: form-data; name="overwrite"\r\n\r\ntrue\r\n'.encode(),
            f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'.encode(),
            b"Content-Type: application/octet-stream\r\n\r\n",
            content,
            f"\r\n--{boundary}--\r\n".encode(),
        ]
        kind = f"multipart/form-data; boundary={boundary}"
        told = self._json("/upload/image", b"".join(parts), kind)
        return f"{told['subfolder']}/{told['name']}" if told.get("subfolder") else told["name"]

    def run(self, workflow: Workflow, progress: NodeProgress) -> dict[str, Any]:
        """Queue the workflow and follow it to its end; the outputs by node. Ctrl-C cancels this prompt alone."""
        prompt_id = ""
        try:
            with closing(self._connect()) as socket:  # before the prompt, so that none of its messages is missed
                prompt_id = self._queue(workflow)
                self._follow(socket, prompt_id, progress)
        except KeyboardInterrupt:
            if prompt_id:
                self.cancel(prompt_id)
            raise
        return self._outputs(prompt_id)

    def cancel(self, prompt_id: str) -> None:
        """Take a prompt from the queue, or stop it if it runs; no other is touched."""
        with suppress(ServerError):
            self._request("/queue", json.dumps({"delete": [prompt_id]}).encode())
            self._request("/interrupt", json.dumps({"prompt_id": prompt_id}).encode())

    def download(self, file: dict[str, str], target: Path, progress: Callable[[int, int], None]) -> None:
        """Write a file of the server's output folder; whole or not at all."""
        query = {
            "filename": file["filename"],
            "subfolder": file.get("subfolder", ""),
            "type": file.get("type", "output"),
        }
        partial = partial_name(target)
        try:
            with self._open(f"/view?{urllib.parse.urlencode(query)}") as answer, partial.open("wb") as out:
                total = int(answer.headers.get("Content-Length") or 0)
                done = 0
                while block := answer.read(CHUNK):
                    out.write(block)
                    done += len(block)
                    progress(done, max(total, done))
            if done < total:
                raise ServerError(f"server: the video must come whole, {done} of {total} bytes came; try again")
            partial.replace(target)
        except http.client.HTTPException as error:
            raise ServerError(
                f"server: the video must come whole, its answer broke off ({error}); try again"
            ) from error
        finally:
            partial.unlink(missing_ok=True)

    def _queue(self, workflow: Workflow) -> str:
        body = json.dumps({"prompt": workflow, "client_id": self._id}).encode()
        try:
            return self._json("/prompt", body)["prompt_id"]
        except _RefusedError as refused:
            raise ServerError(f"server: {self.url} must accept the workflow, it says: {refused.reasons()}") from refused

    def _follow(self, socket: Any, prompt_id: str, progress: NodeProgress) -> None:
        """Return when the prompt has ended well; ServerError where it failed or was cancelled there.

        A connection that breaks is made again.
        """
        import websocket

        while True:
            with closing(socket), suppress(websocket.WebSocketException, OSError):
                for event in self._events(socket, prompt_id):
                    if _tell(event, progress):
                        return
            if self._patiently(lambda: self._ended(prompt_id)):
                return
            socket = self._patiently(self._connect)

    def _events(self, socket: Any, prompt_id: str) -> Iterator[dict[str, Any]]:
        """Messages about the prompt, until the connection breaks or it turns out that the prompt ended unnoticed."""
        import websocket

        socket.settimeout(SILENCE)
        while True:
            try:
                message = socket.recv()
            except websocket.WebSocketTimeoutException:
                if self._patiently(lambda: self._ended(prompt_id)):
                    return
                continue
            if not message:
                return
            if isinstance(message, str):  # else a preview
                event = json.loads(message)
                if event.get("data", {}).get("prompt_id") == prompt_id:
                    yield event

    def _ended(self, prompt_id: str) -> bool:
        """Whether the prompt is in the history; ServerError if it is neither there nor in the queue."""
        if prompt_id in self._json(f"/history/{prompt_id}"):
            return True
        queue = self._json("/queue")
        if any(entry[1] == prompt_id for entry in (*queue["queue_running"], *queue["queue_pending"])):
            return False
        if prompt_id in self._json(f"/history/{prompt_id}"):  # it may have ended between the questions
            return True
        raise ServerError(f"server: {self.url} has lost the prompt, was it restarted? run it again")

    @staticmethod
    def _patiently(ask: Callable[[], Any]) -> Any:
        """Ask again for a while where nobody answers: the video is being made all the same."""
        for _ in range(CONNECTIONS - 1):
            try:
                return ask()
            except ServerGoneError:
                time.sleep(1)
        return ask()

    def _outputs(self, prompt_id: str) -> dict[str, Any]:
        entry = self._history(prompt_id)
        status = entry.get("status", {})
        if status.get("status_str") == "error":
            for kind, data in status.get("messages", []):
                _tell({"type": kind, "data": data}, lambda *_: None)
            raise ServerError(f"server: {self.url} must make the video, the prompt failed there; look at its log")
        return entry["outputs"]

    def _history(self, prompt_id: str) -> dict[str, Any]:
        """Of a prompt that has ended: the server tells so a moment before it writes the history."""
        deadline = time.monotonic() + TIMEOUT
        while prompt_id not in (history := self._json(f"/history/{prompt_id}")):
            if time.monotonic() > deadline:
                raise ServerError(f"server: {self.url} must keep a history of its prompts, this one is not in it")
            time.sleep(0.05)
        return history[prompt_id]

    def _connect(self) -> Any:
        import websocket

        address = f"ws{self.url.removeprefix('http')}/ws?clientId={self._id}"
        try:
            return websocket.create_connection(
                address, timeout=TIMEOUT, http_no_proxy=list(LOOPBACK) if self._here else None
            )
        except (websocket.WebSocketException, OSError) as error:
            raise self._unreachable(error) from error

    def _json(self, path: str, body: bytes | None = None, kind: str = "application/json") -> Any:
        answer = self._request(path, body, kind)
        try:
            return json.loads(answer)
        except ValueError as error:
            raise ServerError(
                f"server: {self.url} must be a ComfyUI, {path} gives no JSON; correct --server"
            ) from error

    def _request(self, path: str, body: bytes | None = None, kind: str = "application/json") -> bytes:
        with self._open(path, body, kind) as answer:
            try:
                return answer.read()
            except (http.client.HTTPException, OSError) as error:
                raise self._unreachable(error) from error

    def _open(self, path: str, body: bytes | None = None, kind: str = "application/json") -> Any:
        request = urllib.request.Request(self.url + path, data=body, headers={"Content-Type": kind} if body else {})
        try:
            return self._opener.open(request, timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            if error.code == 400:
                raise _RefusedError(error.read()) from error
            raise ServerError(
                f"server: {self.url}{path.partition('?')[0]} must answer, came {error.code} {error.reason}; is it a "
                "ComfyUI of 0.8.0 or newer?"
            ) from error
        except (http.client.HTTPException, OSError) as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> ServerGoneError:
        reason = getattr(error, "reason", error)
        return ServerGoneError(
            f"server: a ComfyUI must answer at {self.url}, there is none ({reason}); start it, or correct --server"
        )


def _tell(event: dict[str, Any], progress: NodeProgress) -> bool:
    """Pass progress on; whether the prompt has ended well."""
    kind, data = event["type"], event["data"]
    if kind == "progress" and data.get("node") is not None:
        progress(str(data["node"]), int(data["value"]), int(data["max"]))
    elif kind == "execution_error":
        raise ServerError(f"server: {data.get('node_type')} stopped: {str(data.get('exception_message')).strip()}")
    elif kind == "execution_interrupted":
        raise ServerError("server: somebody cancelled the prompt; run it again")
    return kind == "execution_success"


class _RefusedError(ServerError):
    """An answer 400, with the server's JSON."""

    def __init__(self, answer: bytes) -> None:
        super().__init__(f"server: it refused: {answer[:500].decode(errors='replace')}")
        self._answer = answer

    def reasons(self) -> str:
        """What is wrong, node by node."""
        try:
            answer = json.loads(self._answer)
        except ValueError:
            return self._answer[:500].decode(errors="replace")
        found = [
            f"{node.get('class_type')}: {error.get('message')}, {error.get('details')}"
            for node in (answer.get("node_errors") or {}).values()
            for error in node.get("errors", [])
        ]
        return "; ".join(found) or str(answer.get("error"))
