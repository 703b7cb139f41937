"""What a process inherits through all forks: the application, its configuration, and the line to the monitor.

A process changes roles: an executed mold forks a worker, the worker is promoted and is a mold itself. Each role is an
object with ``serve()``, and this module's ``live()`` goes from one to the next with an unwound stack, because a role
that called the next one would leave its frames, and what they hold, in every generation to come.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from refork import listeners

if TYPE_CHECKING:
    from refork.hooks import Server
    from refork.scoreboard import Scoreboard


@dataclass(slots=True)
class Lineage:
    """What every process of one loaded application shares; ``listeners`` is empty while nothing holds them."""

    app: Any
    log: Any
    server: Server
    worker_class: Any
    scoreboard: Scoreboard

    @property
    def cfg(self) -> Any:
        """The configuration as the mold that loaded the application read it."""
        return self.server.cfg

    @property
    def monitor(self) -> int:
        """The monitor's pid."""
        return self.server.pid

    @property
    def listeners(self) -> list[Any]:
        """The listening sockets that this process holds."""
        return self.server.LISTENERS

    def close_listeners(self) -> None:
        """Let go of the listening sockets; some worker classes have done so already."""
        listeners.close_all(self.listeners, unlink=False)
        self.listeners.clear()


class Role(Protocol):
    """What a process is at the moment."""

    def serve(self) -> Role | None:
        """Do the work of the role; return the role that follows, None to end the process."""
        ...


def live(role: Role | None) -> None:
    """Go through the roles of this process, and of those forked from it, until there is none left."""
    while role is not None:
        role = role.serve()


_MOLD_IGNORES = (
    *(signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP),
    *(signal.SIGUSR2, signal.SIGWINCH, signal.SIGURG),
)


def mold_signals(log: Any) -> None:
    """A mold hears from the monitor alone, on its channel.

    What a terminal sends to the whole process group is not meant for it, and a promoted worker may be told to stop a
    second time by a signal that was still on its way.
    """
    signal.set_wakeup_fd(-1)
    for number in _MOLD_IGNORES:
        signal.signal(number, signal.SIG_IGN)
    for number in (signal.SIGCHLD, signal.SIGABRT):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGUSR1, lambda *_: log.reopen_files())


def worker_signals() -> None:
    """Undo the above, and nothing more: Python needs SIGPIPE to stay ignored."""
    for number in _MOLD_IGNORES:
        signal.signal(number, signal.SIG_DFL)
