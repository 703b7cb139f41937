"""Thirty generations of an application that throws its cache away and fills a new one in each of them.

What was sealed with one generation and replaced in the next is never freed by those that come after. It is bounded by
rebases, and this shows that it is: the memory of all processes after each refork, the largest over the median.
"""

from __future__ import annotations

import os
import statistics

from benchmarks._common import ROOT, Launch, Server, Target, bar, command, conclude, drive_until_each, mib, say, table

GENERATIONS = int(os.environ.get("GENERATIONS", "30"))
WORKERS = 2
CACHE_MIB = 50
TARGETS = {"peak_over_steady": Target(at_most=1.5)}


def main() -> int:
    """The command."""
    launch = Launch(
        kind="refork",
        app="benchmarks._apps:churning",
        chdir=ROOT,
        workers=WORKERS,
        options=("--canary-seconds", "0", "--refork-min-interval", "0"),
        environment={"HEAP_MIB": str(CACHE_MIB)},
    )
    sizes: list[int] = []
    kinds: list[str] = []
    with Server(launch) as server:
        for number in range(1, GENERATIONS + 1):
            drive_until_each(server, path="/replace", requests=WORKERS, connections=1)
            server.refork()
            last = server.status().last_rollout
            kinds.append("" if last is None else str(last.kind))
            drive_until_each(server, requests=50, connections=2)
            sizes.append(server.memory().pss())
            if number % 5 == 0:
                say(f"{number} generations of {GENERATIONS}: {mib(sizes[-1]):.0f} MiB")
    largest = max(sizes)
    rows = [
        (number, kind, f"{mib(size):.0f}", bar(size, of=largest))
        for number, (kind, size) in enumerate(zip(kinds, sizes, strict=True), start=1)
    ]
    print("\n" + table(("generation", "by", "MiB", ""), rows) + "\n")
    figures = {
        "generations": GENERATIONS,
        "rebases": kinds.count("rebase"),
        "steady_pss_mib": round(mib(statistics.median(sizes)), 1),
        "peak_pss_mib": round(mib(largest), 1),
        "peak_over_steady": round(largest / statistics.median(sizes), 3),
    }
    return conclude("leak", figures, TARGETS)


if __name__ == "__main__":
    command(main)
