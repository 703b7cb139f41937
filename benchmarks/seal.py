"""How many objects a second are sealed, and what that is worth to forked processes.

Every measurement is made in a process of its own, since what is sealed stays sealed. The rate includes everything that
``refork.heap.seal()`` does: collecting garbage, the walk, freezing, and closing the holes in the heap. For the memory
four processes are forked that read a cache of 200,000 objects over and over.
"""

from __future__ import annotations

import gc
import json
import os
import pickle
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from refork import heap

if TYPE_CHECKING:
    from collections.abc import Callable

RUNS = 3
FORKS = 4
ROUNDS = 3
CACHED = 200_000
ENOUGH = 4_000_000
"""Objects a second: a worker with 2.4 million objects becomes a mold within 0.6 s."""


class Record:
    """What an ORM would leave in a cache."""

    def __init__(self, number: int) -> None:
        self.number = number + 1_000_000
        self.name = f"record {number}"
        self.tags = [f"tag {number}", number / 7]
        self.extra = {"weight": number + 2_000_000, "label": str(number)}


def records() -> dict[str, Record]:
    """About two million objects: instances, dicts, lists, strings, numbers."""
    return {f"key {number}": Record(number) for number in range(CACHED)}


def leaves() -> list[str]:
    """Five million strings in one list."""
    return [str(number) for number in range(5_000_000)]


def nested() -> list[list[object]]:
    """Two million containers and little else."""
    return [[[], ()] for _ in range(1_000_000)]


HEAPS: dict[str, Callable[[], object]] = {"records": records, "leaves": leaves, "nested": nested}


def apart[T](job: Callable[[], T]) -> T:
    """Run a job in a forked process and hand back what it returned."""
    receive, send = os.pipe()
    pid = os.fork()
    if pid == 0:
        with os.fdopen(send, "wb") as pipe:
            pickle.dump(job(), pipe)
        os._exit(0)
    os.close(send)
    with os.fdopen(receive, "rb") as pipe:
        answer = pipe.read()
    if os.waitpid(pid, 0)[1] != 0:
        sys.exit("a measurement failed")
    result: T = pickle.loads(answer)
    return result


def seal_heap(build: Callable[[], object]) -> heap.SealReport:
    """Build a heap and seal it; the heap is alive until the report is there."""
    kept = build()
    report = heap.seal()
    del kept
    return report


def private_mib() -> float:
    """Memory that this process shares with nobody, because it wrote to it."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Private_Dirty:"):
            return int(line.split()[1]) / 1024
    return 0.0


def read(cache: dict[str, Record]) -> int:
    """Look at every record, as requests would."""
    total = 0
    for record in map(cache.__getitem__, cache):
        total += record.number + len(record.name) + len(record.tags) + len(record.extra)
    return total


def memory_after(prepare: Callable[[], object]) -> float:
    """Build the cache, prepare the heap, fork; return the mean private memory of the children in MiB."""
    cache = records()
    prepare()

    def child() -> float:
        for _ in range(ROUNDS):
            read(cache)
        return private_mib()

    return statistics.mean(apart(child) for _ in range(FORKS))


def freeze() -> None:
    """What the standard library offers."""
    gc.collect()
    gc.freeze()


def main() -> None:
    """Print both tables and the verdict."""
    if reason := heap.capability():
        print(f"this interpreter cannot be sealed: {reason}")
        print(json.dumps({"name": "seal", "figures": {"objects_per_second": 0}, "met": False}))
        sys.exit(1)

    print(f"{'heap':<10}{'objects':>12}{'seconds':>10}{'objects/s':>14}   (median of {RUNS}, collection included)")
    rates = {}
    for name, build in HEAPS.items():
        reports = [apart(lambda build=build: seal_heap(build)) for _ in range(RUNS)]  # type: ignore[misc]
        reports.sort(key=lambda report: report.seconds)
        report = reports[RUNS // 2]
        rates[name] = round(report.objects / report.seconds)
        print(f"{name:<10}{report.objects:>12,}{report.seconds:>10.3f}{rates[name]:>14,}")

    ways: dict[str, Callable[[], object]] = {"nothing": lambda: None, "gc.freeze()": freeze, "seal()": heap.seal}
    memory = {way: apart(lambda prepare=prepare: memory_after(prepare)) for way, prepare in ways.items()}  # type: ignore[misc]
    print(f"\n{'before the fork':<18}{'private MiB a process, after reading the cache':>18}")
    for way, mib in memory.items():
        print(f"{way:<18}{mib:>8.1f}")

    figures = {
        "objects_per_second": min(rates.values()),
        **{f"objects_per_second_{name}": rate for name, rate in rates.items()},
        "private_mib_unsealed": round(memory["nothing"], 1),
        "private_mib_frozen": round(memory["gc.freeze()"], 1),
        "private_mib_sealed": round(memory["seal()"], 1),
    }
    print()
    print(json.dumps({"name": "seal", "figures": figures, "met": figures["objects_per_second"] >= ENOUGH}))


if __name__ == "__main__":
    main()
