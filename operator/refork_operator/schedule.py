"""When reforks may be started: windows of the week, in a time zone. Pure: the time is a number passed in."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


@dataclass(frozen=True, slots=True)
class Window:
    """From ``start`` to ``end``, in minutes of the day; over midnight when it ends before it starts.

    ``days`` are those on which it starts; none are all.
    """

    start: int
    end: int
    days: frozenset[int] = frozenset()

    def open_on(self, day: int) -> bool:
        """Tell whether it starts on a day of the week, 0 to 6."""
        return not self.days or day in self.days

    def contains(self, when: datetime) -> bool:
        """Tell whether it is open at an instant of its own time zone."""
        minute = when.hour * 60 + when.minute
        if self.start < self.end:
            return self.open_on(when.weekday()) and self.start <= minute < self.end
        if minute >= self.start:
            return self.open_on(when.weekday())
        return minute < self.end and self.open_on((when - timedelta(days=1)).weekday())


@dataclass(frozen=True, slots=True)
class Schedule:
    """Some windows; without any, every time is right."""

    windows: tuple[Window, ...] = ()
    zone: str = "UTC"

    def is_open(self, at: float) -> bool:
        """Tell whether a refork may be started at a Unix time."""
        if not self.windows:
            return True
        local = datetime.fromtimestamp(at, zone(self.zone))
        return any(window.contains(local) for window in self.windows)


def minutes(text: str) -> int:
    """Read ``HH:MM`` as minutes of the day."""
    hours, _, rest = text.partition(":")
    return int(hours) * 60 + int(rest)


def zone(name: str) -> tzinfo:
    """Find a time zone; ``UTC`` is there even on a machine without a database of them. Raises ValueError."""
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, OSError) as error:
        raise ValueError(f"no such time zone: {name!r}") from error
