"""What the monitor's endpoints answer with: typed JSON for programs, refusals included, and text for who looks."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING

import msgspec

from refork import api

if TYPE_CHECKING:
    from collections.abc import Mapping

_JSON = {"Content-Type": "application/json"}
_TEXT = {"Content-Type": "text/plain; charset=utf-8"}


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer that is known as a whole."""

    body: bytes
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=lambda: _JSON)

    def fields(self) -> list[tuple[bytes, bytes]]:
        """Write its headers as they are sent."""
        return fields({**self.headers, "Content-Length": str(len(self.body))})


def fields(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """Write headers as ASGI wants them. One connection is one request, so each answer says that it is the last."""
    closing = {**headers, "Connection": "close"}
    return [(name.lower().encode(), value.encode("latin-1")) for name, value in closing.items()]


def reply(answer: msgspec.Struct, *, status: int = 200) -> Answer:
    """Answer with a type of ``refork.api``."""
    return Answer(msgspec.json.encode(answer), status)


def say(text: str, *, status: int = 200) -> Answer:
    """Answer with a line of text."""
    return Answer(text.encode(), status, _TEXT)


def refuse(refusal: api.Refusal, *, allow: str = "") -> Answer:
    """Answer with one sentence that says why not, and with what would do better: other methods, or another time."""
    headers = dict(_JSON)
    if allow:
        headers["Allow"] = allow
    if refusal.retry_after > 0:
        headers["Retry-After"] = str(math.ceil(refusal.retry_after))
    if refusal.status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    return Answer(msgspec.json.encode(api.Refused(error=refusal.reason)), refusal.status, headers)
