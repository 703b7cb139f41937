"""The door through which a running server is told what to do.

It is a unix socket with an abstract name by default, because a container's root file system is often read-only, and
because the kernel vouches for who is at the other end: no password to keep, none to leak. Root may command, and the
user who runs the server; nobody else may even ask.

This module is what the monitor imports at boot, so it stays small: the routes are in ``refork.control_app``, loaded
when the first command comes. What a command does is the business of whoever implements ``Steerable``.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Protocol

from refork.address import AddressError, TcpAddress, UnixAddress, own_address, parse
from refork.bind import BindError, listen
from refork.endpoint import Endpoint, Lines

if TYPE_CHECKING:
    import socket

    from refork import api
    from refork.endpoint import Log, Peer
    from refork.events import Events
    from refork.web import Application

AUTO = "auto"
NONE = "none"

_NAMES_TRIED = 10
_LINES_ABOUT_STRANGERS = 3
_EVERY_UID = (b"0", b"0", b"4294967295")


class Steerable(Protocol):
    """What the endpoint drives. Every method answers at once: a rollout is started here and followed elsewhere."""

    def status(self) -> api.Status:
        """Tell how the server is."""

    def refork(self, command: api.ReforkCommand) -> api.Accepted:
        """Begin a refork, or raise ``api.Refusal``."""

    def rebase(self, command: api.RebaseCommand) -> api.Accepted:
        """Begin a rebase, or raise ``api.Refusal``."""

    def workers(self, command: api.WorkersCommand) -> api.Accepted:
        """Change the number of workers, or raise ``api.Refusal``."""

    def doctor(self, command: api.DoctorCommand) -> api.Accepted:
        """Begin to look whether a worker is safe to fork from, or raise Refusal."""

    def operation(self, operation: str) -> api.OperationStatus | None:
        """Tell how an operation goes; None for one that is not known."""


def parse_bind(text: str) -> UnixAddress | None:
    """Read the setting: None for ``auto``, which is decided at start. ``none`` is not an address either."""
    if text in {"", AUTO, NONE}:
        return None
    address = parse(text)
    if isinstance(address, TcpAddress):
        raise AddressError(f"this endpoint listens on unix sockets, not on {address}: for TCP there is --control-tcp")
    return address


def may_command(peer: Peer | None, *, own_uid: int, unmapped_uid: int | None) -> bool:
    """Decide who may command: root, or the user who runs the server.

    In a user namespace the kernel shows every foreign user as one and the same uid (user_namespaces(7)). A server that
    runs under that very uid trusts it only from a process it can see.
    """
    if peer is None:
        return False
    if peer.uid == 0:
        return True
    return peer.uid == own_uid and (peer.uid != unmapped_uid or peer.pid != 0)


class ControlServer:
    """Listens where ``bind`` says (``auto``, ``unix:@NAME``, ``unix:/PATH`` or ``none``) and drives a ``Steerable``."""

    def __init__(self, steerable: Steerable, events: Events, *, bind: str, log: Log, pid: int) -> None:
        self._steerable = steerable
        self._events = events
        self._wanted = parse_bind(bind)
        self._enabled = bind != NONE
        self._log = log
        self._pid = pid
        self._own_uid = os.geteuid()
        self._unmapped_uid = _unmapped_uid()
        self._endpoint = Endpoint(self._application, log=log, admit=self._admit, turned_away=self._turned_away)
        self._lines = Lines(at_once=_LINES_ABOUT_STRANGERS)
        self.address: UnixAddress | None = None

    async def start(self) -> None:
        """Listen. Raises BindError with a sentence when that cannot be."""
        if not self._enabled:
            return
        self.address, sock = self._listen()
        await self._endpoint.start(sock)
        self._log.info("control address=%s", self.address)

    async def stop(self) -> None:
        """Stop listening; answers under way still go out."""
        self.address = None
        await self._endpoint.stop()

    def _listen(self) -> tuple[UnixAddress, socket.socket]:
        if self._wanted is not None:
            return self._wanted, listen(self._wanted, mode=0o600)
        for attempt in range(_NAMES_TRIED):
            address = own_address(self._pid, attempt=attempt)
            try:
                return address, listen(address, mode=0o600)
            except BindError:
                continue
        raise BindError(f"{own_address(self._pid)} and the names after it are in use by other processes")

    def _application(self) -> Application:
        from refork.control_app import application, identify_by_kernel  # noqa: PLC0415  (not before somebody asks)

        stay = self._endpoint.stay
        return application(self._steerable, self._events, identify=identify_by_kernel, stay=stay, log=self._log)

    def _admit(self, peer: Peer | None) -> bool:
        return may_command(peer, own_uid=self._own_uid, unmapped_uid=self._unmapped_uid)

    def _turned_away(self, peer: Peer | None) -> None:
        """Write it down, but let nobody fill the log."""
        if peer is not None and self._lines.allow(asyncio.get_running_loop().time()):
            line = "command=unread uid=%d pid=%d answer=403 more=%d"
            self._log.warning(line, peer.uid, peer.pid, self._lines.take_missed())


def _unmapped_uid() -> int | None:
    """Find the uid that stands for all foreign users; None in the first user namespace, where none is foreign."""
    try:
        with open("/proc/self/uid_map", "rb") as file:
            if tuple(file.read().split()) == _EVERY_UID:
                return None
        with open("/proc/sys/kernel/overflowuid", "rb") as file:
            return int(file.read())
    except (OSError, ValueError):
        return None
