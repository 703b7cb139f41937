"""What the exporter knows at one instant: facts for ``refork.exporter_families``, and whether they are enough.

Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from refork.estimate import Role
from refork.exporter_search import Found, State

if TYPE_CHECKING:
    from collections.abc import Mapping

    from refork import api
    from refork.estimate import Estimate


class Trouble(StrEnum):
    """What can go wrong: the kernel says no, a process ends meanwhile, there is no ``/proc``, or a bug."""

    FORBIDDEN = "forbidden"
    GONE = "gone"
    UNREADABLE = "unreadable"
    INTERNAL = "internal"


class Outcome(StrEnum):
    """How the attempt at an estimate ended; without the contents of pages there is an upper end only."""

    COMPLETE = "complete"
    FIGURES_ONLY = "figures_only"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One process of the server as it was seen last; None for what was not seen yet, or may not be."""

    role: Role
    slot: int | None
    memory: api.Memory | None
    process: api.Process | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimated:
    """The last estimate, if there is one, its age in seconds, and what all of them have cost in processor time."""

    latest: Estimate | None = None
    age: float | None = None
    outcomes: Mapping[Outcome, int] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All of it; ``own`` is the exporter itself, ``cgroup`` that of the server's master."""

    version: str
    found: Found
    seen: tuple[Seen, ...]
    cgroup: api.Cgroup | None
    sampling: api.Sampling
    estimated: Estimated
    troubles: Mapping[Trouble, int]
    own_memory: api.Memory | None
    own_process: api.Process | None

    @property
    def ready(self) -> bool:
        """Whether there is a server, and all of its workers were measured that are there now."""
        workers = [seen for seen in self.seen if seen.role is Role.WORKER]
        return self.found.state is State.WATCHING and bool(workers) and all(seen.memory for seen in workers)

    @property
    def readiness(self) -> str:
        """Say in a line what there is, or what is missing."""
        if self.found.state is not State.WATCHING:
            return f"{self.found.state}: {self.found.reason}"
        measured = sum(seen.memory is not None for seen in self.seen)
        return f"{self.found.state}: processes={len(self.seen)} measured={measured}"
