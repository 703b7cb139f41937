"""A real server against its own OpenAPI document: thousands of requests, made up by schemathesis and by hand.

What is asked of every answer: no 5xx, only statuses, types and headers that the document names, nothing accepted that
the document forbids, nothing refused that it allows. And of the server: that it still serves.
"""

from __future__ import annotations

import json
import random
import re
import socket
from collections import Counter
from typing import TYPE_CHECKING

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from refork.api import MOST_WORKERS
from refork.openapi import document
from refork.routes import READ_ONLY
from tests.integration.server import BRISK, WSGI, Server, free_port, until
from tests.integration.steered import PATIENCE, ask, dial

if TYPE_CHECKING:
    from collections.abc import Iterator

    from schemathesis import Case


TOKEN = "t" * 40
EXAMPLES = 150
RAW_REQUESTS = 3000
FEW = 3

READ_ONLY_SCHEMA = schemathesis.openapi.from_dict(json.loads(document(READ_ONLY))).exclude(operation_id="events")
SCHEMA = schemathesis.openapi.from_dict(json.loads(document())).exclude(operation_id="events")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One real server, at three doors, that takes commands as fast as they come."""
    server = Server(tmp_path_factory.mktemp("server"))
    server.write("app.py", WSGI)
    server.write("tokens", f"{TOKEN}\n").chmod(0o600)
    doors = ("--metrics-bind", f"127.0.0.1:{free_port()}", "--control-tcp", f"127.0.0.1:{free_port()}")
    server.start(*BRISK, *doors, "--control-token-file", "tokens", "--refork-min-interval", "0", "-w", "1", "app:app")
    server.wait_steady(workers=1)
    yield server
    assert is_well(server)
    answers = Counter(re.findall(r" answer=(\d+)", server.log()))
    assert not [status for status in answers if status.startswith("5")]
    server.close()


def door(server: Server, name: str) -> str:
    """Return where a door is."""
    return server.wait_log(rf"\] {name} address=(127\.0\.0\.1:\d+)")[1]


def is_well(server: Server) -> bool:
    """Tell whether it serves, and answers at every door."""
    shown = {"Authorization": f"Bearer {TOKEN}"}
    return (
        ask(door(server, "control"), "GET", "/v1/status", headers=shown)[0] == 200
        and ask(door(server, "metrics"), "GET", "/metrics")[0] == 200
        and server.get("/").status == 200
        and server.status().ready >= 1
    )


def tame(case: Case) -> None:
    """Ask for a few workers where a thousand could be asked for: one machine runs all of this."""
    if isinstance(case.body, dict) and type(count := case.body.get("count")) is int and FEW < count <= MOST_WORKERS:
        case.body["count"] = 1 + count % FEW


def has_integral_float(case: Case) -> bool:
    """Whether there is a number like 3.0, an integer to JSON Schema and none to the decoder."""
    return isinstance(case.body, dict) and any(type(value) is float for value in case.body.values())


@SCHEMA.parametrize()
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_server_keeps_to_its_document(case: Case, server: Server) -> None:
    """Whatever the document allows or forbids, over TCP with a token."""
    tame(case)
    excluded = [positive_data_acceptance] if has_integral_float(case) else []
    shown = {"Authorization": f"Bearer {TOKEN}"}
    base_url = f"http://{door(server, 'control')}"
    case.call_and_validate(base_url=base_url, headers=shown, excluded_checks=excluded, timeout=PATIENCE)


@READ_ONLY_SCHEMA.parametrize()
@settings(max_examples=EXAMPLES // 5, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_metrics_bind_keeps_to_its_document(case: Case, server: Server) -> None:
    """What may be read may be read by anybody."""
    case.call_and_validate(base_url=f"http://{door(server, 'metrics')}", timeout=PATIENCE)


# --- by hand ----------------------------------------------------------------------------------------------------------

METHODS = ("GET", "POST", "PUT", "HEAD", "OPTIONS", "TRACE", "CONNECT", "PATCH", "get", "G\0T", "")
PATHS = (
    "/v1/refork",
    "/v1/status",
    "/v1/operations/1",
    "/v1/../v1/refork",
    "//v1/refork",
    "*",
    "http://x/v1/refork",
    "/%",
)
VERSIONS = ("HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "HTTP/0.9", "HTTP/1.1 ", "", "http/1.1")
HEADERS = (
    "Host: x",
    "Host: x\r\nHost: y",
    "Content-Length: 2",
    "Content-Length: 2\r\nContent-Length: 3",
    "Content-Length: +2",
    "Content-Length: 0x2",
    "Content-Length: 99999999999999999999",
    "Transfer-Encoding: chunked",
    "Transfer-Encoding: chunked\r\nContent-Length: 2",
    "Transfer-Encoding: identity, chunked",
    "Transfer-Encoding : chunked",
    "Expect: 100-continue",
    "Upgrade: h2c\r\nConnection: Upgrade",
    "Connection: keep-alive",
    "Authorization: Bearer " + "x" * 40,
    "Authorization: Bearer",
    "X: " + "y" * 9000,
    " folded: x",
    "no colon",
    "\x00: \xff",
    "Content-Encoding: gzip",
    "Origin: https://x",
)
BODIES = (
    "",
    "{}",
    "{",
    "2\r\n{}\r\n0\r\n\r\n",
    "ffffffffffffffff\r\n",
    "-1\r\n{}",
    "{}POST /v1/refork HTTP/1.1\r\n\r\n",
    "\0" * 50,
)


def made_up(chance: random.Random) -> bytes:
    """Put a request together from parts that are wrong more often than not."""
    lines = [f"{chance.choice(METHODS)} {chance.choice(PATHS)} {chance.choice(VERSIONS)}"]
    lines += chance.choices(HEADERS, k=chance.randrange(5))
    text = chance.choice(("\r\n", "\n", "\r")).join(lines) + "\r\n\r\n" + chance.choice(BODIES)
    whole = text.encode("latin-1")
    return whole[: chance.randrange(1, len(whole))] if chance.random() < 0.2 else whole


def said_to(address: str, data: bytes) -> bytes:
    """Say something and hear the beginning of the answer."""
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE) as sock:
        try:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            return sock.recv(64)
        except (ConnectionResetError, BrokenPipeError):
            return b""


def test_requests_put_together_from_broken_parts_get_nothing(server: Server) -> None:
    """Thousands of them, none with a token: no answer is a success or a 5xx, and nothing stops serving."""
    chance = random.Random(4)
    address = door(server, "control")
    commands = server.log().count("answer=202")
    for number in range(RAW_REQUESTS):
        answer = said_to(address, made_up(chance))
        assert not answer.startswith((b"HTTP/1.1 2", b"HTTP/1.0 2", b"HTTP/1.1 5", b"HTTP/1.0 5")), answer
        if number % 500 == 0:
            assert is_well(server)
    assert server.log().count("answer=202") == commands


def test_the_metrics_bind_survives_them_too(server: Server) -> None:
    """There nobody needs a token, but nothing can be changed either."""
    chance = random.Random(7)
    address = door(server, "metrics")
    commands = server.log().count("answer=202")
    for _ in range(RAW_REQUESTS // 3):
        assert not said_to(address, made_up(chance)).startswith((b"HTTP/1.1 5", b"HTTP/1.0 5"))
    assert server.log().count("answer=202") == commands
    assert is_well(server)


def test_the_unix_socket_survives_them_too(server: Server) -> None:
    """Whoever may command may also send nonsense."""
    chance = random.Random(8)
    for _ in range(RAW_REQUESTS // 3):
        with dial(server.control) as sock:
            try:
                sock.sendall(made_up(chance))
                sock.shutdown(socket.SHUT_WR)
                assert not sock.recv(64).startswith((b"HTTP/1.1 5", b"HTTP/1.0 5"))
            except (ConnectionResetError, BrokenPipeError):
                continue
    until(lambda: server.status().phase == "steady", what="the last refork to end")
    assert is_well(server)
