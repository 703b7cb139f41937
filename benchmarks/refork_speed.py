"""How long a refork takes, with eight workers and a heap of 1 GiB: from the command to the last slot rolled over.

The canary time is a choice of the operator, not a cost, so the target is three seconds more than it. Several reforks
in one run, each under light load; the slowest counts. The steps are the server's own account, the times of forks come
from its log.
"""

from __future__ import annotations

import re
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks import _load
from benchmarks._common import (
    MIB,
    ROOT,
    BenchmarkError,
    Launch,
    Server,
    Target,
    command,
    conclude,
    drive_until_each,
    mib,
    say,
    table,
)

if TYPE_CHECKING:
    from refork import api

WORKERS = 8
HEAP_MIB = 1024
REFORKS = 5
CANARY_SECONDS = 1.0
RATE = 200.0
READY = re.compile(r"worker\[\d+\] gen=(\d+) pid=\d+ ready after ([\d.]+) s")


@dataclass(frozen=True, slots=True)
class Refork:
    """One refork: what the command's user waited, and the server's own account."""

    seconds: float
    rollout: api.RolloutStatus


def measure(server: Server) -> list[Refork]:
    """Refork several times."""
    found = []
    for _ in range(REFORKS):
        drive_until_each(server, requests=20)
        seconds = server.refork()
        rollout = server.status().last_rollout
        if rollout is None:
            message = "the server reforked and reports no rollout"
            raise BenchmarkError(message)
        found.append(Refork(seconds=seconds, rollout=rollout))
        say(f"generation {rollout.generation}: rolled over {seconds:.2f} s after the command was started")
    return found


def fork_to_ready_ms(log: str) -> list[float]:
    """The times of all workers that reforks forked: those of generation 1 and later."""
    return [float(seconds) * 1000 for generation, seconds in READY.findall(log) if int(generation) > 0]


def show(reforks: list[Refork], ready_ms: list[float]) -> None:
    """Steps of each refork, in seconds."""
    phases = list(dict.fromkeys(step.phase.value for each in reforks for step in each.rollout.steps))
    rows = []
    for each in reforks:
        taken = {step.phase.value: step.seconds for step in each.rollout.steps}
        cells = [f"{taken[phase]:.3f}" if phase in taken else "-" for phase in phases]
        rows.append((f"generation {each.rollout.generation}", *cells, f"{each.seconds:.3f}"))
    print("\n" + table(("seconds", *phases, "command to rolled"), rows))
    ordered = sorted(ready_ms)
    print(f"\n  fork to ready, {len(ordered)} workers: median {statistics.median(ordered):.1f} ms, "
          f"fastest {ordered[0]:.1f}, slowest {ordered[-1]:.1f}")  # fmt: skip


def main() -> int:
    """The command."""
    launch = Launch(
        kind="refork",
        app="benchmarks._apps:wsgi",
        chdir=ROOT,
        workers=WORKERS,
        options=("--canary-seconds", str(CANARY_SECONDS)),
        environment={"HEAP_MIB": str(HEAP_MIB)},
    )
    say(f"starting {WORKERS} workers with a heap of {HEAP_MIB} MiB")
    with Server(launch) as server:
        heap = max(each.rss for each in server.memory().processes)
        plan = _load.Plan(url=server.url(), connections=4, rate=RATE)
        with _load.start(plan) as load:
            reforks = measure(server)
            report = load.stop()
        ready_ms = fork_to_ready_ms(server.log())
    if not ready_ms or heap < HEAP_MIB * MIB:
        message = f"{len(ready_ms)} workers with a ready line in the log; a heap of {mib(heap)} MiB"
        raise BenchmarkError(message)
    show(reforks, ready_ms)
    slowest = max(each.seconds for each in reforks)
    figures = {
        "workers": WORKERS,
        "heap_mib": mib(heap),
        "canary_seconds": CANARY_SECONDS,
        "command_to_rolled_seconds": round(slowest, 3),
        "fork_to_ready_ms": round(statistics.median(ready_ms), 1),
        "failed_requests": report.failed_requests,
    }
    targets = {
        "command_to_rolled_seconds": Target(at_most=3 + CANARY_SECONDS),
        "fork_to_ready_ms": Target(at_most=50),
        "failed_requests": Target(at_most=0),
    }
    return conclude("refork", figures, targets)


if __name__ == "__main__":
    command(main)
