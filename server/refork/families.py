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
from operator import attrgetter
from typing import TYPE_CHECKING

from refork import api
from refork.exposition import Family, Kind, labels

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from enum import StrEnum

    from refork.exposition import Sample

_SIZES = {
    "rss": "Resident memory; shared pages count in full for each process.",
    "pss": "Resident memory; each shared page divided by its users.",
    "uss": "Memory that the process shares with no other.",
    "shared": "Resident memory that other processes use too.",
    "private_dirty": "Memory that the process alone has written to.",
    "private_clean": "Pages of files that the process alone has mapped, and not written to.",
    "shared_clean": "Pages of files that several processes have mapped.",
    "shared_dirty": "Written pages that several processes use.",
    "pss_anon": "The part of PSS that is memory of the process's own making.",
    "pss_file": "The part of PSS that is pages of files.",
    "pss_shmem": "The part of PSS that is shared memory and tmpfs.",
    "swap": "Memory that is swapped out; shared pages count in full for each process.",
    "ksm": "Memory that the kernel has merged with equal pages of other processes.",
}


def families(status: api.Status) -> Iterator[Family]:
    """Yield them all, those about workers first."""
    yield from _about_workers(status)
    yield from _about_memory(status)
    yield from _about_erosion(status)
    yield from _about_processes(status)
    if status.cgroup is not None:
        yield from _about_cgroup(status.cgroup)
    yield from _about_requests(status)
    yield from _about_generations(status)
    yield from _about_automatic(status.automatic)
    yield from _about_sampling(status.sampling)
    yield _about_versions(status)


def _about_workers(status: api.Status) -> Iterator[Family]:
    workers = _counted((worker.state for worker in status.workers), api.WorkerState)
    yield Family("refork_workers", Kind.GAUGE, "Worker processes, by state.", workers)
    yield _gauge("refork_workers_wanted", "Workers that there should be.", status.wanted)
    molds = _counted((mold.state for mold in status.molds), api.MoldState)
    yield Family("refork_molds", Kind.GAUGE, "Molds, by state.", molds)


def _about_memory(status: api.Status) -> Iterator[Family]:
    measured = [(MONITOR, status.monitor_memory), *((MOLD, mold.memory) for mold in status.molds)]
    measured += [(_worker(worker.slot), worker.memory) for worker in status.workers]
    known = [(place, memory) for place, memory in measured if memory is not None]
    for size, meaning in _SIZES.items():
        get = attrgetter(size)
        samples = _summed((place, get(memory)) for place, memory in known)
        yield Family(f"refork_memory_{size}_bytes", Kind.GAUGE, meaning, samples)
    if status.totals is not None:
        saved = "Sum of RSS less sum of PSS over all processes: what sharing saves now."
        yield _gauge("refork_memory_saved_bytes", saved, status.totals.saved)
        shared = "Share of the resident memory of all processes that more than one of them uses."
        yield _gauge("refork_memory_shared_ratio", shared, status.totals.shared_ratio)


def _about_erosion(status: api.Status) -> Iterator[Family]:
    gained = [(_slot(worker.slot), worker.gained) for worker in status.workers if worker.gained is not None]
    rates = [(_slot(worker.slot), worker.erosion_rate) for worker in status.workers if worker.erosion_rate is not None]
    meaning = "Private memory gained since the worker became ready."
    yield Family("refork_memory_gained_bytes", Kind.GAUGE, meaning, _summed(gained))
    meaning = "How fast a worker's private memory has grown lately."
    yield Family("refork_memory_erosion_bytes_per_second", Kind.GAUGE, meaning, _summed(rates))
    leaks = sum(worker.growth is api.Growth.LEAK for worker in status.workers)
    yield _gauge("refork_workers_leaking", "Workers whose memory grows like a leak.", leaks)
    yield _gauge("refork_gain_predicted_bytes", "What a refork would win back now.", status.gain.predicted)
    yield _gauge("refork_gain_promised_bytes", "What the last refork was predicted to win.", status.gain.promised)
    yield _gauge("refork_gain_realised_bytes", "What the last refork has won.", status.gain.realised)


def _about_processes(status: api.Status) -> Iterator[Family]:
    seen = [(MONITOR, status.monitor_process), *((MOLD, mold.process) for mold in status.molds)]
    seen += [(_worker(worker.slot), worker.process) for worker in status.workers]
    known = [(place, process) for place, process in seen if process is not None]
    threads = _summed((place, process.threads) for place, process in known)
    yield Family("refork_threads", Kind.GAUGE, "Threads.", threads)
    fds = _summed((place, process.fds) for place, process in known if process.fds is not None)
    yield Family("refork_open_fds", Kind.GAUGE, "Open file descriptors.", fds)
    cpu = [(_worker(slot.slot), slot.cpu_seconds) for slot in status.served]
    faults = [(_worker(slot.slot), slot.minor_faults) for slot in status.served]
    if status.monitor_process is not None:
        cpu.append((MONITOR, status.monitor_process.cpu_seconds))
        faults.append((MONITOR, status.monitor_process.minor_faults))
    yield Family("refork_cpu_seconds", Kind.COUNTER, "Processor time used, in user and kernel mode.", cpu)
    yield Family("refork_minor_faults", Kind.COUNTER, "Page faults that read nothing from disk.", faults)
    yield _gauge("refork_start_time_seconds", "When the server started, as a Unix time.", status.started_at)


