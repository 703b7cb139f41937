"""How ``reforkctl`` finds a running server and talks to it: the standard library only, because it must start fast.

What is different about a server that is reached by an URL is in ``refork.ctl_remote``.

A server listens on the abstract name ``@refork/PID`` unless told otherwise, and the kernel lists such names in
``/proc/net/unix``. Anybody may take a name, so a name alone is not believed: the kernel also knows which process
listens (unix(7), SO_PEERCRED), and it must be the one that the name says.
"""

from __future__ import annotations

import http.client
import os
import re
import socket
import ssl
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from refork import api, ctl_remote
from refork.address import AddressError, UnixAddress, parse_unix
from refork.ctl_remote import Remote

if TYPE_CHECKING:
    from collections.abc import Iterable

SECONDS_TO_ANSWER = 10.0
SECONDS_TO_BE_FOUND = 2.0
LONGEST_WAIT = 5
MOST_WAITS = 3

_UCRED = struct.Struct("3i")
_TIMEVAL = struct.Struct("ll")
_LARGEST_ANSWER = 16 * 1024 * 1024
_LISTENS = 0x10000  # __SO_ACCEPTCON, in the fourth column of /proc/net/unix
_LINE = re.compile(r"^[0-9a-fA-F]+: [0-9a-fA-F]+ [0-9a-fA-F]+ ([0-9a-fA-F]{8}) 0001 [0-9a-fA-F]+ +[0-9]+ (@\S+)$")


class _SomeStatus(msgspec.Struct, frozen=True):
    """What the status of any version of refork has: it names its version."""

    api: str


class UnreachableError(Exception):
    """Nobody answers, or not in words that are understood."""


class RefusedError(Exception):
    """The server, or the kernel on its behalf, says no."""


@dataclass(frozen=True, slots=True)
class Found:
    """A running server: where it listens and, according to the kernel, as whom."""

    address: UnixAddress
    pid: int
    uid: int


def find_servers(path: str = "/proc/net/unix") -> list[Found]:
    """Find the servers of this network namespace that can be commanded; all of them when none can."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            addresses = own_names(file)
    except OSError:
        return []
    servers = [found for address in addresses if (found := _identify(address)) is not None]
    me = os.geteuid()
    return [found for found in servers if me in {0, found.uid}] or servers


def own_names(lines: Iterable[str]) -> list[UnixAddress]:
    """Pick the names that servers chose for themselves from the lines of ``/proc/net/unix``."""
    names = set()
    for line in lines:
        found = _LINE.match(line.rstrip("\n"))
        if found and int(found[1], 16) & _LISTENS:
            names.add(found[2])
    addresses = []
    for name in sorted(names):
        try:
            address = parse_unix(name)
        except AddressError:
            continue
        if address.named_pid is not None:
            addresses.append(address)
    return addresses


def _identify(address: UnixAddress) -> Found | None:
    """Ask the kernel who listens; nobody, or not who the name says: None."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            _connect(sock, address, timeout=SECONDS_TO_BE_FOUND)
            pid, uid, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        except OSError:
            return None
    named = address.named_pid or 0
    # A server in another container of the same pod has a pid namespace of its own: the kernel calls its process 0.
    return Found(address=address, pid=named, uid=uid) if pid in {named, 0} else None


def _connect(sock: socket.socket, address: UnixAddress, *, timeout: float) -> None:
    """Connect, and wait for a place in the queue of a busy server.

    A non-blocking connect, which is what a Python timeout makes of it, would not wait: a full queue is EAGAIN at once
    (unix(7)). A blocking one waits as long as SO_SNDTIMEO says.
    """
    seconds, fraction = divmod(timeout, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL.pack(int(seconds), int(fraction * 1e6)))
    try:
        sock.connect(address.sockaddr)
    except BlockingIOError as error:
        raise TimeoutError from error
    sock.settimeout(timeout)


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, address: UnixAddress, *, timeout: float) -> None:
        super().__init__("refork")
        self._address = address
        self._seconds = timeout

    def connect(self) -> None:
        """Connect to the socket instead of a host."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        _connect(self.sock, self._address, timeout=self._seconds)


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a server said. ``wait``: seconds after which it wants to be asked again; 0 if it does not say so."""

    status: int
    body: bytes
    wait: int


