"""What an application can say about being forked from, where it says it: in its own modules.

    from refork import fork_safety

    @fork_safety.before_promote
    def hang_up(): ...

    @fork_safety.after_worker_fork
    def call_again(): ...

    with fork_safety.critical_section("writing the index"): ...

    fork_safety.mark_unsafe("the licence dongle is open")

Nothing here needs a running refork: under plain gunicorn, or in a test, hooks are registered and never called, and
sections guard nothing.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

__all__ = ["after_mold_fork", "after_worker_fork", "before_promote", "critical_section", "mark_unsafe"]

type Hook = Callable[[], object]

_POLL = 0.01

_marks: dict[str, None] = {}
_hooks: dict[str, list[Hook]] = {"before_promote": [], "after_mold_fork": [], "after_worker_fork": []}
_held: dict[object, str] = {}


def mark_unsafe(reason: str) -> None:
    """Say that this process, and what is forked from it, must not be promoted, and why."""
    _marks[reason] = None


class critical_section:  # noqa: N801 - it is used like a function
    """Delays a promotion while it is held, with ``with`` or ``async with``, in any thread.

    A section that is entered in one thread or task may be left in another. Promotion waits for all of them, up to
    ``promote_timeout``; requests and tasks go on meanwhile as in any graceful stop.
    """

    def __init__(self, reason: str = "") -> None:
        self.reason = reason or "unnamed"
        self._entries: list[object] = []

    def __enter__(self) -> Self:
        # No lock: each step is one operation on a list or a dict, and a fork in between finds nothing locked.
        entry = object()
        self._entries.append(entry)
        _held[entry] = self.reason
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        if self._entries:
            _held.pop(self._entries.pop(), None)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        self.__exit__(kind, error, traceback)


def before_promote[Function: Hook](function: Function) -> Function:
    """Have a function called in a worker that has stopped serving, before it is looked at: end what must end."""
    return _register("before_promote", function)


def after_mold_fork[Function: Hook](function: Function) -> Function:
    """Have a function called in a promoted worker before its heap is sealed: warm up what workers are to share."""
    return _register("after_mold_fork", function)


def after_worker_fork[Function: Hook](function: Function) -> Function:
    """Have a function called in each new worker: make what every process needs of its own."""
    return _register("after_worker_fork", function)


def _register[Function: Hook](name: str, function: Function) -> Function:
    if function not in _hooks[name]:
        _hooks[name].append(function)
    return function


# --- for refork itself ------------------------------------------------------------------------------------------------


def run_hooks(name: str) -> None:
    """Call the functions of one kind, in the order in which they were registered; what one raises goes up."""
    for function in list(_hooks[name]):
        function()


def marks() -> tuple[str, ...]:
    """Return the reasons given for being unsafe."""
    return tuple(_marks)


def held() -> tuple[str, ...]:
    """Return the critical sections that are held now."""
    return tuple(_held.values())


def wait(*, deadline: float) -> tuple[str, ...]:
    """Wait until no critical section is held, on the monotonic clock; return those that are held for too long."""
    while _held and time.monotonic() < deadline:
        time.sleep(_POLL)
    return held()


def forget_sections() -> None:
    """Forget what was held before the fork: those who held it are not in this process."""
    _held.clear()
