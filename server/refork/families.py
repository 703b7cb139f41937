"""One status as families of metrics: what Prometheus is told, and nothing of how.

Series are named by role and slot, which stay, and never by pid, which does not: a refork every minute must not leave a
thousand dead series a day behind. During a rollout a slot has two processes for a moment, and there may be two molds:
they are one series, their sum. What is not known has no sample, because unknown is not zero; what has not happened yet
has one, because a series that appears with its first event hides that event from ``rate()``.

Each metric is explained in docs/METRICS.md.
"""

from __future__ import annotations

from collections import Counter
from functools import cache
from itertools import accumulate, product
from typing import TYPE_CHECKING

from refork import api
from refork.exposition import Family, Kind, labels
from refork.process_families import about_cgroup, about_memory, about_processes, about_sampling, gauge, place, summed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from enum import StrEnum

    from refork.exposition import Sample


def families(status: api.Status) -> Iterator[Family]:
    """Yield them all, those about workers first."""
    yield from _about_workers(status)
    yield from _about_memory(status)
    yield from _about_erosion(status)
    yield from _about_processes(status)
    yield from about_cgroup(status.cgroup)
    yield from _about_requests(status)
    yield from _about_generations(status)
    yield from _about_automatic(status.automatic)
    yield from about_sampling(status.sampling)
    yield _about_versions(status)


def _about_workers(status: api.Status) -> Iterator[Family]:
    workers = _counted((worker.state for worker in status.workers), api.WorkerState)
    yield Family("refork_workers", Kind.GAUGE, "Worker processes that are booting, ready or draining.", workers)
    yield gauge("refork_workers_wanted", "Workers that there should be.", status.wanted)
    molds = _counted((mold.state for mold in status.molds), api.MoldState)
    meaning = "Molds that are loading, ready or retiring. Without a ready one no worker can be replaced."
    yield Family("refork_molds", Kind.GAUGE, meaning, molds)


def _about_memory(status: api.Status) -> Iterator[Family]:
    measured = [(MONITOR, status.monitor_memory), *((MOLD, mold.memory) for mold in status.molds)]
    measured += [(place("worker", worker.slot), worker.memory) for worker in status.workers]
    yield from about_memory(measured, status.totals)


def _about_erosion(status: api.Status) -> Iterator[Family]:
    gained = [(_slot(worker.slot), worker.gained) for worker in status.workers if worker.gained is not None]
    rates = [(_slot(worker.slot), worker.erosion_rate) for worker in status.workers if worker.erosion_rate is not None]
    meaning = "Erosion: private memory gained since the worker became ready. Near zero after a refork, and grows."
    yield Family("refork_memory_gained_bytes", Kind.GAUGE, meaning, summed(gained))
    meaning = "How fast that has grown over two minutes. Less than zero when memory was given back."
    yield Family("refork_memory_erosion_bytes_per_second", Kind.GAUGE, meaning, summed(rates))
    leaks = sum(worker.growth is api.Growth.LEAK for worker in status.workers)
    meaning = "Workers whose private memory goes on growing at its pace: a leak, not erosion. They are not promoted."
    yield gauge("refork_workers_leaking", meaning, leaks)
    meaning = "What a refork would win back now: what all workers have gained, less the largest, which stays."
    yield gauge("refork_gain_predicted_bytes", meaning, status.gain.predicted)
    meaning = "What the last refork was predicted to win when it began."
    yield gauge("refork_gain_promised_bytes", meaning, status.gain.promised)
    meaning = "What the last refork has won: the PSS of all processes before it, less that after it."
    yield gauge("refork_gain_realised_bytes", meaning, status.gain.realised)


def _about_processes(status: api.Status) -> Iterator[Family]:
    seen = [(MONITOR, status.monitor_process), *((MOLD, mold.process) for mold in status.molds)]
    seen += [(place("worker", worker.slot), worker.process) for worker in status.workers]
    cpu = [(place("worker", slot.slot), slot.cpu_seconds) for slot in status.served]
    faults = [(place("worker", slot.slot), slot.minor_faults) for slot in status.served]
    if status.monitor_process is not None:
        cpu.append((MONITOR, status.monitor_process.cpu_seconds))
        faults.append((MONITOR, status.monitor_process.minor_faults))
    yield from about_processes(seen, cpu=cpu, faults=faults, started=status.started_at)


