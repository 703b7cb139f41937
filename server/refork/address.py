"""Where the monitor's endpoints listen, in words: ``unix:@name``, ``unix:/path``, ``HOST:PORT``, ``:PORT``.

The server that listens and ``reforkctl`` that calls must read the same words the same way, and the latter must start
fast: so this module is pure, small, and imports nothing but the standard library.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# sockaddr_un.sun_path has 108 bytes, one of which ends a path or begins an abstract name (unix(7)).
_LONGEST_NAME = 107
HIGHEST_PORT = 65535

_PORT = re.compile(r"[0-9]{1,5}")
_PREFIX = "refork/"
_OWN_NAME = re.compile(r"refork/([1-9][0-9]{0,9})(?:\.[0-9]{1,3})?")


class AddressError(ValueError):
    """The text names no address; the message says what would."""


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A unix socket: a path, or with a leading ``@`` a name that lives in the network namespace and needs no file."""

    name: str

    @property
    def abstract(self) -> bool:
        """Whether no file stands for this socket."""
        return self.name.startswith("@")

    @property
    def sockaddr(self) -> str:
        """What ``bind`` and ``connect`` take."""
        return "\0" + self.name[1:] if self.abstract else self.name

    @property
    def named_pid(self) -> int | None:
        """The pid in a name that a server chose by itself."""
        found = _OWN_NAME.fullmatch(self.name[1:]) if self.abstract else None
        return int(found[1]) if found else None

    def __str__(self) -> str:
        return f"unix:{self.name}"


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A host (empty: every interface) and a port (0: any that is free)."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def own_address(pid: int, *, attempt: int = 0) -> UnixAddress:
    """Name the control socket of the server whose monitor is ``pid``.

    Two containers of one pod have one network namespace and may both hold a pid 1: the later one counts up.
    """
    suffix = f".{attempt}" if attempt else ""
    return UnixAddress(f"@{_PREFIX}{pid}{suffix}")


def parse_unix(text: str) -> UnixAddress:
    """Read ``unix:@name`` or ``unix:/path``; the ``unix:`` may be left out."""
    name = text.removeprefix("unix:")
    if not name.startswith(("@", "/")) or len(name) == 1 or "\0" in name:
        raise AddressError(f"no unix socket: {text!r}; write unix:@NAME or unix:/ABSOLUTE/PATH")
    if len(name.encode(errors="surrogateescape")) > _LONGEST_NAME:
        raise AddressError(f"too long for a unix socket (more than {_LONGEST_NAME} bytes): {text!r}")
    return UnixAddress(name)


def parse(text: str) -> UnixAddress | TcpAddress:
    """Read any address that an endpoint can listen on."""
    if text.startswith(("unix:", "@", "/")):
        return parse_unix(text)
    host, colon, port = text.rpartition(":")
    if not colon or not _PORT.fullmatch(port) or int(port) > HIGHEST_PORT:
        raise AddressError(f"no address: {text!r}; write HOST:PORT, :PORT or unix:/ABSOLUTE/PATH")
    if host.startswith("[") and host.endswith("]"):
        return TcpAddress(host[1:-1], int(port))
    if ":" in host:
        raise AddressError(f"no address: {text!r}; write an IPv6 host in brackets, like [::1]:9090")
    return TcpAddress(host, int(port))
