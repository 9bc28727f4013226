"""An imitation of the model hub on a loopback port: files with their sha256, and the ways in which a hub fails."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import urllib.parse
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

RANGE = re.compile(r"bytes=(\d+)-")


@dataclass
class Hub:
    """Use as a context manager; `url` is what HF_ENDPOINT takes.

    Attributes:
        files: (repository, path) → content.
        refusals: repository → (status, X-Error-Code) given instead of any answer about it.
        promised: (repository, path) → a checksum to report instead of the content's.
        no_checksum: files that are reported without one.
        pieces: how many bytes each further request for content gets before its connection breaks; then all.
        broken_for_good: content requests after the pieces get none at all.
        whole_only: answers with the whole file whatever range is asked for, as some proxies do.
        stalls_after: every content request waits for the end of the test after so many bytes.
        ranges: where each request for content began.
    """

    files: dict[tuple[str, str], bytes] = field(default_factory=dict)
    refusals: dict[str, tuple[int, str]] = field(default_factory=dict)
    promised: dict[tuple[str, str], str] = field(default_factory=dict)
    no_checksum: set[tuple[str, str]] = field(default_factory=set)
    pieces: list[int] = field(default_factory=list)
    broken_for_good: bool = False
    whole_only: bool = False
    stalls_after: int | None = None
    ranges: list[int] = field(default_factory=list)

    def __enter__(self) -> Hub:
        hub, self._over = self, threading.Event()

        class Handler(_Handler):
            def __init__(self, *arguments: Any) -> None:
                self.hub = hub
                super().__init__(*arguments)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def wait_until_over(self) -> None:
        self._over.wait()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def information(self, repository: str, path: str) -> dict[str, Any]:
        content = self.files[repository, path]
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": "0" * 40}
        if (repository, path) not in self.no_checksum:
            checksum = self.promised.get((repository, path)) or hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": checksum, "size": len(content), "pointerSize": 134}
        return entry


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        match = re.fullmatch(r"/api/models/(.+)/paths-info/main", self.path)
        assert match, self.path
        repository = match[1]
        if self._refused(repository):
            return
        if "json" in self.headers.get("Content-Type", ""):
            paths = json.loads(body)["paths"]
        else:
            paths = urllib.parse.parse_qs(body)["paths"]
        known = [self.hub.information(repository, path) for path in paths if (repository, path) in self.hub.files]
        self._answer(200, json.dumps(known).encode(), {"Content-Type": "application/json"})

    def do_GET(self) -> None:
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/main/(.+)", self.path)
        if match is None:  # what newer clients ask about themselves
            self._answer(404, b"{}", {})
            return
        repository, path = match[1], match[2]
        if self._refused(repository):
            return
        content = self.hub.files[repository, path]
        asked = None if self.hub.whole_only else RANGE.match(self.headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        self.hub.ranges.append(start)
        broken = bool(self.hub.pieces) or self.hub.broken_for_good
        length = self.hub.pieces.pop(0) if self.hub.pieces else 0
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("Connection", "close")
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.hub.stalls_after is not None:
            self.wfile.write(content[start : start + self.hub.stalls_after])
            self.hub.wait_until_over()
        else:
            self.wfile.write(content[start : start + length] if broken else content[start:])
        self.close_connection = True

    def _refused(self, repository: str) -> bool:
        if repository not in self.hub.refusals:
            return False
        status, code = self.hub.refusals[repository]
        self._answer(status, b"{}", {"X-Error-Code": code} if code else {})
        return True

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Quiet."""
