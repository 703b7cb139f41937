"""Servers for the libraries under test to talk to: just enough of each protocol to keep a connection open and busy.

They run in the test's own process, count the connections they have, and outlive nothing.
"""

from __future__ import annotations

import contextlib
import socketserver
import struct
import threading
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from typing import BinaryIO


class Peer(socketserver.ThreadingTCPServer):
    """A server on a free loopback port that knows how many clients are connected."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, handler: type[_Handler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.connected: set[tuple[str, int]] = set()
        self.accepted = 0

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.server_address[1])


class _Handler(socketserver.StreamRequestHandler):
    server: Peer

    def handle(self) -> None:
        self.server.connected.add(self.client_address)
        self.server.accepted += 1
        try:
            with contextlib.suppress(ConnectionError, struct.error):
                self.converse(self.rfile, self.connection)
        finally:
            self.server.connected.discard(self.client_address)

    def converse(self, incoming: BinaryIO, outgoing: socket.socket) -> None:
        """Talk until the client hangs up."""
        raise NotImplementedError


class Redis(_Handler):
    """Answers every command with OK, PING with PONG."""

    def converse(self, incoming: BinaryIO, outgoing: socket.socket) -> None:
        while (head := incoming.readline()).startswith(b"*"):
            words = []
            for _ in range(int(head[1:])):
                length = int(incoming.readline()[1:])
                words.append(incoming.read(length + 2)[:-2])
            outgoing.sendall(b"+PONG\r\n" if words[0].upper() == b"PING" else b"+OK\r\n")


class Postgres(_Handler):
    """Lets everybody in, and finds nothing: each query has an empty result."""

    parameters: ClassVar = {
        "server_version": "17.0",
        "client_encoding": "UTF8",
        "server_encoding": "UTF8",
        "TimeZone": "UTC",
        "standard_conforming_strings": "on",
        "integer_datetimes": "on",
    }

    def converse(self, incoming: BinaryIO, outgoing: socket.socket) -> None:
        (length,) = struct.unpack("!i", incoming.read(4))
        incoming.read(length - 4)
        told = b"".join(
            _message(b"S", name.encode() + b"\0" + value.encode() + b"\0") for name, value in self.parameters.items()
        )
        keys = _message(b"K", struct.pack("!ii", 1, 1))
        outgoing.sendall(_message(b"R", struct.pack("!i", 0)) + told + keys + _ready())
        while kind := incoming.read(1):
            (length,) = struct.unpack("!i", incoming.read(4))
            incoming.read(length - 4)
            if kind == b"Q":
                outgoing.sendall(_message(b"C", b"SELECT 0\0") + _ready())
            elif kind == b"X":
                return


class Http(_Handler):
    """Answers every request with an empty object, and keeps the connection."""

    def converse(self, incoming: BinaryIO, outgoing: socket.socket) -> None:
        while incoming.readline():
            length = 0
            while (line := incoming.readline().strip().lower()) != b"":
                if line.startswith(b"content-length:"):
                    length = int(line.partition(b":")[2])
            incoming.read(length)
            outgoing.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


def _ready() -> bytes:
    return _message(b"Z", b"I")


@contextlib.contextmanager
def listening(handler: type[_Handler]) -> Iterator[Peer]:
    """Serve on a free port for as long as the block lasts."""
    with Peer(handler) as peer:
        thread = threading.Thread(target=peer.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield peer
        finally:
            peer.shutdown()
            thread.join()
