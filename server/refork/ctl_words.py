"""How ``reforkctl`` writes sizes, durations and what others say. Pure, and the standard library only."""

from __future__ import annotations

_MEBIBYTE = 1024 * 1024


def size(number: int) -> str:
    """Write a size in MiB."""
    return f"{number / _MEBIBYTE:.1f} MiB"


def duration(seconds: float) -> str:
    """Write a duration in its two largest units."""
    whole = int(seconds)
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    if minutes:
        return f"{minutes} min {whole % 60} s"
    return f"{whole} s"


def plain(text: str) -> str:
    """Take the power from control characters: what a server says is shown to a terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)
