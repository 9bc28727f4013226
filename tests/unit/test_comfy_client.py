"""The client of a ComfyUI elsewhere against servers that are none or answer oddly; the host tests have a real one."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from turbowan.turbo_core import comfy_client, server_files, server_maker
from turbowan.turbo_core.comfy_client import ComfyClient
from turbowan.turbo_core.errors import ServerError, ServerGoneError, SettingsError
from turbowan.turbo_core.expert import NetworkSettings
from turbowan.turbo_core.model_choice import Named, choose
from turbowan.turbo_core.request import Request
from turbowan.turbo_core.server_maker import ServerMaker

pytest.importorskip("websocket")

Answer = tuple[int, bytes]
Answers = dict[str, Answer | Callable[[], Answer]]


@pytest.fixture
def serve() -> Iterator[Callable[[Answers], str]]:
    """Serves answers by path; gives the URL."""
    servers: list[ThreadingHTTPServer] = []

    def start(answers: Answers) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                found = answers.get(self.path.partition("?")[0], (404, b""))
                status, body = found() if callable(found) else found
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET

            def log_message(self, *_: object) -> None: ...

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, args=(0.02,), daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def ok(content: object) -> Answer:
    return 200, json.dumps(content).encode()


@pytest.mark.parametrize("url", ["ftp://x", "http://", ""])
def test_urls(url: str) -> None:
    with pytest.raises(SettingsError, match="server: must be a URL"):
        ComfyClient(url)
    assert ComfyClient("127.0.0.1:8188").url == "http://127.0.0.1:8188"
    assert ComfyClient("https://box/comfy/").url == "https://box/comfy"


def test_nobody_there() -> None:
    with pytest.raises(ServerError, match="a ComfyUI must answer at http://127.0.0.1:9, there is none"):
        ComfyClient("http://127.0.0.1:9").node("TurboLoader")
    with pytest.raises(ServerError, match="there is none"):
        ComfyClient("http://127.0.0.1:9").run({}, lambda *_: None)


def test_somebody_else_there(serve: Callable[[Answers], str]) -> None:
    with pytest.raises(ServerError, match="came 404"):
        ComfyClient(serve({})).node("TurboLoader")
    with pytest.raises(ServerError, match="must be a ComfyUI, .* gives no JSON"):
        ComfyClient(serve({"/object_info/TurboLoader": (200, b"<html>")})).node("TurboLoader")


def test_something_that_is_no_web_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def greet() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(b"SSH-2.0-OpenSSH\r\n")

        threading.Thread(target=greet, daemon=True).start()
        with pytest.raises(ServerError, match="there is none .SSH-2.0"):
            ComfyClient(f"http://127.0.0.1:{listening.getsockname()[1]}").node("TurboLoader")


def test_this_machine_is_asked_without_a_proxy(
    serve: Callable[[Answers], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert ComfyClient(serve({"/object_info/TurboLoader": ok({})})).node("TurboLoader") is None


def test_an_unknown_node_is_none(serve: Callable[[Answers], str]) -> None:
    assert ComfyClient(serve({"/object_info/TurboLoader": ok({})})).node("TurboLoader") is None


def test_a_refused_workflow_says_why(serve: Callable[[Answers], str]) -> None:
    error = {"message": "Value not in list", "details": "file: 'a' not in ['b']"}
    answer = {"error": {"message": "failed"}, "node_errors": {"2": {"class_type": "TurboLoader", "errors": [error]}}}
    client = ComfyClient(serve({"/prompt": (400, json.dumps(answer).encode())}))
    with pytest.raises(ServerError, match="it says: TurboLoader: Value not in list, file: 'a' not in"):
        client._queue({})


def test_a_prompt_that_ended_unseen_is_found_in_the_history(serve: Callable[[Answers], str]) -> None:
    told = {"p": {"outputs": {}}}
    assert ComfyClient(serve({"/history/p": ok(told)}))._ended("p")
    idle = ok({"queue_running": [], "queue_pending": []})
    waiting = ok({"queue_running": [], "queue_pending": [[1, "p", {}]]})
    assert not ComfyClient(serve({"/history/p": ok({}), "/queue": waiting}))._ended("p")
    with pytest.raises(ServerError, match="has lost the prompt, was it restarted"):
        ComfyClient(serve({"/history/p": ok({}), "/queue": idle}))._ended("p")
    answers = iter([ok({}), ok(told)])
    assert ComfyClient(serve({"/history/p": lambda: next(answers), "/queue": idle}))._ended("p")


def test_it_asks_patiently(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comfy_client.time, "sleep", lambda _: None)
    asked: list[int] = []

    def ask() -> int:
        asked.append(1)
        if len(asked) < 3:
            raise ServerGoneError("away")
        return 7

    assert ComfyClient._patiently(ask) == 7
    with pytest.raises(ServerError, match="away"):
        ComfyClient._patiently(lambda: asked.clear() or ask())


def test_a_download_is_whole_or_nothing(serve: Callable[[Answers], str], tmp_path: Path) -> None:
    file = {"filename": "a b.mp4", "subfolder": "video", "type": "output"}
    told: list[tuple[int, int]] = []
    ComfyClient(serve({"/view": (200, b"x" * 9)})).download(file, tmp_path / "a.mp4", lambda *step: told.append(step))
    assert (tmp_path / "a.mp4").read_bytes() == b"x" * 9
    assert told[-1] == (9, 9)
    with pytest.raises(ServerError, match="came 404"):
        ComfyClient(serve({})).download(file, tmp_path / "b.mp4", lambda *_: None)
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_an_unreadable_image(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="image: .* must be readable"):
        ComfyClient("http://127.0.0.1:9").upload_image(tmp_path / "none.png")


@pytest.mark.parametrize(
    ("image", "low", "message"),
    [(None, "low.pth", "must get one model, got high.pth and low.pth"), (Path("a.png"), None, "name the other one")],
)
def test_a_workflow_gets_as_many_networks_as_it_loads(image: Path | None, low: str | None, message: str) -> None:
    choice = choose("high.pth", Named(low=low), image=image is not None, server=True)
    maker = ServerMaker(ComfyClient("http://127.0.0.1:9"), choice, NetworkSettings(), lambda *_: None)
    with pytest.raises(SettingsError, match=message):
        maker.check(Request(prompt="a", size=(64, 48), image=image))


@pytest.mark.parametrize("family", server_maker.NAMES)
def test_progress_of_every_shipped_node_of_ours_is_told(family: str) -> None:
    shipped = json.loads((server_maker.WORKFLOWS / server_maker.NAMES[family]).read_text(encoding="utf-8"))
    ours = {node["class_type"] for node in shipped.values() if node["class_type"].startswith(server_files.PACK)}
    assert "TurboVAEDecodeVideo" in ours
    assert ours <= server_maker.STAGES.keys()
