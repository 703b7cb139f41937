"""The sockets that requests arrive on: opened once by the monitor, handed to every mold as descriptors.

gunicorn's socket classes do the binding. What differs is who holds them: some worker classes close the listening
sockets on their way out, so a promoted worker gets them anew from the monitor.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from typing import TYPE_CHECKING, Any

from gunicorn import systemd, util
from gunicorn.sock import TCP6Socket, TCPSocket, UnixSocket

from refork.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable

_CLASSES: dict[int, Any] = {
    socket.AF_INET: TCPSocket,
    socket.AF_INET6: TCP6Socket,
    socket.AF_UNIX: UnixSocket,
}
_ATTEMPTS = 5


class Listeners:
    """The open sockets of a server, and those that a reload has replaced but old workers may still serve from."""

    def __init__(self, log: Any) -> None:
        self.open: list[Any] = []
        self._replaced: list[Any] = []
        self._addresses: list[Any] = []
        self._systemd = False
        self._log = log

    def fds(self) -> tuple[int, ...]:
        """Return the descriptors of the open ones."""
        return tuple(listener.fileno() for listener in self.open)

    def listen(self, cfg: Any) -> None:
        """Listen where the configuration says, or on what systemd has passed.

        Where that has changed, the old sockets stay open until ``let_go()``.

        Raises:
            ConfigurationError: an address cannot be bound; everything is as it was.
        """
        if self._systemd or cfg.address == self._addresses:
            return
        opened, self._systemd = open_all(cfg, self._log)
        self.let_go()
        self._replaced, self.open, self._addresses = self.open, opened, cfg.address
        self._log.info("Listening at: %s (%s)", ",".join(str(listener) for listener in opened), os.getpid())

    def let_go(self) -> None:
        """Close what was replaced."""
        close_all(self._replaced, unlink=True)
        self._replaced = []

    def close(self) -> None:
        """Close the open ones; the files of unix sockets go with them, unless they are systemd's."""
        close_all(self.open, unlink=not self._systemd)


def open_all(cfg: Any, log: Any) -> tuple[list[Any], bool]:
    """Open what ``bind`` names, or take over what systemd passed; the second value tells which.

    Raises:
        ConfigurationError: an address cannot be bound; says which and what to do.
    """
    passed = systemd.listen_fds()
    inherited = [bind for bind in cfg.address if isinstance(bind, int)]
    inherited += range(systemd.SD_LISTEN_FDS_START, systemd.SD_LISTEN_FDS_START + passed)
    if inherited:
        listeners = adopt(inherited, cfg=cfg, log=log)
    else:
        listeners = [_open(address, cfg=cfg, log=log) for address in cfg.address]
    for listener in listeners:
        # gunicorn makes them inheritable for its re-exec; here descriptors travel by SCM_RIGHTS only.
        listener.set_inheritable(False)
    return listeners, bool(passed)


def adopt(fds: Iterable[int], *, cfg: Any, log: Any) -> list[Any]:
    """Wrap listening descriptors in gunicorn's socket classes; the descriptors are taken over."""
    listeners = []
    for fd in fds:
        probe = socket.socket(fileno=os.dup(fd))
        try:
            family, name = probe.family, probe.getsockname()
        finally:
            probe.close()
        listener = _CLASSES[family](name, cfg, log, fd=fd)
        listener.set_inheritable(False)
        listeners.append(listener)
    return listeners


def _open(address: Any, *, cfg: Any, log: Any) -> Any:
    if isinstance(address, tuple):
        kind: Any = TCP6Socket if util.is_ipv6(address[0]) else TCPSocket
    else:
        kind = UnixSocket
    shown = f"{address[0]}:{address[1]}" if isinstance(address, tuple) else address
    for attempt in range(_ATTEMPTS):
        try:
            return kind(address, cfg, log)
        except OSError as error:
            # A predecessor may be on its way out: worth a few attempts, as gunicorn makes them.
            if error.errno != errno.EADDRINUSE or attempt == _ATTEMPTS - 1:
                raise ConfigurationError(_explain(shown, error)) from error
            if attempt == 0:
                log.warning("address %s is in use: trying again for %s s", shown, _ATTEMPTS - 1)
            time.sleep(1)
        except ValueError as error:
            raise ConfigurationError(f"cannot bind {shown}: {error}") from error
    raise AssertionError("unreachable")


def _explain(shown: str, error: OSError) -> str:
    fix = {
        errno.EADDRINUSE: "another process listens there: stop it, or choose another --bind",
        errno.EADDRNOTAVAIL: "this machine has no such address: check --bind",
        errno.EACCES: "not permitted: a port below 1024 needs CAP_NET_BIND_SERVICE, a unix socket a writable folder",
        errno.ENOENT: "the folder does not exist: create it, or choose another --bind",
    }.get(error.errno or 0, "check --bind")
    return f"cannot bind {shown}: {error.strerror}; {fix}"


def close_all(listeners: Iterable[Any], *, unlink: bool) -> None:
    """Stop listening; ``unlink`` removes unix sockets from the file system."""
    for listener in listeners:
        if listener.sock is not None:
            listener.close()
        address = listener.cfg_addr
        if unlink and isinstance(address, str) and not address.startswith("\0"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(address)
