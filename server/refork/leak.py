"""Erosion or leak? What a worker's private memory does after its fork, told from its samples alone.

Erosion levels off: a worker has only so many shared pages to write to. A leak does not: it goes on, at about the pace
that it had. So the samples since the fork are cut in two halves of time, and the pace of the second is compared with
that of the first. Pure: times and sizes in, a verdict out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

from refork.api import Growth

LEAST_SAMPLES = 12
LEAST_SECONDS = 60.0
LEAST_GROWTH = 8 * 1024 * 1024
"""Bytes in the second half of the time. Below it nothing is worth a verdict: allocators breathe."""

STEADY_PACE = 0.6
"""A leak's second half grows at least so much as its first. Erosion that falls off exponentially is far below it."""

CLOSEST = 1.0
"""Seconds between two samples that are worth keeping."""

MOST_SAMPLES = 128


@dataclass(frozen=True, slots=True)
class Sample:
    """Private memory at a time: seconds on any one clock, bytes."""

    time: float
    private: int


@dataclass(slots=True)
class History:
    """The samples of one worker since its fork, evenly spaced, and few however long it lives."""

    samples: list[Sample] = field(default_factory=list)
    spacing: float = 0.0

    def add(self, sample: Sample) -> None:
        """Take in a sample, unless it comes too soon; past ``MOST_SAMPLES`` every second one is dropped."""
        if self.samples and sample.time - self.samples[-1].time < max(self.spacing, CLOSEST):
            return
        self.samples.append(sample)
        if len(self.samples) > MOST_SAMPLES:
            self.samples = self.samples[::2]
            self.spacing = self.samples[-1].time - self.samples[-2].time

    def verdict(self) -> Growth:
        """Judge the growth so far."""
        return judge(self.samples)


def judge(samples: list[Sample]) -> Growth:
    """Tell erosion from a leak; ``UNKNOWN`` while there is too little to go by.

    A leak has to grow in both halves at about the same pace, and in most of the steps of the second one: a cache that
    is filled once, however late, is one step and no leak.
    """
    if len(samples) < LEAST_SAMPLES or samples[-1].time - samples[0].time < LEAST_SECONDS:
        return Growth.UNKNOWN
    middle = (samples[0].time + samples[-1].time) / 2
    first = [sample for sample in samples if sample.time <= middle]
    second = [first[-1], *(sample for sample in samples if sample.time > middle)]
    before, after = first[-1].private - first[0].private, second[-1].private - second[0].private
    if after < LEAST_GROWTH:
        return Growth.STEADY if before < LEAST_GROWTH else Growth.EROSION
    steps = [b.private - a.private for a, b in pairwise(second)]
    goes_on = sum(step > 0 for step in steps) > len(steps) / 2 and max(steps) < after / 2
    return Growth.LEAK if after >= STEADY_PACE * before and goes_on else Growth.EROSION
