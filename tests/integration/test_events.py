"""The stream of events: what listeners hear, how many there may be, and that none of them holds anything up."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from refork import api, streams
from refork.events import MOST_WAITING, Dropped, Events, Listener
from tests.integration.steered import PATIENCE, Running, ask, dial, launch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    """A server with both endpoints, and a deadline that no stream would survive if it held for streams."""
    running = launch(tmp_path / "log", "--metrics", "127.0.0.1:0", "--deadline", "2.0")
    yield running
    assert running.stop() == 0
    assert "Traceback" not in running.log_text()


class Stream:
    """A listener, as a browser would be one."""

    def __init__(self, address: str, *, headers: dict[str, str] | None = None) -> None:
        self._connection = http.client.HTTPConnection("refork" if address.startswith("unix:") else address)
        if address.startswith("unix:"):
            self._connection.sock = dial(address)
        self._connection.timeout = PATIENCE
        self._connection.request("GET", "/v1/events", headers=headers or {})
        self.response = self._connection.getresponse()

    def next(self) -> tuple[str, Any]:
        """Return the next event: its name and its data."""
        name, data = "", ""
        for raw in self.response:
            line = raw.decode().rstrip("\n")
            field, _, value = line.partition(": ")
            if field == "event":
                name = value
            elif field == "data":
                data = value
            elif not line and name:
                return name, json.loads(data)
        raise EOFError

    def close(self) -> None:
        """Go."""
        self.response.close()
        self._connection.close()


def let_in(address: str) -> Stream:
    """Listen as soon as there is a place."""
    for _ in range(100):
        stream = Stream(address)
        if stream.response.status == 200:
            return stream
        stream.close()
    raise AssertionError("no place came free")


def resize(server: Running, count: int, *, reason: str = "") -> None:
    """Cause so many events."""
    body = msgspec.json.encode(api.WorkersCommand(count=count, reason=reason))
    assert ask(server.control, "POST", "/v1/workers", body=body)[0] == 202


@pytest.mark.parametrize("endpoint", ["control", "metrics"])
def test_a_stream_begins_with_the_status_and_goes_on(server: Running, endpoint: str) -> None:
    """At either endpoint; it says how soon to come back, and that nobody should keep a copy."""
    with closing(Stream(server.addresses[endpoint])) as stream:
        assert stream.response.status == 200
        assert stream.response.headers["Content-Type"].startswith("text/event-stream")
        assert stream.response.headers["Cache-Control"] == "no-store"
        name, status = stream.next()
        assert (name, msgspec.convert(status, api.Status).pid) == ("status", server.process.pid)
        resize(server, 2, reason="x\n\ndata: forged")
        for slot in range(2):
            name, event = stream.next()
            assert (name, event["slot"], event["reason"]) == ("worker", slot, "x\n\ndata: forged")


def test_a_stream_outlives_the_deadline_of_a_request(server: Running) -> None:
    """A connection that says nothing is cut off meanwhile, the stream is not."""
    with closing(Stream(server.metrics)) as stream, dial(server.control) as silent:
        stream.next()
        assert silent.recv(1) == b""
        resize(server, 1)
        assert stream.next()[0] == "worker"


def test_listeners_take_no_seats_and_there_are_not_too_many(server: Running) -> None:
    """So many may listen at each endpoint; one more is told to come back; and all others are served."""
    with ExitStack() as stack:
        listeners = [stack.enter_context(closing(Stream(server.metrics))) for _ in range(streams.PLACES)]
        status, answer, headers = ask(server.metrics, "GET", "/v1/events")
        assert (status, answer["error"]) == (503, f"{streams.PLACES} clients listen already")
        assert int(headers["Retry-After"]) > 0
        for _ in range(100):
            assert ask(server.metrics, "GET", "/healthz")[0] == 200
        stack.enter_context(closing(Stream(server.control))).next()
        resize(server, 1)
        for listener in listeners:
            assert [listener.next()[0] for _ in range(2)] == ["status", "worker"]
        listeners[0].close()
        stack.enter_context(closing(let_in(server.metrics))).next()


def test_a_listener_that_does_not_listen_is_dropped(server: Running) -> None:
    """It gets what fits, then the end; who listens gets everything; commands are answered all the while."""
    slow = dial(server.control)
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    with slow, closing(Stream(server.metrics)) as stream:
        slow.sendall(b"GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n")
        assert slow.recv(12) == b"HTTP/1.1 200"
        assert stream.next()[0] == "status"
        for _ in range(100):
            resize(server, 30, reason="x" * 500)
            assert [stream.next()[0] for _ in range(30)] == ["worker"] * 30
        received = 0
        try:
            while chunk := slow.recv(65536):
                received += len(chunk)
        except ConnectionResetError:
            pass
        assert received < 100 * 30 * 500


def test_too_much_at_once_drops_a_listener_but_not_the_server(server: Running) -> None:
    """The queue has an end, however fast somebody reads; they come back and begin anew."""
    with closing(Stream(server.metrics)) as stream:
        stream.next()
        resize(server, 3 * MOST_WAITING)
        with pytest.raises((EOFError, ConnectionError, http.client.IncompleteRead)):
            [stream.next() for _ in range(3 * MOST_WAITING)]
    with closing(Stream(server.metrics)) as stream:
        assert stream.next()[0] == "status"


def test_a_server_that_stops_ends_its_streams(tmp_path: Path) -> None:
    """At once, and with a proper end."""
    server = launch(tmp_path / "log", "--metrics", "127.0.0.1:0")
    with closing(Stream(server.metrics)) as stream, closing(Stream(server.control)) as other:
        for each in (stream, other):
            each.next()
        assert server.stop() == 0
        for each in (stream, other):
            with pytest.raises(EOFError):
                each.next()
    assert "Traceback" not in server.log_text()


def test_a_stream_on_which_nothing_happens_shows_signs_of_life_and_ends_by_itself(tmp_path: Path) -> None:
    """Comments keep proxies from taking it for dead; the end makes whoever listens prove again that they may."""
    server = launch(tmp_path / "log", "--stream", "0.1", "1.0")
    with dial(server.control) as sock:
        sock.sendall(b"GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n")
        heard = b""
        with contextlib.suppress(ConnectionResetError):
            while chunk := sock.recv(65536):
                heard += chunk
    assert b"retry: 2000\n" in heard
    assert heard.count(b"event: ") == 1
    assert 3 <= heard.count(b":\n\n") <= 10
    assert server.stop() == 0
    assert "Traceback" not in server.log_text()


def test_pages_of_other_sites_do_not_listen(server: Running) -> None:
    """The live page comes from here and may; a browser sends no Origin with it, or our own."""
    assert ask(server.metrics, "GET", "/v1/events", headers={"Origin": "https://elsewhere"})[0] == 403
    assert ask(server.control, "GET", "/v1/events", headers={"Origin": "null"})[0] == 403
    with closing(Stream(server.metrics, headers={"Origin": f"http://{server.metrics}"})) as stream:
        assert stream.next()[0] == "status"


def test_the_metrics_bind_is_read_only(server: Running) -> None:
    """It says so in its document, and has no commands."""
    status, document, _ = ask(server.metrics, "GET", "/v1/openapi.json")
    assert (status, set(document["paths"])) == (200, {"/v1/status", "/v1/events", "/v1/openapi.json"})
    assert ask(server.metrics, "GET", "/v1/status")[1]["pid"] == server.process.pid
    for path in ("/v1/refork", "/v1/rebase", "/v1/workers", "/v1/operations/1"):
        assert ask(server.metrics, "POST", path)[0] == 404
    assert ask(server.metrics, "POST", "/v1/status")[0] == 405


# --- the queue --------------------------------------------------------------------------------------------------------


def test_when_nobody_listens_nothing_is_kept() -> None:
    """Publishing into the void costs nothing, whatever it is."""
    events = Events()
    events.publish(api.PhaseEvent(api.Phase.STEADY, 1))
    assert not events.heard


def test_a_listener_takes_all_that_waits_at_once() -> None:
    """Then nothing, then the end; and too much is said to be too much."""

    async def story() -> None:
        listener = Listener([b"a"])
        listener.offer(b"b")
        assert await listener.take(within=0.01) == b"ab"
        assert await listener.take(within=0.01) == b""
        listener.offer(b"c")
        listener.close()
        assert await listener.take(within=0.01) == b"c"
        assert await listener.take(within=0.01) is None
        slow = Listener()
        for _ in range(MOST_WAITING + 1):
            slow.offer(b"x")
        with pytest.raises(Dropped):
            await slow.take(within=0.01)

    asyncio.run(story())
