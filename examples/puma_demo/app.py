"""The demonstration of Puma's ``fork_worker`` pull request, told in Python.

Each worker builds ten million objects at its first request: memory that no preloading can share, because it appears
only when requests come. Here every later request also reads ten thousand of them, spread over the whole heap, so that
what is shared has to stay shared while it is used.
"""

import itertools
import json
import os
from collections.abc import Callable, Iterable
from typing import Any

OBJECTS = int(os.environ.get("DEMO_OBJECTS", "10000000"))
STRIDE = 1000

_objects: list[object] = []
_offsets = itertools.cycle(range(STRIDE))


def warm() -> list[object]:
    """The objects, built when first wanted."""
    if not _objects:
        _objects.extend(object() for _ in range(OBJECTS))
    return _objects


def look_at(first: int) -> int:
    """Read every thousandth object, one after the other; how many there were."""
    objects = warm()
    return sum(objects[number] is not None for number in range(first, len(objects), STRIDE))


def application(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    """``/`` builds and reads; ``/health`` does neither."""
    read = 0 if environ["PATH_INFO"] == "/health" else look_at(next(_offsets))
    body = json.dumps({"pid": os.getpid(), "objects": len(_objects), "read": read}).encode()
    headers = [
        ("Content-Type", "application/json"),
        ("Content-Length", str(len(body))),
        ("X-Worker-Pid", str(os.getpid())),
    ]
    start_response("200 OK", headers)
    return [body]
