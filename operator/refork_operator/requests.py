"""What people ask for with ``refork.dev/requestedAt``, and when it is not a request at all.

Any changed value is one request: it is one until ``refork.dev/handledAt`` repeats it. Three things look like requests
and are none: a value that the pod was born with, because its workload's template carries it; an instant before the
object was made, copied from somewhere; and an empty value.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from refork_operator.names import HANDLED_AT, PAUSED, REQUESTED_AT
from refork_operator.quantity import parse_instant

if TYPE_CHECKING:
    from collections.abc import Mapping

_LONGEST = 256


def pending(annotations: Mapping[str, str], *, created: float, template_request: str | None = None) -> str | None:
    """Return the value that is a request and was not answered yet."""
    value = annotations.get(REQUESTED_AT, "")
    if not value or len(value) > _LONGEST or value == annotations.get(HANDLED_AT) or value == template_request:
        return None
    instant = parse_instant(value)
    # Both clocks tell whole seconds: a request in the very second of the birth is taken for a copy.
    return None if instant is not None and instant <= created else value


def paused(*annotations: Mapping[str, str]) -> bool:
    """Tell whether a pod or its workload is kept out."""
    return any(found.get(PAUSED, "").lower() == "true" for found in annotations)


def automatic_id(*, policy: str, pod: str, server: float, generation: int, last: str) -> str:
    """Name a refork that a policy decides.

    All parts are facts that the server itself told: whoever sees the same server in the same state asks under the same
    name, so two operators that both believe to be the one cannot make it refork twice.
    """
    return _digest("policy", policy, pod, f"{server:.3f}", str(generation), last)


def requested_id(*, asked_of: str, pod: str, value: str) -> str:
    """Name a refork that an annotation on an object (its uid) asks for."""
    return _digest("request", asked_of, pod, value)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
