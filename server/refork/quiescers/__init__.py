"""Puts libraries to rest before a process is forked from, and wakes them in each worker.

Connections and threads of well-known libraries need not make a promotion be refused: most libraries can close what they
have open and open it again when it is wanted. Each module here knows one library, and acts only if that library is
loaded. It may fail: that is logged, and what is left is for the audit to find.

What was ended for good by its library's own means (a pool of psycopg, the thread of a QueueListener) is started again
in each worker before it serves. In the mold it rests.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from refork.quiescers import instances

if TYPE_CHECKING:
    from collections.abc import Callable

    type Action = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Rest:
    """What a quiescer did, in words; ``wake`` is for each worker, ``before_fork`` for the mold."""

    did: str
    wake: Action | None = None
    before_fork: Action | None = None


@dataclass(frozen=True, slots=True)
class Quiescer:
    """One library: ``module`` must be loaded, ``implementation`` is loaded then; ``classes`` are those it looks for."""

    library: str
    module: str
    implementation: str
    classes: tuple[str, ...] = ()


QUIESCERS = (
    # Those that send what they have collected come first: they need connections and threads for it.
    Quiescer("Sentry", "sentry_sdk", "sentry"),
    Quiescer("OpenTelemetry", "opentelemetry.sdk", "opentelemetry"),
    Quiescer("executors", "concurrent.futures.thread", "executors"),
    Quiescer("Django", "django.db", "django"),
    Quiescer("SQLAlchemy", "sqlalchemy.engine", "sqlalchemy", ("sqlalchemy.engine.base:Engine",)),
    Quiescer("psycopg pool", "psycopg_pool", "psycopg_pool", ("psycopg_pool.pool:ConnectionPool",)),
    Quiescer("kombu", "kombu.pools", "kombu"),  # Celery's: before redis-py, on whose connections it may be
    Quiescer(
        "redis-py",
        "redis",
        "redis",
        (
            *("redis.connection:ConnectionPool", "redis.asyncio.connection:ConnectionPool"),
            "redis.connection:AbstractConnection",
        ),
    ),
    Quiescer("urllib3", "urllib3", "urllib3", ("urllib3.connectionpool:HTTPConnectionPool",)),
    Quiescer(
        "httpx",
        "httpcore",
        "httpcore",
        ("httpcore:ConnectionPool", "httpcore:AsyncConnectionPool"),
    ),
    # The others write to the log.
    Quiescer("logging", "logging.handlers", "logging_queue"),
)
"""The one table. requests has its connections in urllib3's pools, httpx in httpcore's."""

_resting: list[Rest] = []


def quiesce(log: Any) -> None:
    """Put to rest what is loaded."""
    looked = False
    for quiescer in QUIESCERS:
        if quiescer.module not in sys.modules:
            continue
        if quiescer.classes and not looked:  # and not before: those that send may connect to do so
            remember()
            looked = True
        try:
            implementation = import_module(f"{__name__}.{quiescer.implementation}")
            rest = implementation.quiesce(instances.known(quiescer.classes))
        except Exception:
            log.exception("quiescing %s failed", quiescer.library)
            continue
        if rest is not None:
            log.info("quiesced %s: %s", quiescer.library, rest.did)
            _resting.append(rest)


def remember() -> None:
    """Note the objects that quiescers look for, before the heap they live in is sealed and out of sight."""
    instances.look_for({name for quiescer in QUIESCERS for name in quiescer.classes})


def before_fork(log: Any) -> None:
    """Do, in the mold, what must be done before each fork."""
    _each(log, [rest.before_fork for rest in _resting])


def wake(log: Any) -> None:
    """Start again, in a worker, what rests."""
    actions = [rest.wake for rest in _resting]
    _resting.clear()
    _each(log, actions)


def _each(log: Any, actions: list[Action | None]) -> None:
    for action in actions:
        try:
            if action is not None:
                action()
        except Exception:
            log.exception("waking what was quiesced failed")
