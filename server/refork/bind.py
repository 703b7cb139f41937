"""Listening sockets for the monitor's own endpoints: opened at once or refused with a sentence.

Not for the application's sockets, which gunicorn's settings describe. What is special here is the unix socket's file:
it is never there with wrong permissions, and a dead server's is replaced, a living one's is not.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from contextlib import suppress

from refork.address import TcpAddress, UnixAddress

BACKLOG = 64


class BindError(Exception):
    """An address cannot be listened on; the message is a sentence for the person who configured it."""


def listen(address: UnixAddress | TcpAddress, *, mode: int) -> socket.socket:
    """Open a listening socket; ``mode`` are the permissions of a unix socket's file."""
    try:
        return _listen_tcp(address) if isinstance(address, TcpAddress) else _listen_unix(address, mode=mode)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise BindError(f"{address} is in use by another process") from error
        raise BindError(f"cannot listen on {address}: {error.strerror or error}") from error


def _listen_tcp(address: TcpAddress) -> socket.socket:
    if not address.host and socket.has_dualstack_ipv6():
        everywhere = ("", address.port)
        return socket.create_server(everywhere, family=socket.AF_INET6, backlog=BACKLOG, dualstack_ipv6=True)
    found = socket.getaddrinfo(address.host or None, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, *_, sockaddr = found[0]
    return socket.create_server(sockaddr[:2], family=family, backlog=BACKLOG)


def _listen_unix(address: UnixAddress, *, mode: int) -> socket.socket:
    if not address.abstract:
        _remove_stale(address)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Linux gives the file of a unix socket the mode of the socket it is bound to, less the umask. So the file
        # never exists with more permissions than it should have, and the process-wide umask stays alone.
        os.fchmod(sock.fileno(), mode)
        sock.bind(address.sockaddr)
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _remove_stale(address: UnixAddress) -> None:
    """Remove the socket file of a server that died, and nothing else."""
    try:
        if not stat.S_ISSOCK(os.lstat(address.name).st_mode):
            raise BindError(f"cannot listen on {address}: a file that is no socket has that name")
    except FileNotFoundError:
        return
    if _somebody_answers(address):
        raise BindError(f"{address} is in use by another process")
    with suppress(FileNotFoundError):
        os.unlink(address.name)


def _somebody_answers(address: UnixAddress) -> bool:
    """Tell a listening socket from what a dead process left: only the latter refuses a connection."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)  # a full backlog is a sign of life too, and answers EAGAIN
        error = sock.connect_ex(address.sockaddr)
    return error != errno.ECONNREFUSED
