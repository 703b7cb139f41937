"""A rollout, as it is told of: from one generation to the next, through its phases, to its outcome."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from refork.api import RolloutKind

if TYPE_CHECKING:
    from refork.api import Outcome, Phase, Trigger


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