def _about_cgroup(cgroup: api.Cgroup) -> Iterator[Family]:
    yield _gauge("refork_cgroup_memory_usage_bytes", "Memory charged to the control group.", cgroup.usage)
    working_set = "Usage less the page cache that could go: what is compared with the limit."
    yield _gauge("refork_cgroup_memory_working_set_bytes", working_set, cgroup.working_set)
    yield _gauge("refork_cgroup_memory_limit_bytes", "The limit of the control group.", cgroup.limit)
    kills = "Processes that the kernel has killed in the control group for want of memory."
    yield Family("refork_cgroup_oom_kills", Kind.COUNTER, kills, [("", cgroup.oom_kills)])
    waited = "Share of the last 10 seconds in which some, or all, processes waited for memory."
    kinds = (("some", cgroup.psi_some_avg10), ("full", cgroup.psi_full_avg10))
    shares = [(labels(kind=kind), percent / 100) for kind, percent in kinds if percent is not None]
    yield Family("refork_cgroup_memory_pressure_ratio", Kind.GAUGE, waited, shares)


def _about_requests(status: api.Status) -> Iterator[Family]:
    requests = [(_slot(slot.slot), slot.requests) for slot in status.served]
    yield Family("refork_requests", Kind.COUNTER, "Requests served, by slot.", requests)
    errors = [(_slot(slot.slot), slot.errors) for slot in status.served]
    yield Family("refork_request_errors", Kind.COUNTER, "Requests that ended in an error, by slot.", errors)
    in_flight = _summed((_slot(worker.slot), worker.in_flight) for worker in status.workers)
    yield Family("refork_requests_in_flight", Kind.GAUGE, "Requests that are being handled, by slot.", in_flight)


def _about_generations(status: api.Status) -> Iterator[Family]:
    yield _gauge("refork_generation", "Generation of the mold that forks workers now.", status.generation)
    counts = {(count.trigger, count.outcome, count.kind): count.count for count in status.rollouts}
    reforks = [
        (labels(trigger=trigger, outcome=outcome, kind=kind), counts.get((trigger, outcome, kind), 0))
        for trigger, outcome, kind in product(api.Trigger, api.Outcome, api.RolloutKind)
    ]
    yield Family("refork_reforks", Kind.COUNTER, "Reforks and rebases that have ended.", reforks)
    age = 0.0 if status.rollout is None else status.rollout.seconds
    yield _gauge("refork_rollout_age_seconds", "For how long a rollout has been under way; 0 when none is.", age)
    took = "How long the steps of reforks and rebases took."
    durations = [sample for step in status.steps for sample in _durations(step)]
    yield Family("refork_rollout_step_duration_seconds", Kind.HISTOGRAM, took, durations)
    sealed = "Objects sealed so far in the heap that workers are forked from."
    yield _gauge("refork_sealed_objects", sealed, _sealed_objects(status.molds))


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
    stopped = "Whether reforks by memory have been given up, because they did not pay."
    yield _gauge("refork_automatic_stopped", stopped, int(automatic is not None and automatic.stopped))
    unpaid = "Reforks in a row that won much less than they promised."
    yield _gauge("refork_automatic_unpaid", unpaid, 0 if automatic is None else automatic.unpaid)


def _about_sampling(sampling: api.Sampling) -> Iterator[Family]:
    yield _gauge("refork_sampling_interval_seconds", "Time between two looks at a process.", sampling.interval)
    yield _gauge("refork_sampling_age_seconds", "Age of the oldest sample that is shown.", sampling.age)
    spent = "Processor time spent on looking at the memory of processes."
    yield Family("refork_sampling_cpu_seconds", Kind.COUNTER, spent, [("", sampling.seconds)])
    share = "Share of one processor that looking has taken over the last minutes."
    yield _gauge("refork_sampling_cpu_ratio", share, sampling.cpu_share)


def _about_versions(status: api.Status) -> Family:
    facts = labels(
        version=status.version,
        python=status.python,
        gunicorn=status.gunicorn,
        worker_class=status.worker_class,
        sealing=status.sealing,
    )
    return Family("refork", Kind.INFO, "Versions and settings of the server, as labels; always 1.", [(facts, 1)])


# --- places -----------------------------------------------------------------------------------------------------------


MONITOR = labels(role="monitor", slot="")
MOLD = labels(role="mold", slot="")


@cache
def _worker(slot: int) -> str:
    return labels(role="worker", slot=slot)


@cache
def _slot(slot: int) -> str:
    return labels(slot=slot)


def _gauge(name: str, meaning: str, value: float | None) -> Family:
    """Make a family of one sample, or of none if there is no value."""
    return Family(name, Kind.GAUGE, meaning, [] if value is None else [("", value)])


def _counted(found: Iterable[StrEnum], states: type[StrEnum]) -> list[Sample]:
    """Count how often each of the states was found; those that were not are there too."""
    counts = Counter(found)
    return [(labels(state=state), counts[state]) for state in states]


def _summed(values: Iterable[Sample]) -> list[Sample]:
    sums: dict[str, float] = {}
    for place, value in values:
        sums[place] = sums.get(place, 0) + value
    return list(sums.items())
