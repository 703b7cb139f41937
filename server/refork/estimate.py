"""What reforking could win for a server that runs now, whatever it is: from figures and samples to an honest range.

Pure: ``refork.estimate_proc`` reads what is needed here from ``/proc``, ``refork.ctl_estimate`` shows the result.

Nobody can know from outside which memory of a worker is its own and which it has in common with the others. Two things
can be known, and the truth lies between them:

* **At least** what is *equal now* would be held once. Samples of the workers' private pages tell how much that is: a
  page that ``c`` workers hold with the same contents at the same address is counted as ``1/c`` of a page, and the mean
  over a random sample is the share of contents that differ (the estimator of Horvitz and Thompson: each sample weighs
  what its chance to be drawn says). Everything that differs is taken to be needed by the worker that has it.
* **At most** everything would be held once that one worker holds: after a refork all workers are born with the memory
  of the warmest one. That is true for workers that do the same work, where only the order of events made the contents
  differ. What changes while it is looked at would become private again, and so would a little in each process.

In both, one worker's private memory stays, because somebody has to have it; the master of now goes, and refork's
monitor and mold come. Where the samples say nothing (contents may not be read, or workers were not forked from one
process, so that even equal objects have different addresses in them), the lower end says nothing either.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

MONITOR = 33 * 1024 * 1024
"""What refork's monitor uses: measured, see docs/ESTIMATE.md."""

RESIDUE = 1024 * 1024
"""What a worker under load that was forked from a sealed mold has for itself at least: measured, see there."""

_CONFIDENCE = 1.96


class Role(StrEnum):
    """What a process is for."""

    MASTER = "master"
    WORKER = "worker"
    OTHER = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One process of the tree; sizes in bytes."""

    pid: int
    role: Role
    command: str
    rss: int
    pss: int
    private: int
    swapped: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One private page of a worker, drawn at random.

    Attributes:
        compared: other workers that were looked at, at the same address.
        equal: those of them that had the same contents there.
        held: one of these shares the page with somebody, so that this page is one too many whatever the others do.
        changed: the worker has changed it between two looks; None if there was no second look.
    """

    compared: int
    equal: int
    held: bool = False
    changed: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A share of all private pages, as the samples tell it: give or take ``margin``, 19 times out of 20."""

    value: float
    margin: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Future:
    """One end of the range; sizes in bytes."""

    used: int
    won: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a server uses, and what it would use under refork; sizes in bytes.

    Attributes:
        processes: the master first, then workers, then others.
        rss: sum over all processes.
        used: sum of PSS: what the processes really use.
        private: what the workers share with nobody, summed.
        largest: the most that one worker has of it: stays whatever happens.
        samples: how many pages were drawn.
        duplicate: share of the workers' private pages that need not exist, because another worker has the same.
        changing: share of them that changed between two looks, ``seconds`` apart.
        at_least: counting only what is equal now.
        at_most: when one worker's memory serves all.
        contents: whether the contents of pages could be read; else ``at_least`` is nothing, because nothing is known.
        notes: what limits this estimate, in sentences.
    """

    processes: tuple[Process, ...]
    rss: int
    used: int
    private: int
    largest: int
    samples: int
    duplicate: Share | None
    changing: Share | None
    seconds: float
    at_least: Future
    at_most: Future
    contents: bool = True
    notes: tuple[str, ...] = ()

    @property
    def workers(self) -> tuple[Process, ...]:
        """The processes that a refork would renew."""
        return tuple(process for process in self.processes if process.role is Role.WORKER)


def estimate(
    processes: Sequence[Process],
    samples: Sequence[Sample] | None,
    *,
    sampled: int,
    seconds: float = 0.0,
    notes: Sequence[str] = (),
) -> Estimate:
    """Make the estimate.

    Args:
        processes: all processes of the tree.
        samples: pages drawn at random from the workers' private ones; None when their contents may not be read.
        sampled: bytes of private memory that the samples were drawn from.
        seconds: from the first look at a page to the second.
        notes: what else the reader should know.
    """
    contents, samples = samples is not None, samples or ()
    ordered = tuple(sorted(processes, key=lambda process: (list(Role).index(process.role), process.pid)))
    workers = [process for process in ordered if process.role is Role.WORKER]
    used = sum(process.pss for process in ordered)
    private = sum(worker.private for worker in workers)
    largest = max((worker.private for worker in workers), default=0)
    distinct, changing = _distinct(samples, workers=len(workers)), _changing(samples)
    sampled = min(sampled, private) if samples else 0

    # Shared pages stay as they are, so does what belongs to processes that are neither master nor worker.
    kept = used - sum(process.private for process in ordered if process.role is not Role.OTHER) + MONITOR
    different = private if distinct is None else (distinct.value + distinct.margin) * sampled + private - sampled
    cautious = kept + max(different, largest) + RESIDUE
    restless = 0.0 if changing is None else changing.value * max(0, sampled - largest)
    hopeful = kept + largest + restless + RESIDUE * (len(workers) + 1)
    if len(workers) < 2:  # noqa: PLR2004  (one worker has nobody to share with)
        cautious = hopeful = used
    at_least = _future(cautious, used=used)
    return Estimate(
        processes=ordered,
        rss=sum(process.rss for process in ordered),
        used=used,
        private=private,
        largest=largest,
        samples=len(samples),
        duplicate=None if distinct is None else Share(value=1 - distinct.value, margin=distinct.margin),
        changing=changing,
        seconds=seconds,
        at_least=at_least,
        at_most=max(at_least, _future(hopeful, used=used), key=lambda future: future.won),
        contents=contents,
        notes=tuple(notes),
    )


def _future(size: float, *, used: int) -> Future:
    """Never worse than now: nobody has to refork."""
    size = min(used, math.ceil(size))
    return Future(used=size, won=used - size)


def _distinct(samples: Sequence[Sample], *, workers: int) -> Share | None:
    """Tell which share of the pages would be left if each of their contents existed once."""
    weights = [_weight(sample, workers=workers) for sample in samples if sample.compared and workers > 1]
    return _mean(weights) if weights else None


def _weight(sample: Sample, *, workers: int) -> float:
    if sample.held:
        return 0.0
    # With many workers only some are looked at; the others are taken to be like them. As 1/c is convex, chance makes
    # the weight rather too large than too small, and the gain too small.
    return 1 / (1 + sample.equal * (workers - 1) / sample.compared)


def _changing(samples: Sequence[Sample]) -> Share | None:
    changes = [float(sample.changed) for sample in samples if sample.changed is not None]
    return _mean(changes) if changes else None


def _mean(values: Sequence[float]) -> Share:
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return Share(value=mean, margin=1.0)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return Share(value=mean, margin=_CONFIDENCE * math.sqrt(variance / len(values)))
