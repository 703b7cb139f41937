"""What a Django application with 200,000 objects in memory costs: refork against ``gunicorn --preload``.

Both sides get the same application, built at import, so that preloading has its fair chance; the same workers, the
same requests to each, in one run, each in a memory cgroup of its own where one can be made. refork reforks once
before the requests that count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks._common import (
    ROOT,
    Launch,
    MemoryCgroup,
    Server,
    Target,
    TreeMemory,
    bar,
    command,
    conclude,
    drive_until_each,
    memory_cgroup,
    mib,
    say,
    table,
)

if TYPE_CHECKING:
    from benchmarks import _load

WORKERS = 8
REQUESTS_EACH = 2000
CONNECTIONS = 16
TARGETS = {
    "pss_ratio": Target(at_most=0.20),
    "private_dirty_share": Target(at_most=0.02),
    "failed_requests": Target(at_most=0),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One server after its requests."""

    memory: TreeMemory
    working_set: int | None
    requests: int
    failed_requests: int

    @property
    def private_dirty_share(self) -> float:
        """Of the worst worker: the part of its RSS that it alone has written."""
        return max(each.private_dirty / each.rss for each in self.memory.workers)


def measure(kind: str) -> Side:
    """Run one side."""
    with memory_cgroup() as cgroup, Server(launch(kind, cgroup)) as server:
        say(f"{kind}: {WORKERS} workers are up with {mib(server.memory().pss())} MiB")
        reports: list[_load.Report] = []
        if kind == "refork":
            reports += drive_until_each(server, requests=REQUESTS_EACH // 20, connections=CONNECTIONS)
            say(f"refork: {mib(server.memory().pss())} MiB before the refork; reforked in {server.refork():.2f} s")
        reports += drive_until_each(server, requests=REQUESTS_EACH, connections=CONNECTIONS)
        memory = server.memory()
        say(f"{kind}: {mib(memory.pss())} MiB after {REQUESTS_EACH} requests or more to each worker")
        return Side(
            memory=memory,
            working_set=cgroup.working_set() if cgroup else None,
            requests=sum(report.requests for report in reports),
            failed_requests=sum(report.failed_requests for report in reports),
        )


def launch(kind: str, cgroup: MemoryCgroup | None) -> Launch:
    """The same application and workers for both."""
    return Launch(
        kind=kind,
        app="app:application",
        chdir=ROOT / "examples" / "django_app",
        workers=WORKERS,
        options=("--preload",) if kind == "gunicorn" else (),
        cgroup=cgroup,
    )


def show(gunicorn: Side, refork: Side) -> None:
    """The table and the chart."""

    def row(name: str, side: Side) -> tuple[object, ...]:
        worst = max(each.private_dirty for each in side.memory.workers)
        cgroup = mib(side.working_set) if side.working_set else "-"
        return name, mib(side.memory.pss()), mib(side.memory.uss), mib(worst), cgroup, side.requests

    header = ("MiB", "PSS", "USS", "private dirty, worst worker", "cgroup working set", "requests")
    print("\n" + table(header, (row("gunicorn --preload", gunicorn), row("refork", refork))) + "\n")
    for name, side in (("gunicorn --preload", gunicorn), ("refork", refork)):
        print(f"  {name:>18}  {bar(side.memory.pss(), of=gunicorn.memory.pss())} {mib(side.memory.pss()):.0f} MiB")


def main() -> int:
    """The command."""
    gunicorn, refork = measure("gunicorn"), measure("refork")
    show(gunicorn, refork)
    cgroup_ratio = None
    if gunicorn.working_set and refork.working_set:
        cgroup_ratio = round(refork.working_set / gunicorn.working_set, 4)
    figures = {
        "workers": WORKERS,
        "gunicorn_pss_mib": mib(gunicorn.memory.pss()),
        "refork_pss_mib": mib(refork.memory.pss()),
        "pss_ratio": round(refork.memory.pss() / gunicorn.memory.pss(), 4),
        "private_dirty_share": round(refork.private_dirty_share, 4),
        "gunicorn_private_dirty_share": round(gunicorn.private_dirty_share, 4),
        "cgroup_ratio": cgroup_ratio,
        "failed_requests": refork.failed_requests,
    }
    return conclude("django", figures, TARGETS)


if __name__ == "__main__":
    command(main)
