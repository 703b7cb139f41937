"""One status as families of metrics: what Prometheus is told, and nothing of how.

Series are named by role and slot, which stay, and never by pid, which does not: a refork every minute must not leave a
thousand dead series a day behind. During a rollout a slot has two processes for a moment, and there may be two molds:
they are one series, their sum. What is not known has no sample, because unknown is not zero; what has not happened yet
has one, because a series that appears with its first event hides that event from ``rate()``.

Each metric is explained in docs/METRICS.md.
"""

from __future__ import annotations

from collections import Counter
from itertools import accumulate, product
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily

from refork import api

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from prometheus_client.core import Metric

MONITOR, MOLD, WORKER = "monitor", "mold", "worker"

type Place = tuple[str, str]
"""A role and a slot; the slot is empty for who has none."""

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


def families(status: api.Status) -> Iterator[Metric]:
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


def _about_workers(status: api.Status) -> Iterator[Metric]:
    states = Counter(worker.state for worker in status.workers)
    workers = GaugeMetricFamily("refork_workers", "Worker processes, by state.", labels=["state"])
    for state in api.WorkerState:
        workers.add_metric([state], states[state])
    yield workers
    yield _gauge("refork_workers_wanted", "Workers that there should be.", status.wanted)


def _about_memory(status: api.Status) -> Iterator[Metric]:
    measured = list(_measured(status))
    for size, meaning in _SIZES.items():
        yield _by_place(
            f"refork_memory_{size}_bytes", meaning, [(place, getattr(memory, size)) for place, memory in measured]
        )
    if status.totals is not None:
        saved = "Sum of RSS less sum of PSS over all processes: what sharing saves now."
        yield _gauge("refork_memory_saved_bytes", saved, status.totals.saved)
        shared = "Share of the resident memory of all processes that more than one of them uses."
        yield _gauge("refork_memory_shared_ratio", shared, status.totals.shared_ratio)


def _measured(status: api.Status) -> Iterator[tuple[Place, api.Memory]]:
    if status.monitor_memory is not None:
        yield (MONITOR, ""), status.monitor_memory
    for mold in status.molds:
        if mold.memory is not None:
            yield (MOLD, ""), mold.memory
    for worker in status.workers:
        if worker.memory is not None:
            yield (WORKER, str(worker.slot)), worker.memory


def _about_erosion(status: api.Status) -> Iterator[Metric]:
    gained = [(str(worker.slot), worker.gained) for worker in status.workers]
    rates = [(str(worker.slot), worker.erosion_rate) for worker in status.workers]
    yield _by_slot("refork_memory_gained_bytes", "Private memory gained since the worker became ready.", gained)
    yield _by_slot(
        "refork_memory_erosion_bytes_per_second", "How fast a worker's private memory has grown lately.", rates
    )
    yield _gauge("refork_gain_predicted_bytes", "What a refork would win back now.", status.gain.predicted)
    yield _gauge("refork_gain_promised_bytes", "What the last refork was predicted to win.", status.gain.promised)
    yield _gauge("refork_gain_realised_bytes", "What the last refork has won.", status.gain.realised)


def _about_processes(status: api.Status) -> Iterator[Metric]:
    known = list(_processes(status))
    yield _by_place("refork_threads", "Threads.", [(place, process.threads) for place, process in known])
    fds = [(place, process.fds) for place, process in known if process.fds is not None]
    yield _by_place("refork_open_fds", "Open file descriptors.", fds)
    cpu = CounterMetricFamily("refork_cpu_seconds", "Processor time used, in user and kernel mode.", labels=_PLACE)
    faults = CounterMetricFamily("refork_minor_faults", "Page faults that read nothing from disk.", labels=_PLACE)
    if status.monitor_process is not None:
        cpu.add_metric([MONITOR, ""], status.monitor_process.cpu_seconds)
        faults.add_metric([MONITOR, ""], status.monitor_process.minor_faults)
    for slot in status.served:
        cpu.add_metric([WORKER, str(slot.slot)], slot.cpu_seconds)
        faults.add_metric([WORKER, str(slot.slot)], slot.minor_faults)
    yield cpu
    yield faults
    yield _gauge("refork_start_time_seconds", "When the server started, as a Unix time.", status.started_at)


def _processes(status: api.Status) -> Iterator[tuple[Place, api.Process]]:
    if status.monitor_process is not None:
        yield (MONITOR, ""), status.monitor_process
    for mold in status.molds:
        if mold.process is not None:
            yield (MOLD, ""), mold.process
    for worker in status.workers:
        if worker.process is not None:
            yield (WORKER, str(worker.slot)), worker.process


def _about_cgroup(cgroup: api.Cgroup) -> Iterator[Metric]:
    yield _gauge("refork_cgroup_memory_usage_bytes", "Memory charged to the control group.", cgroup.usage)
    working_set = "Usage less the page cache that could go: what is compared with the limit."
    yield _gauge("refork_cgroup_memory_working_set_bytes", working_set, cgroup.working_set)
    yield _gauge("refork_cgroup_memory_limit_bytes", "The limit of the control group.", cgroup.limit)
    kills = "Processes that the kernel has killed in the control group for want of memory."
    yield CounterMetricFamily("refork_cgroup_oom_kills", kills, value=cgroup.oom_kills)
    pressure = GaugeMetricFamily(
        "refork_cgroup_memory_pressure_ratio",
        "Share of the last 10 seconds in which some, or all, processes waited for memory.",
        labels=["kind"],
    )
    for kind, percent in (("some", cgroup.psi_some_avg10), ("full", cgroup.psi_full_avg10)):
        if percent is not None:
            pressure.add_metric([kind], percent / 100)
    yield pressure