def _about_requests(status: api.Status) -> Iterator[Family]:
    requests = [(_slot(slot.slot), slot.requests) for slot in status.served]
    yield Family("refork_requests", Kind.COUNTER, "Requests served in the slot, by whichever workers.", requests)
    errors = [(_slot(slot.slot), slot.errors) for slot in status.served]
    yield Family("refork_request_errors", Kind.COUNTER, "Those of them that ended in an error.", errors)
    in_flight = summed((_slot(worker.slot), worker.in_flight) for worker in status.workers)
    yield Family("refork_requests_in_flight", Kind.GAUGE, "Requests that are being handled in the slot.", in_flight)


def _about_generations(status: api.Status) -> Iterator[Family]:
    forking = "Generation of the mold that forks workers now: 0 for the first that loaded the application."
    yield gauge("refork_generation", forking, status.generation)
    counts = {(count.trigger, count.outcome, count.kind): count.count for count in status.rollouts}
    reforks = [
        (labels(trigger=trigger, outcome=outcome, kind=kind), counts.get((trigger, outcome, kind), 0))
        for trigger, outcome, kind in product(api.Trigger, api.Outcome, api.RolloutKind)
    ]
    yield Family("refork_reforks", Kind.COUNTER, "Reforks, rebases and trials that have ended.", reforks)
    age = 0.0 if status.rollout is None else status.rollout.seconds
    yield gauge("refork_rollout_age_seconds", "For how long a rollout has been under way; 0 when none is.", age)
    took = "How long each step of a rollout took."
    durations = [sample for step in status.steps for sample in _durations(step)]
    yield Family("refork_rollout_step_duration_seconds", Kind.HISTOGRAM, took, durations)
    sealed = "Objects sealed so far in the heap that workers are forked from; 0 if none. Grows until a rebase."
    yield gauge("refork_sealed_objects", sealed, _sealed_objects(status.molds))


def _durations(step: api.StepDurations) -> Iterator[Sample]:
    total = 0
    for bound, total in zip([*api.STEP_BOUNDS, "+Inf"], accumulate(step.counts), strict=True):
        yield f"_bucket{labels(step=step.phase, le=bound)}", total
    yield f"_count{labels(step=step.phase)}", total
    yield f"_sum{labels(step=step.phase)}", step.seconds


def _sealed_objects(molds: Iterable[api.MoldStatus]) -> int:
    """Take the newest mold that has been sealed; the reports of all generations add up in it."""
    sealed = [(mold.generation, mold.seal.total_objects) for mold in molds if mold.seal is not None]
    return max(sealed)[1] if sealed else 0


def _about_automatic(automatic: api.Automatic | None) -> Iterator[Family]:
    stopped = "1 when reforks by memory (refork_gain) were given up, because three in a row did not pay."
    yield gauge("refork_automatic_stopped", stopped, int(automatic is not None and automatic.stopped))
    unpaid = "Reforks in a row that won less than half of what they promised."
    yield gauge("refork_automatic_unpaid", unpaid, 0 if automatic is None else automatic.unpaid)


def _about_versions(status: api.Status) -> Family:
    facts = labels(
        version=status.version,
        python=status.python,
        gunicorn=status.gunicorn,
        worker_class=status.worker_class,
        sealing=status.sealing,
    )
    return Family(
        "refork",
        Kind.INFO,
        "Always 1. The labels say what runs, and whether its heap is sealed or why not.",
        [(facts, 1)],
    )


# --- places -----------------------------------------------------------------------------------------------------------


MONITOR = place("monitor")
MOLD = place("mold")


@cache
def _slot(slot: int) -> str:
    return labels(slot=slot)


def _counted(found: Iterable[StrEnum], states: type[StrEnum]) -> list[Sample]:
    """Count how often each of the states was found; those that were not are there too."""
    counts = Counter(found)
    return [(labels(state=state), counts[state]) for state in states]
