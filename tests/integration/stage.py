"""A server that says what a test tells it to say: the page of the metrics bind, ``v1/status`` and ``v1/events``.

It is the standard library's and runs in a thread, so that a test can stop it, start it again on the same port, or take
its events away, and knows when each of these has happened.
"""

from __future__ import annotations

import queue
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Self

import msgspec

from refork.page import DOCUMENT, HEADERS

if TYPE_CHECKING:
    from refork import api

PATIENCE = 20.0


class Stage:
    """One address at which a status is told.

    ``prefix`` is the path that a proxy would have put before it; ``buffered``, what a proxy does that passes a stream
    on when it has ended.
    """

    def __init__(self, status: api.Status, *, prefix: str = "", events: bool = True, buffered: bool = False) -> None:
        self.status = status
        self.prefix = prefix
        self.events = events
        self.buffered = buffered
        self.asked: queue.Queue[str] = queue.Queue()
        self._port = 0
        self._listeners: list[queue.Queue[bytes | None]] = []
        self._lock = threading.Lock()
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}{self.prefix}/"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen; after a stop on the same port as before."""
        handler = type("Handler", (_Handler,), {"stage": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), handler)
        self._server.daemon_threads = True
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Break every stream, and refuse connections from here on."""
        if self._server is None:
            return
        self._server.shutdown()
        self._server.server_close()
        self._server = None
        self.end_streams()

    def end_streams(self) -> None:
        """End the streams of events, as a proxy does that has had enough."""
        with self._lock:
            listeners, self._listeners = self._listeners, []
        for listener in listeners:
            listener.put(None)

    def say(self, status: api.Status) -> None:
        """Change the status, and tell whoever listens."""
        self.status = status
        self.send("status", msgspec.json.encode(status))

    def send(self, event: str, data: bytes) -> None:
        """Send one event to whoever listens."""
        with self._lock:
            for listener in self._listeners:
                listener.put(b"event: %s\ndata: %s\n\n" % (event.encode(), data))

    def wait_for(self, path: str) -> None:
        """Return when a path has been asked for (again)."""
        while self.asked.get(timeout=PATIENCE) != path:
            pass

    def listen(self) -> queue.Queue[bytes | None]:
        """Take part in what is sent from now on."""
        listener: queue.Queue[bytes | None] = queue.Queue()
        listener.put(b"event: status\ndata: %s\n\n" % msgspec.json.encode(self.status))
        with self._lock:
            self._listeners.append(listener)
        return listener


class _Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    stage: Stage

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].removeprefix(self.stage.prefix)
        if path in {"", "/"}:
            self._answer(DOCUMENT, HEADERS)
        elif path == "/v1/status":
            self._answer(msgspec.json.encode(self.stage.status), {"Content-Type": "application/json"})
        elif path == "/v1/events" and self.stage.events:
            self._stream()
        else:
            self.send_error(404)
        self.stage.asked.put(path)

    def _answer(self, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(200)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        listener = self.stage.listen()
        self.stage.asked.put("/v1/events")
        try:
            while (chunk := listener.get()) is not None:
                if not self.stage.buffered:
                    self.wfile.write(chunk)
                    self.wfile.flush()
        except OSError:
            return

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the standard library's name)
        """Say nothing."""
