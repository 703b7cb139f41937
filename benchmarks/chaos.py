"""Processes are killed at random, under load and in the middle of reforks. Only what was in their hands may be lost.

Every two seconds a worker, the mold, the worker under promotion or the process between a mold and its worker gets
SIGKILL, while reforks are asked for one after the other. A request that fails in the moment after a *serving* process
was killed may have been in its hands; one that fails at any other time is the server's fault and counts.
"""

from __future__ import annotations

import os
import random
import signal
import time
from dataclasses import dataclass, field
from enum import StrEnum

from benchmarks import _load
from benchmarks._common import (
    ROOT,
    BenchmarkError,
    Launch,
    Process,
    Server,
    Target,
    TreeCounts,
    command,
    conclude,
    descendants,
    say,
    table,
    tree_counts,
)

SECONDS = float(os.environ.get("SECONDS", "600"))
SEED = int(os.environ.get("SEED", "0")) or random.randrange(1, 2**31)
WORKERS = 4
CONNECTIONS = 8
EVERY = 2.0
IN_ITS_HANDS = 1.0
"""Seconds after the death of a serving process in which a failed request may have been in its hands."""

HUNT_SECONDS = 0.5
SETTLE_SECONDS = 60.0
QUIET_SECONDS = 3.0
TARGETS = {
    "failed_outside_kills": Target(at_most=0),
    "missing_workers_at_end": Target(at_most=0),
    "leaked_fds": Target(at_most=0),
    "leaked_processes": Target(at_most=0),
    "reforks_completed": Target(at_least=1),
}


class Victim(StrEnum):
    """Who is killed."""

    WORKER = "worker"
    MOLD = "mold"
    PROMOTED = "promoted worker"
    INTERMEDIATE = "intermediate"


@dataclass(slots=True)
class Deaths:
    """Who was killed when, on the clock of the load."""

    count: dict[Victim, int] = field(default_factory=lambda: dict.fromkeys(Victim, 0))
    of_serving: list[float] = field(default_factory=list)

    def explain(self, moment: float) -> bool:
        """Whether a request that failed at this moment may have been in the hands of the dead."""
        return any(0 <= moment - death <= IN_ITS_HANDS for death in self.of_serving)

    def beside(self, moment: float) -> str:
        """Which death of a serving process was nearest to this moment, in words."""
        nearest = min(self.of_serving, key=lambda death: abs(moment - death), default=None)
        return "no serving process was killed" if nearest is None else f"{moment - nearest:+.3f} s from a kill"


def title(pid: int) -> str:
    """What a process calls itself; empty when it is gone."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().split(b"\0")[0].decode(errors="replace")
    except OSError:
        return ""


def find(server: Server, victim: Victim) -> Process | None:
    """Somebody of that kind, if there is one now."""
    everyone = descendants(server.pid)
    molds = {each.pid for each in everyone if title(each.pid).startswith("refork:mold")}
    match victim:
        case Victim.INTERMEDIATE:
            found = [each for each in everyone if each.parent in molds]
        case Victim.MOLD:
            found = [each for each in everyone if each.pid in molds]
        case Victim.WORKER | Victim.PROMOTED:
            found = [each for each in everyone if title(each.pid).startswith("refork:worker")]
    if victim is Victim.PROMOTED:
        draining = {w.pid for w in server.status().workers if w.state == "draining"}
        found = [each for each in found if each.pid in draining]
    return random.choice(found) if found else None


def hunt(server: Server, victim: Victim) -> Process | None:
    """Find one of that kind; those that live for a moment only are waited for a moment."""
    deadline = time.monotonic() + HUNT_SECONDS
    while (found := find(server, victim)) is None and time.monotonic() < deadline:
        pass
    return found


def kill(server: Server, victim: Victim, deaths: Deaths) -> None:
    """Kill one of that kind, or else a worker."""
    found = hunt(server, victim)
    if found is None and (found := find(server, victim := Victim.WORKER)) is None:
        return
    now = time.monotonic()  # before the blow: its clients may see it before this program runs again
    try:
        os.kill(found.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    deaths.count[victim] += 1
    if victim in (Victim.WORKER, Victim.PROMOTED):
        deaths.of_serving.append(now)


def ask_for_refork(server: Server) -> None:
    """Ask; a refusal is an answer like any other."""
    try:
        server.ctl("refork")
    except BenchmarkError as refusal:
        if "exit code 1" not in str(refusal):
            raise


def rage(server: Server, deaths: Deaths) -> None:
    """Kill and refork until the time is over."""
    end = time.monotonic() + SECONDS
    told = time.monotonic()
    while time.monotonic() < end:
        began = time.monotonic()
        ask_for_refork(server)
        kill(server, random.choice(list(Victim)), deaths)
        time.sleep(max(0.0, began + EVERY - time.monotonic()))
        if time.monotonic() - told > 30:
            told = time.monotonic()
            say(f"killed so far: {', '.join(f'{count} {victim}' for victim, count in deaths.count.items())}")


def rest(server: Server) -> TreeCounts:
    """Wait until all workers serve and nothing changes any more."""
    server.until(lambda: server.status().ready >= WORKERS, within=SETTLE_SECONDS, what="full number of workers")
    server.until(lambda: server.status().phase == "steady", within=SETTLE_SECONDS, what="rest")
    seen, since = tree_counts(server.pid), time.monotonic()
    deadline = since + SETTLE_SECONDS
    while time.monotonic() - since < QUIET_SECONDS and time.monotonic() < deadline:
        time.sleep(0.2)
        if (now := tree_counts(server.pid)) != seen:
            seen, since = now, time.monotonic()
    return seen


def reforks_completed(server: Server) -> int:
    """How many reforks and rebases have succeeded."""
    return sum(each.count for each in server.status().rollouts if each.outcome == "succeeded")


def main() -> int:
    """The command."""
    random.seed(SEED)
    launch = Launch(
        kind="refork",
        app="benchmarks._apps:wsgi",
        chdir=ROOT,
        workers=WORKERS,
        worker_class="gthread",
        options=("--canary-seconds", "0.2", "--threads", "2", "--refork-min-interval", "0"),
    )
    deaths = Deaths()
    with Server(launch) as server:
        server.refork()
        before = rest(server)
        say(f"{WORKERS} workers; {SECONDS:.0f} s of chaos (SEED={SEED})")
        with _load.start(_load.Plan(url=server.url(), connections=CONNECTIONS, timeout=10)) as load:
            rage(server, deaths)
            report = load.stop()
        after = rest(server)
        ready, completed = server.status().ready, reforks_completed(server)
    outside = [(moment, reason) for moment, reason in report.failed_at if not deaths.explain(moment)]
    for note in report.notes:
        say(f"failed: {note}")
    for moment, reason in outside:
        say(f"outside: {reason}, {deaths.beside(moment)}")
    print("\n" + table(("killed", "times"), tuple(deaths.count.items())) + "\n")
    figures = {
        "seconds": SECONDS,
        "kills": sum(deaths.count.values()),
        "requests": report.requests,
        "failed_in_killed": report.failed_requests - len(outside),
        "failed_outside_kills": len(outside),
        "ready_workers_at_end": ready,
        "missing_workers_at_end": WORKERS - ready,
        "leaked_fds": max(0, after.fds - before.fds),
        "leaked_processes": max(0, after.processes - before.processes),
        "reforks_completed": completed,
    }
    return conclude("chaos", figures, TARGETS)


if __name__ == "__main__":
    command(main)
