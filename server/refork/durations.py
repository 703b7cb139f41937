"""How long the steps of rollouts take, over the life of the server: what a histogram is made from. No clock here."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from refork import api
from refork.api import Phase

if TYPE_CHECKING:
    from collections.abc import Iterable

STEPS = (
    *(Phase.SURGE, Phase.DRAINING, Phase.SEALING, Phase.LOADING),
    *(Phase.CANARY, Phase.ROLLING, Phase.RETIRING),
)


class Durations:
    """Counts steps in classes of duration. Every step is there from the start, so that its first one is an increase."""

    def __init__(self) -> None:
        self._counts = {phase: [0] * (len(api.STEP_BOUNDS) + 1) for phase in STEPS}
        self._seconds = dict.fromkeys(STEPS, 0.0)

    def add(self, steps: Iterable[tuple[Phase, float]]) -> None:
        """Count the steps of a rollout that has ended."""
        for phase, seconds in steps:
            if phase not in self._counts:
                continue  # a rollout that was ended before its first step
            self._counts[phase][bisect_left(api.STEP_BOUNDS, seconds)] += 1
            self._seconds[phase] += seconds

    def status(self) -> tuple[api.StepDurations, ...]:
        """Tell them all."""
        return tuple(api.StepDurations(phase, tuple(self._counts[phase]), self._seconds[phase]) for phase in STEPS)
