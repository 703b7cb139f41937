"""Who there is, as the state machine knows them: workers in their slots, molds, and the rollout between two of them.

And what it goes by: the policy. All of it is data; what follows from it is the business of ``refork.generations``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from refork.api import MoldState, RolloutKind

if TYPE_CHECKING:
    from refork.api import Outcome, Phase, Trigger


@dataclass(frozen=True, slots=True)
class Policy:
    """The settings that the machine decides by; durations in seconds."""

    surge: int = 1
    max_unavailable: int = 0
    spawn_timeout: float = 60.0
    promote_timeout: float = 60.0
    graceful_timeout: float = 30.0
    canary_seconds: float = 2.0
    max_generations: int = 0
    max_growth: float = math.inf
    schedule: tuple[int, ...] = ()
    backoff: float = 0.5
    max_backoff: float = 30.0
    cooldown: float = 60.0


class Stage(StrEnum):
    """Where a worker is in its life, as the machine needs to know it."""

    FORKING = "forking"
    BOOTING = "booting"
    READY = "ready"
    PROMOTING = "promoting"
    DRAINING = "draining"


@dataclass(slots=True)
class Worker:
    """A process in a slot. ``deadline``: when its present stage has lasted too long."""

    id: int
    slot: int
    generation: int
    loaded: int
    deadline: float
    stage: Stage = Stage.FORKING
    killed: bool = False
    overdue: bool = False
    leaking: bool = False

    @property
    def booting(self) -> bool:
        """Whether it is on its way to serve."""
        return self.stage in (Stage.FORKING, Stage.BOOTING)

    @property
    def occupies(self) -> bool:
        """Whether its slot is taken: it serves, or is about to."""
        return self.booting or self.stage is Stage.READY


@dataclass(slots=True)
class Mold:
    """A fork server. ``loaded``: the generation whose mold loaded the application it carries."""

    generation: int
    loaded: int
    deadline: float
    state: MoldState = MoldState.LOADING
    ready_at: float = math.inf
    boot_failures: int = 0
    size: int = 0


@dataclass(frozen=True, slots=True)
class Answers:
    """What somebody has answered so far, and how much of it was an error."""

    requests: int
    errors: int

    @property
    def share(self) -> float:
        """The share of errors, 0 to 1."""
        return self.errors / self.requests if self.requests else 0.0

    def clearly_worse_than(self, other: Answers) -> bool:
        """Whether this is beyond what chance makes of the other's share of errors.

        At least 3 errors, and so many more than expected that chance brings it about once in a thousand times: three
        standard deviations of a binomial distribution, with a floor for a history without errors.
        """
        expected = self.requests * max(other.share, 0.01)
        return self.errors >= max(3.0, expected + 3 * math.sqrt(expected))


@dataclass(frozen=True, slots=True)
class Rollout:
    """A refork or rebase on its way from one generation to the next; or a trial, which stays in its generation."""

    id: int
    kind: RolloutKind
    trigger: Trigger
    generation: int
    slot: int
    phase: Phase
    started: float
    since: float
    deadline: float
    loaded: int = 0
    promoted: int | None = None
    spare: int | None = None
    canary: int | None = None
    canary_until: float = math.inf
    steps: tuple[tuple[Phase, float], ...] = ()
    outcome: Outcome | None = None
    reason: str = ""
    findings: tuple[str, ...] = ()

    def __str__(self) -> str:
        preposition = "in" if self.kind is RolloutKind.TRIAL else "to"
        return f"{self.kind} {preposition} gen={self.generation}"
