"""The smallest applications, so that a comparison shows the server and nothing else.

``HEAP_MIB`` gives them a heap of many small objects, built at import, or with ``HEAP_LAZY=1`` at the first request.
"""

import os
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

HEAP_MIB = int(os.environ.get("HEAP_MIB", "0"))
RECORD_BYTES = 440
"""What a record takes on CPython 3.13, its parts and its place in the list included."""

heap: list[dict[str, Any]] = []


def build_heap() -> None:
    """Records as an application caches them: dicts of strings, numbers and tuples."""
    heap.extend(
        {"id": number, "name": f"record {number}", "size": number / 7, "path": ("a", f"b{number}", number)}
        for number in range(HEAP_MIB * 1024 * 1024 // RECORD_BYTES)
    )


def body() -> bytes:
    """The answer; a lazy heap is built for the first one."""
    if HEAP_MIB and not heap:
        build_heap()
    return b"ok"


def wsgi(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    """WSGI; ``/health`` leaves a lazy heap alone."""
    answer = b"ok" if environ["PATH_INFO"] == "/health" else body()
    start_response(
        "200 OK",
        [
            ("Content-Type", "text/plain"),
            ("Content-Length", str(len(answer))),
            ("X-Worker-Pid", str(os.getpid())),
        ],
    )
    return [answer]


def churning(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    """WSGI with a heap that ``/replace`` throws away and builds anew."""
    if environ["PATH_INFO"] == "/replace":
        heap.clear()
        build_heap()
    return wsgi(environ, start_response)


async def asgi(
    scope: dict[str, Any],
    _receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    """ASGI, without lifespan."""
    if scope["type"] != "http":
        message = f"no {scope['type']} here"
        raise NotImplementedError(message)
    answer = b"ok" if scope["path"] == "/health" else body()
    headers = [
        (b"content-type", b"text/plain"),
        (b"content-length", str(len(answer)).encode()),
        (b"x-worker-pid", str(os.getpid()).encode()),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


if HEAP_MIB and not os.environ.get("HEAP_LAZY"):
    build_heap()