def _talk(
    connection: http.client.HTTPConnection, method: str, path: str, *, body: bytes, headers: dict[str, str]
) -> _Answer:
    connection.request(method, path, body=body or None, headers={"Connection": "close", **headers})
    response = connection.getresponse()
    answer = response.read(_LARGEST_ANSWER)
    if response.length:
        raise http.client.IncompleteRead(answer, response.length)
    wait = response.headers.get("Retry-After", "")
    return _Answer(response.status, answer, int(wait) if wait.isascii() and wait.isdigit() else 0)


class Client:
    """Asks one server. Raises UnreachableError and RefusedError, each with a sentence."""

    def __init__(self, address: UnixAddress | Remote, *, timeout: float = SECONDS_TO_ANSWER) -> None:
        self.address = address
        self._timeout = timeout

    def status(self) -> api.Status:
        """Ask for the status."""
        return self._understand(self._ask("GET", "/v1/status"), shape=api.Status)

    def raw_status(self) -> bytes:
        """Ask for the status as the server wrote it: it may know more than this client."""
        answer = self._ask("GET", "/v1/status")
        self._understand(answer, shape=_SomeStatus)
        return answer

    def command(self, name: str, command: msgspec.Struct) -> api.Accepted:
        """Give a command."""
        answer = self._ask("POST", f"/v1/{name}", body=msgspec.json.encode(command))
        return self._understand(answer, shape=api.Accepted)

    def operation(self, operation: str) -> api.OperationStatus:
        """Ask how an operation goes."""
        return self._understand(self._ask("GET", f"/v1/operations/{operation}"), shape=api.OperationStatus)

    def _ask(self, method: str, path: str, *, body: bytes = b"") -> bytes:
        answer = self._exchange(method, path, body=body)
        for _ in range(MOST_WAITS):
            if answer.status != http.client.TOO_MANY_REQUESTS or not 1 <= answer.wait <= LONGEST_WAIT:
                break
            time.sleep(answer.wait)
            answer = self._exchange(method, path, body=body)
        if answer.status in {200, 202}:
            return answer.body
        try:
            reason = msgspec.json.decode(answer.body, type=api.Refused).error
        except (msgspec.DecodeError, RecursionError):
            reason = f"the server answered {answer.status}"
        if answer.status >= http.client.INTERNAL_SERVER_ERROR:
            raise UnreachableError(f"{self.address}: {reason}")
        raise RefusedError(reason + self._advice(method, answer.status))

    def _advice(self, method: str, status: int) -> str:
        """Tell what to do about a refusal that is about the address, not about the command; empty if it is not."""
        if not isinstance(self.address, Remote):
            return ""
        if status == http.client.UNAUTHORIZED and not self.address.token_file:
            return "; name the file that holds it with --token-file"
        if status == http.client.NOT_FOUND and method == "POST":
            return f"; commands are taken where --control-tcp is, not at a metrics bind: {self.address}"
        return ""

    def _exchange(self, method: str, path: str, *, body: bytes) -> _Answer:
        connection, headers = self._prepare()
        try:
            return _talk(connection, method, path, body=body, headers=headers)
        except PermissionError as error:
            raise RefusedError(f"you may not use {self.address}: run as root or as the server's user") from error
        except TimeoutError as error:
            raise UnreachableError(f"{self.address} did not answer within {self._timeout:g} s") from error
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise UnreachableError(f"no server listens on {self.address}: is it running?") from error
        except ssl.SSLCertVerificationError as error:
            hint = "name its authority with --ca"
            raise UnreachableError(f"{self.address} is not to be trusted: {error.verify_message}; {hint}") from error
        except ssl.SSLError as error:
            raise UnreachableError(f"{self.address}: {ctl_remote.about_tls(error)}") from error
        except socket.gaierror as error:
            raise UnreachableError(f"{self.address} has no address: {error.strerror}") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise UnreachableError(f"{self.address} broke off the conversation: {error!r}") from error
        finally:
            connection.close()

    def _prepare(self) -> tuple[http.client.HTTPConnection, dict[str, str]]:
        if isinstance(self.address, Remote):
            return ctl_remote.connection(self.address, timeout=self._timeout), ctl_remote.headers(self.address)
        return _UnixConnection(self.address, timeout=self._timeout), {}

    def _understand[Answer](self, answer: bytes, *, shape: type[Answer]) -> Answer:
        try:
            return msgspec.json.decode(answer, type=shape)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            sentence = f"{self.address} gave an answer of another version of refork, or is no refork: {error}"
            raise UnreachableError(sentence) from error
