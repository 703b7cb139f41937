"""How long to wait after attempts that have failed: longer after each, up to a bound."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(slots=True)
class Backoff:
    """Attempts that failed in a row. ``first``: the wait after one, in seconds; it doubles up to ``longest``."""

    first: float
    longest: float
    failures: int = 0
    _failed_at: float = -math.inf

    def wait(self, *, longest: float = math.inf) -> float:
        """Seconds from the last failed attempt to the next; 0 without one."""
        if not self.failures:
            return 0.0
        doublings = min(self.failures - 1, 64)  # beyond any bound, and still a float
        return min(self.first * 2.0**doublings, self.longest, longest)

    def holds(self, now: float, *, longest: float = math.inf) -> bool:
        """Whether it is too early for the next attempt."""
        return now < self._failed_at + self.wait(longest=longest)

    def failed(self, now: float, *, lived: float = 0.0, longest: float = math.inf) -> None:
        """Take note of a failure; ``lived``: for how long it had looked like a success.

        What has lived for longer than the wait is the first failure of a new row: however often it is ended from
        outside, the waits do not add up.
        """
        self.failures = 1 if lived > self.wait(longest=longest) else self.failures + 1
        self._failed_at = now

    def succeeded(self) -> None:
        """Begin anew."""
        self.failures = 0
