"""The demonstration: eight warm workers shrink to the memory of one, while they serve.

Each worker builds ten million objects at its first request, so nothing is shared at first, preloaded or not. One
refork under load, and the same workers on the same port hold them together. Every request before, during and after is
counted, and so is every process of the server.

``make demo`` ends with the figures alone, ``make bench-demo`` (``--bench``) with a verdict.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass

from benchmarks import _load
from benchmarks._common import (
    ROOT,
    Launch,
    Server,
    Target,
    TreeMemory,
    bar,
    command,
    conclude,
    drive_until_each,
    mib,
    say,
    table,
)

WORKERS = 8
CONNECTIONS = 16
REQUESTS_EACH_AFTER = 100
TARGETS = {"reduction": Target(at_least=0.85), "failed_requests": Target(at_most=0)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What was seen."""

    before: TreeMemory
    after: TreeMemory
    requests: int
    failed_requests: int
    refork_seconds: float

    @property
    def reduction(self) -> float:
        """The share of the memory that is free again."""
        return 1 - self.after.pss() / self.before.pss()

    def figures(self) -> dict[str, float]:
        """For programs."""
        return {
            "workers": WORKERS,
            "before_pss_mib": mib(self.before.pss()),
            "after_pss_mib": mib(self.after.pss()),
            "reduction": round(self.reduction, 4),
            "requests": self.requests,
            "failed_requests": self.failed_requests,
            "refork_seconds": round(self.refork_seconds, 2),
        }


def measure() -> Measured:
    """Serve, warm, measure, refork under load, measure again."""
    app = ROOT / "examples" / "puma_demo"
    say(f"starting {WORKERS} workers")
    with Server(Launch(kind="refork", app="app:application", chdir=app, workers=WORKERS)) as server:
        say("warming: every worker builds 10 million objects at its first request")
        reports = drive_until_each(server, requests=1, connections=CONNECTIONS)
        with _load.start(_load.Plan(url=server.url(), connections=CONNECTIONS)) as load:
            time.sleep(2)
            before = server.memory()
            say(f"all {WORKERS} are warm and serve: {mib(before.pss())} MiB. Now, under load: reforkctl refork --wait")
            seconds = server.refork()
            say(f"reforked in {seconds:.2f} s; the new workers serve on")
            reports += drive_until_each(server, requests=REQUESTS_EACH_AFTER, connections=CONNECTIONS)
            after = server.memory()
            reports.append(load.stop())
        say(f"measured: {mib(after.pss())} MiB. Stopping")
    for note in (note for report in reports for note in report.notes):
        say(f"failed request: {note}")
    return Measured(
        before=before,
        after=after,
        requests=sum(report.requests for report in reports),
        failed_requests=sum(report.failed_requests for report in reports),
        refork_seconds=seconds,
    )


def show(measured: Measured) -> None:
    """The table and the chart."""
    before, after = measured.before, measured.after

    def row(name: str, size: int, then: int) -> tuple[str, str, str, str]:
        return name, f"{mib(size):.1f}", f"{mib(then):.1f}", f"{100 * (then / size - 1):+.1f} %" if size else ""

    rows = [
        *(row(f"{role} (PSS)", before.pss(role), after.pss(role)) for role in ("monitor", "mold", "worker")),
        row("all processes (PSS)", before.pss(), after.pss()),
        row("private to one process (USS)", before.uss, after.uss),
        row("sum of RSS, shared pages counted often", before.rss, after.rss),
    ]
    print("\n" + table(("MiB", "before", "after", ""), rows) + "\n")
    for name, memory in (("before", before), ("after", after)):
        print(f"  {name:>6}  {bar(memory.pss(), of=before.pss())} {mib(memory.pss()):.0f} MiB")
    print(
        f"\n  {measured.requests} requests, {measured.failed_requests} failed; "
        f"the refork took {measured.refork_seconds:.2f} s\n"
    )


def main() -> int:
    """The command."""
    measured = measure()
    show(measured)
    if "--bench" in sys.argv[1:]:
        return conclude("demo", measured.figures(), TARGETS)
    print(json.dumps(measured.figures(), separators=(",", ":")), flush=True)
    return 1 if measured.failed_requests else 0


if __name__ == "__main__":
    command(main)
