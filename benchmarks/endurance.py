"""What grows when a server reforks a hundred times under load. Nothing should.

File descriptors, threads and processes of the whole tree are counted at generation 1 and at the last one, each time
with the load stopped and its connections gone, so that only what the server itself holds is counted. The monitor is
the one process that lives through all generations, so its memory is watched too.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from benchmarks import _load
from benchmarks._common import (
    MIB,
    ROOT,
    BenchmarkError,
    Launch,
    Server,
    Target,
    TreeCounts,
    bar,
    command,
    conclude,
    drive_until_each,
    resident,
    say,
    table,
    tree_counts,
)

REFORKS = int(os.environ.get("REFORKS", "100"))
WORKER_CLASS = os.environ.get("WORKER_CLASS", "gthread")
WORKERS = 2
THREADS = 2
CONNECTIONS = 8
QUIET_SECONDS = 3.0
SETTLE_SECONDS = 30.0
TARGETS = {
    "fds_growth": Target(at_most=0),
    "threads_growth": Target(at_most=0),
    "processes_growth": Target(at_most=0),
    "monitor_rss_growth_mib": Target(at_most=1),
    "failed_requests": Target(at_most=0),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """The server at rest in one generation."""

    generation: int
    counts: TreeCounts
    monitor_rss: int


@dataclass(slots=True)
class Totals:
    """Requests of all load so far."""

    requests: int = 0
    failed: int = 0

    def add(self, *reports: _load.Report) -> None:
        """Count these too."""
        self.requests += sum(report.requests for report in reports)
        self.failed += sum(report.failed_requests for report in reports)
        for report in reports:
            for note in report.notes:
                say(f"failed: {note}")


def rest(server: Server) -> Sight:
    """Wait until nothing changes any more, then look."""
    deadline = time.monotonic() + SETTLE_SECONDS
    seen, since = tree_counts(server.pid), time.monotonic()
    while time.monotonic() - since < QUIET_SECONDS:
        if time.monotonic() > deadline:
            message = f"the server does not come to rest: {seen}"
            raise BenchmarkError(message)
        time.sleep(0.2)
        if (now := tree_counts(server.pid)) != seen:
            seen, since = now, time.monotonic()
    return Sight(generation=server.status().generation, counts=seen, monitor_rss=resident(server.pid))


def refork_under_load(server: Server, *, times: int, totals: Totals) -> None:
    """Refork so many times in a row while connections are busy, then let every worker serve."""
    with _load.start(_load.Plan(url=server.url(), connections=CONNECTIONS)) as load:
        for number in range(1, times + 1):
            server.refork()
            if number % 10 == 0:
                say(f"{number} reforks of {times}: {tree_counts(server.pid)}")
        totals.add(load.stop())
    totals.add(*drive_until_each(server, requests=500, connections=CONNECTIONS))


def show(first: Sight, last: Sight, totals: Totals) -> None:
    """The table."""

    def row(sight: Sight) -> tuple[object, ...]:
        counts = sight.counts
        monitor = f"{sight.monitor_rss / MIB:.2f}"
        return f"generation {sight.generation}", counts.processes, counts.threads, counts.fds, monitor

    header = ("", "processes", "threads", "file descriptors", "monitor's RSS, MiB")
    print("\n" + table(header, (row(first), row(last))) + "\n")
    most = max(first.counts.fds, last.counts.fds)
    for sight in (first, last):
        print(f"  {sight.generation:>4}  {bar(sight.counts.fds, of=most)} descriptors")
    print(f"\n  {totals.requests} requests, {totals.failed} failed")


def main() -> int:
    """The command."""
    launch = Launch(
        kind="refork",
        app=f"benchmarks._apps:{'wsgi' if WORKER_CLASS in ('sync', 'gthread') else 'asgi'}",
        chdir=ROOT,
        workers=WORKERS,
        worker_class=WORKER_CLASS,
        options=("--canary-seconds", "0", *(("--threads", str(THREADS)) if WORKER_CLASS == "gthread" else ())),
    )
    totals = Totals()
    with Server(launch) as server:
        say(f"{WORKERS} {WORKER_CLASS} workers; first refork")
        refork_under_load(server, times=1, totals=totals)
        first = rest(server)
        say(f"{first}; now {REFORKS - 1} more")
        refork_under_load(server, times=REFORKS - 1, totals=totals)
        last = rest(server)
    show(first, last, totals)
    figures = {
        "reforks": last.generation,
        "fds_growth": last.counts.fds - first.counts.fds,
        "threads_growth": last.counts.threads - first.counts.threads,
        "processes_growth": last.counts.processes - first.counts.processes,
        "monitor_rss_growth_mib": round((last.monitor_rss - first.monitor_rss) / MIB, 2),
        "requests": totals.requests,
        "failed_requests": totals.failed,
    }
    return conclude("endurance", figures, TARGETS)


if __name__ == "__main__":
    command(main)
