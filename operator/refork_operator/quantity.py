"""Amounts as Kubernetes writes them: ``512Mi``, ``1.5G``, ``80%``, ``1h30m``, and instants in RFC 3339."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from decimal import Decimal

_SUFFIXES: dict[str, int | Decimal] = {
    "": 1,
    "n": Decimal(1) / 10**9,
    "u": Decimal(1) / 10**6,
    "m": Decimal(1) / 10**3,
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "P": 10**15,
    "E": 10**18,
    "Ki": 1 << 10,
    "Mi": 1 << 20,
    "Gi": 1 << 30,
    "Ti": 1 << 40,
    "Pi": 1 << 50,
    "Ei": 1 << 60,
}
_QUANTITY = re.compile(r"\+?([0-9]{1,18}\.?[0-9]{0,9}|\.[0-9]{1,9})(?:([KMGTPE]i|[kMGTPEmun])|[eE]([+-]?[0-9]{1,2}))?")
_PERCENT = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,6})?)%")
_SPAN = re.compile(r"(?:[0-9]{1,9}[hms])+")
_SPAN_PART = re.compile(r"([0-9]+)([hms])")
_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0}
_RETRY_AFTER = re.compile(r"[0-9]{1,4}")
_MEBI = 1 << 20


class QuantityError(ValueError):
    """The text is no amount; the message says what would be."""


def parse_bytes(text: str | int) -> int:
    """Read a number of bytes: ``1073741824``, ``1Gi``, ``1.5G`` or ``1e9``; a fraction of a byte is rounded up."""
    if isinstance(text, int) and not isinstance(text, bool):
        if text < 0:
            raise QuantityError(f"less than nothing: {text}")
        return text
    found = _QUANTITY.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise QuantityError(f"no quantity: {text!r}; write for example 512Mi")
    exact = Decimal(found[1]) * (Decimal(10) ** int(found[3]) if found[3] else _SUFFIXES[found[2] or ""])
    return int(exact.to_integral_value(rounding="ROUND_CEILING"))


def parse_percent(text: str | int) -> float:
    """Read ``25%`` as 0.25."""
    found = _PERCENT.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise QuantityError(f"no percentage: {text!r}; write for example 25%")
    return float(found[1]) / 100


def is_percent(text: object) -> bool:
    """Tell whether something is written as a percentage."""
    return isinstance(text, str) and text.endswith("%")


def parse_seconds(text: str) -> float:
    """Read a duration: ``90s``, ``10m``, ``1h30m``."""
    if not isinstance(text, str) or not _SPAN.fullmatch(text):
        raise QuantityError(f"no duration: {text!r}; write for example 90s, 10m or 1h30m")
    return sum(int(number) * _SECONDS[unit] for number, unit in _SPAN_PART.findall(text))


def show_bytes(size: int) -> str:
    """Write a size as a quantity in whole mebibytes: precise enough to read, and it does not change with each page."""
    return f"{'-' if size < 0 else ''}{(abs(size) + _MEBI // 2) // _MEBI}Mi"


def parse_instant(text: object) -> float | None:
    """Read an RFC 3339 or ISO 8601 instant as a Unix time; None when it is none. Without a zone it is UTC."""
    if not isinstance(text, str):
        return None
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        return None
    return (instant if instant.tzinfo else instant.replace(tzinfo=UTC)).timestamp()


def parse_retry_after(text: str) -> float:
    """Read the header of an answer that says when to ask again, in seconds; 0 when it says nothing to be believed."""
    return float(text) if _RETRY_AFTER.fullmatch(text) else 0.0


def show_instant(at: float) -> str:
    """Write a Unix time as Kubernetes does, to the second."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def show_micro(at: float) -> str:
    """Write a Unix time as a MicroTime, as Leases and events want it."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
