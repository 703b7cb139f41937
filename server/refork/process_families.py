"""What is said of processes, and of looking at them, in metrics that mean the same whoever watches: server or exporter.

A place is a label set that names a process by its role and slot. Two processes in one place are one series, their sum.
"""

from __future__ import annotations

from functools import cache
from operator import attrgetter
from typing import TYPE_CHECKING

from refork.exposition import Family, Kind, labels

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from refork import api
    from refork.exposition import Sample

_DIGITS = 3
"""Of seconds: the kernel counts in ticks of a hundredth, or on some machines of a thousandth."""

_SIZES = {
    "rss": "Resident memory. A shared page counts in full for each process, so the sum is more than there is.",
    "pss": "Resident memory, each shared page divided by its users. The sum is what the server uses.",
    "uss": "Memory that the process shares with nobody: what would be freed if it ended.",
    "shared": "Resident memory that other processes use too. With USS it adds up to RSS.",
    "private_dirty": "Memory that the process alone has written to.",
    "private_clean": "Pages of files that the process alone has mapped, and not written to.",
    "shared_clean": "Pages of files that several processes have mapped.",
    "shared_dirty": "Written pages that several processes use: what forked workers share.",
    "pss_anon": "The part of PSS that is memory of the process's own making: heap and stack.",
    "pss_file": "The part of PSS that is pages of files: programs and libraries.",
    "pss_shmem": "The part of PSS that is shared memory and tmpfs.",
    "swap": "Memory that is swapped out. A shared page counts in full for each process.",
    "ksm": "Memory that the kernel has merged with equal pages of other processes.",
}


def about_memory(measured: Iterable[tuple[str, api.Memory | None]], totals: api.Totals | None) -> Iterator[Family]:
    """Tell the memory of each place, and what sharing saves; nothing of what is not known."""
    known = [(at, memory) for at, memory in measured if memory is not None]
    for size, meaning in _SIZES.items():
        get = attrgetter(size)
        samples = summed((at, get(memory)) for at, memory in known)
        yield Family(f"refork_memory_{size}_bytes", Kind.GAUGE, meaning, samples)
    if totals is not None:
        saved = "Sum of RSS less sum of PSS over all processes: what sharing saves now."
        yield gauge("refork_memory_saved_bytes", saved, totals.saved)
        shared = "Share of the resident memory of all processes that more than one of them uses, 0 to 1."
        yield gauge("refork_memory_shared_ratio", shared, totals.shared_ratio)


def about_processes(
    seen: Iterable[tuple[str, api.Process | None]],
    *,
    cpu: Iterable[Sample],
    faults: Iterable[Sample],
    started: float | None,
) -> Iterator[Family]:
    """Tell what else there is to know of each place; ``cpu`` and ``faults`` count for as long as a place exists."""
    known = [(at, process) for at, process in seen if process is not None]
    threads = summed((at, process.threads) for at, process in known)
    yield Family("refork_threads", Kind.GAUGE, "Threads.", threads)
    fds = summed((at, process.fds) for at, process in known if process.fds is not None)
    yield Family("refork_open_fds", Kind.GAUGE, "Open file descriptors.", fds)
    used = "Processor time used, in user and kernel mode."
    # A sum of the same numbers in another order may be less by the last of its bits, and that is a reset to Prometheus.
    yield Family("refork_cpu_seconds", Kind.COUNTER, used, [(at, round(seconds, _DIGITS)) for at, seconds in cpu])
    minor = "Page faults that read nothing from disk; the first write to a shared page is one."
    yield Family("refork_minor_faults", Kind.COUNTER, minor, list(faults))
    yield gauge("refork_start_time_seconds", "When the server started, as a Unix time.", started)


def about_cgroup(cgroup: api.Cgroup | None) -> Iterator[Family]:
    """Tell what is charged to the control group of the server, if it has one that can be read."""
    if cgroup is None:
        return
    usage = "Memory charged to the control group (the container), page cache included."
    yield gauge("refork_cgroup_memory_usage_bytes", usage, cgroup.usage)
    working_set = "Usage less the page cache that could go: what Kubernetes compares with the limit."
    yield gauge("refork_cgroup_memory_working_set_bytes", working_set, cgroup.working_set)
    limit = "The lowest limit that holds for the control group. No sample where there is none."
    yield gauge("refork_cgroup_memory_limit_bytes", limit, cgroup.limit)
    kills = "Processes in the control group that the kernel has killed for want of memory."
    yield Family("refork_cgroup_oom_kills", Kind.COUNTER, kills, [("", cgroup.oom_kills)])
    waited = "Share of the last 10 seconds in which some processes, or all of them (full), waited for memory."
    kinds = (("some", cgroup.psi_some_avg10), ("full", cgroup.psi_full_avg10))
    shares = [(labels(kind=kind), percent / 100) for kind, percent in kinds if percent is not None]
    yield Family("refork_cgroup_memory_pressure_ratio", Kind.GAUGE, waited, shares)


def about_sampling(sampling: api.Sampling) -> Iterator[Family]:
    """Tell what looking costs."""
    yield gauge("refork_sampling_interval_seconds", "Time from one look at a process to the next.", sampling.interval)
    yield gauge("refork_sampling_age_seconds", "Age of the oldest sample that is shown.", sampling.age)
    spent = "Processor time spent on looking at the memory of processes."
    yield Family("refork_sampling_cpu_seconds", Kind.COUNTER, spent, [("", sampling.seconds)])
    share = "Share of one processor that looking has taken over the last five minutes."
    yield gauge("refork_sampling_cpu_ratio", share, sampling.cpu_share)


@cache
def place(role: str, slot: int | None = None) -> str:
    """Name a place; only workers have slots."""
    return labels(role=role, slot="" if slot is None else slot)


def gauge(name: str, meaning: str, value: float | None) -> Family:
    """Make a family of one sample, or of none if there is no value."""
    return Family(name, Kind.GAUGE, meaning, [] if value is None else [("", value)])


def summed(values: Iterable[Sample]) -> list[Sample]:
    """Add up what is in one place."""
    sums: dict[str, float] = {}
    for at, value in values:
        sums[at] = sums.get(at, 0) + value
    return list(sums.items())