def _about_requests(status: api.Status) -> Iterator[Metric]:
    requests = CounterMetricFamily("refork_requests", "Requests served, by slot.", labels=["slot"])
    errors = CounterMetricFamily("refork_request_errors", "Requests that ended in an error, by slot.", labels=["slot"])
    for slot in status.served:
        requests.add_metric([str(slot.slot)], slot.requests)
        errors.add_metric([str(slot.slot)], slot.errors)
    yield requests
    yield errors
    in_flight = [(str(worker.slot), worker.in_flight) for worker in status.workers]
    yield _by_slot("refork_requests_in_flight", "Requests that are being handled, by slot.", in_flight)


def _about_generations(status: api.Status) -> Iterator[Metric]:
    yield _gauge("refork_generation", "Generation of the mold that forks workers now.", status.generation)
    reforks = CounterMetricFamily(
        "refork_reforks", "Reforks and rebases that have ended.", labels=["trigger", "outcome", "kind"]
    )
    counts = {(count.trigger, count.outcome, count.kind): count.count for count in status.rollouts}
    for labels in product(api.Trigger, api.Outcome, api.RolloutKind):
        reforks.add_metric(labels, counts.get(labels, 0))
    yield reforks
    yield _step_durations(status.steps)
    sealed = "Objects sealed so far in the heap that workers are forked from."
    yield _gauge("refork_sealed_objects", sealed, _sealed_objects(status.molds))


def _step_durations(steps: Iterable[api.StepDurations]) -> Metric:
    family = HistogramMetricFamily(
        "refork_rollout_step_duration_seconds", "How long the steps of reforks and rebases took.", labels=["step"]
    )
    bounds = [*(repr(bound) for bound in api.STEP_BOUNDS), "+Inf"]
    for step in steps:
        buckets = list(zip(bounds, accumulate(step.counts), strict=True))
        family.add_metric([step.phase], buckets=buckets, sum_value=step.seconds)
    return family


def _sealed_objects(molds: Iterable[api.MoldStatus]) -> int:
    """Take the newest mold that has been sealed; the reports of all generations add up in it."""
    sealed = [(mold.generation, mold.seal.total_objects) for mold in molds if mold.seal is not None]
    return max(sealed)[1] if sealed else 0


def _about_automatic(automatic: api.Automatic | None) -> Iterator[Metric]:
    stopped = "Whether reforks by memory have been given up, because they did not pay."
    yield _gauge("refork_automatic_stopped", stopped, int(automatic is not None and automatic.stopped))
    unpaid = "Reforks in a row that won much less than they promised."
    yield _gauge("refork_automatic_unpaid", unpaid, 0 if automatic is None else automatic.unpaid)


def _about_sampling(sampling: api.Sampling) -> Iterator[Metric]:
    yield _gauge("refork_sampling_interval_seconds", "Time between two looks at a process.", sampling.interval)
    yield _gauge("refork_sampling_age_seconds", "Age of the oldest sample that is shown.", sampling.age)
    spent = "Processor time spent on looking at the memory of processes."
    yield CounterMetricFamily("refork_sampling_cpu_seconds", spent, value=sampling.seconds)
    share = "Share of one processor that looking has taken over the last minutes."
    yield _gauge("refork_sampling_cpu_ratio", share, sampling.cpu_share)


def _about_versions(status: api.Status) -> Metric:
    facts = {
        "version": status.version,
        "python": status.python,
        "gunicorn": status.gunicorn,
        "worker_class": status.worker_class,
        "sealing": status.sealing,
    }
    return InfoMetricFamily("refork", "Versions and settings of the server, as labels; always 1.", value=facts)


_PLACE = ["role", "slot"]


def _gauge(name: str, meaning: str, value: float | None) -> Metric:
    """Make a family of one sample, or of none if there is no value."""
    family = GaugeMetricFamily(name, meaning)
    if value is not None:
        family.add_metric([], value)
    return family


def _by_place(name: str, meaning: str, values: Iterable[tuple[Place, float]]) -> Metric:
    family = GaugeMetricFamily(name, meaning, labels=_PLACE)
    for place, value in _summed(values).items():
        family.add_metric(place, value)
    return family


def _by_slot(name: str, meaning: str, values: Sequence[tuple[str, float | None]]) -> Metric:
    family = GaugeMetricFamily(name, meaning, labels=["slot"])
    for slot, value in _summed((slot, value) for slot, value in values if value is not None).items():
        family.add_metric([slot], value)
    return family


def _summed[Key](values: Iterable[tuple[Key, float]]) -> dict[Key, float]:
    sums: dict[Key, float] = {}
    for key, value in values:
        sums[key] = sums.get(key, 0) + value
    return sums
