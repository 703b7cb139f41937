"""How gunicorn's worker classes become ones that can be promoted.

gunicorn's classes do the serving, unchanged but for small mixins, one a module, for what keeps their process from
being forked from afterwards: threads that outlive the loop, a signal raised a second time, connections closed while a
request is on its way. A class that needs no mixin gets none: the sync worker comes back from its loop clean, and any
other class is taken at its word until it shows otherwise.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

WORKER_BOOT_ERROR = 3
"""gunicorn's ``Arbiter.WORKER_BOOT_ERROR``."""

SERVER_ERROR = 500
"""The least status of an answer that is the server's fault, and what no answer counts as (RFC 9110, 15.6)."""

_MIXINS = {
    "gunicorn.workers.gthread.ThreadWorker": ("refork.workers.gthread", "Gthread"),
    "gunicorn.workers.gasgi.ASGIWorker": ("refork.workers.asgi", "Asgi"),
    "uvicorn_worker._workers.UvicornWorker": ("refork.workers.uvicorn", "Uvicorn"),
}

REFORKING = frozenset(
    {
        *("sync", "gunicorn.workers.sync.SyncWorker"),
        *("gthread", "gunicorn.workers.gthread.ThreadWorker"),
        *("asgi", "gunicorn.workers.gasgi.ASGIWorker"),
        *("uvicorn_worker.UvicornWorker", "uvicorn_worker.UvicornH11Worker"),
    }
)
"""What ``worker_class`` may say for a class that is known, by our tests, to come back from its loop clean."""


def adapt(worker_class: type) -> type:
    """Return the class to serve with: the given one with the mixin that its ancestry asks for."""
    for base in worker_class.__mro__:
        entry = _MIXINS.get(f"{base.__module__}.{base.__qualname__}")
        if entry is not None:
            module, mixin = entry
            return type(worker_class.__name__, (getattr(import_module(module), mixin), worker_class), {})
    return worker_class


def count_requests(cfg: Any) -> None:
    """Count requests where gunicorn offers it: around its own hooks, which keep their meaning.

    The ASGI classes count for themselves (``counts_its_requests``), because with a ``post_request`` hook gunicorn's own
    holds back the next request of a connection until the last one's background tasks are done.
    """
    pre_request: Callable[..., Any] = cfg.pre_request
    post_request: Callable[..., Any] = cfg.post_request

    def begin(worker: Any, req: Any) -> None:
        worker.tmp.row.begin()
        pre_request(worker, req)

    def end(worker: Any, req: Any, environ: Any, resp: Any) -> None:
        row = worker.tmp.row
        if (getattr(resp, "status_code", None) or SERVER_ERROR) >= SERVER_ERROR:
            row.fail()
        row.end()
        post_request(worker, req, environ, resp)

    cfg.set("pre_request", begin)
    cfg.set("post_request", end)
