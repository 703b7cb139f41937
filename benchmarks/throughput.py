"""Requests a second, and latency during a refork: each reforking worker class against gunicorn with the same class.

Two cores and neighbours make a noisy scale, and whoever measures one server after the other measures the neighbours. So
both servers work at the same time: they share one core, and the load runs on the other. Each answers as many requests
as it can with the processor time it gets, and a run gives one ratio, that of the requests for each second of processor
time, all processes of a server counted: whatever slows the machine slows both. Servers are started afresh several
times, because the layout of memory differs from start to start; the median of all ratios counts. ``--null`` puts
gunicorn on both sides and shows what is left of the noise. The application answers two bytes: a real one would hide the
server.

The latency is measured at a fixed rate of half the capacity, on all cores, with as many workers as gunicorn recommends
(two for each core and one more) and the default settings: the p99 of everything answered between the refork signal and
the end of the rollout, over all reforks, against the p99 of as many seconds in between. It is a signal, because the
start of a ``reforkctl`` would take half of this machine from both sides for a while.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import _load
from benchmarks._common import (
    ROOT,
    BenchmarkError,
    Launch,
    Server,
    Target,
    bar,
    command,
    conclude,
    say,
    table,
    tree_cpu_seconds,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

APPS = {
    "sync": "benchmarks._apps:wsgi",
    "gthread": "benchmarks._apps:wsgi",
    "asgi": "benchmarks._apps:asgi",
    "uvicorn_worker.UvicornWorker": "benchmarks._apps:asgi",
}
OPTIONS = {"gthread": ("--threads", "4")}
WORKERS = 2
LATENCY_WORKERS = 2 * (os.cpu_count() or 1) + 1
CONNECTIONS = 16
GENERATIONS = (1, 10)
WARM_SECONDS = 0.5
SUCCEEDED = " succeeded after "
"""What the log says at the end of a rollout."""

TARGETS = {
    "rps_ratio": Target(at_least=0.98),
    "p99_ratio": Target(at_most=1.5),
    "failed_requests": Target(at_most=0),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How long to look.

    Attributes:
        rounds: how often both servers are started.
        runs: how often both are compared at each generation of a round.
        seconds: length of one run.
        reforks: how many reforks the latency is measured over.
        contender: ``refork``, or ``gunicorn`` to see the noise.
    """

    classes: tuple[str, ...]
    rounds: int
    runs: int
    seconds: float
    reforks: int
    contender: str


@dataclass(frozen=True, slots=True)
class Side:
    """One server in one run.

    Attributes:
        requests: that it answered.
        cpu_seconds: that all its processes used for them.
    """

    requests: int
    cpu_seconds: float

    @property
    def rate(self) -> float:
        """Requests for each second of processor time."""
        return self.requests / self.cpu_seconds


@dataclass(frozen=True, slots=True)
class Run:
    """Both servers at the same time."""

    gunicorn: Side
    contender: Side

    @property
    def ratio(self) -> float:
        """More than one: the contender is faster."""
        return self.contender.rate / self.gunicorn.rate


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds, at a fixed rate."""

    rate: float
    steady_p99: float
    refork_p99: float
    failed: int

    @property
    def ratio(self) -> float:
        """More than one: slower while it reforks."""
        return self.refork_p99 / self.steady_p99


def cores() -> tuple[tuple[int, ...], tuple[int, ...]]:
    """One core for the load, the next for the servers; nothing pinned where there is only one."""
    free = sorted(os.sched_getaffinity(0))
    return ((free[0],), (free[1],)) if len(free) > 1 else ((), ())


def launch(kind: str, worker_class: str, *, cpus: tuple[int, ...]) -> Launch:
    """The same server from either package; reforks without a canary, because ten of them have to pass."""
    own = ("--canary-seconds", "0") if kind == "refork" else ()
    return Launch(
        kind=kind,
        app=APPS[worker_class],
        chdir=ROOT,
        workers=WORKERS,
        worker_class=worker_class,
        options=(*OPTIONS.get(worker_class, ()), *own),
        cpus=cpus,
    )


@contextlib.contextmanager
def wrk(server: Server, *, seconds: float) -> Iterator[Callable[[], int]]:
    """Start wrk; the call waits for it, and tells how many were answered. An error makes the comparison void."""
    words = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{max(1, round(seconds))}s", server.url()]
    load, _ = cores()
    if load:
        words = ["taskset", "--cpu-list", str(load[0]), *words]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:

        def answered() -> int:
            printed, _ = process.communicate()
            found = re.search(r"(\d+) requests in ", printed)
            if process.returncode or found is None or "Non-2xx" in printed or "Socket errors" in printed:
                message = f"wrk met errors:\n{printed}"
                raise BenchmarkError(message)
            return int(found[1])

        yield answered


@contextlib.contextmanager
def own_client(server: Server, *, seconds: float) -> Iterator[Callable[[], int]]:
    """The same with our own client: it is always there."""
    load, _ = cores()
    with _load.start(_load.Plan(url=server.url(), connections=CONNECTIONS, seconds=seconds, cpus=load)) as process:

        def answered() -> int:
            report = process.wait()
            if report.failed_requests:
                message = f"{server.launch.kind} failed requests: {report.notes}"
                raise BenchmarkError(message)
            return report.requests

        yield answered


load_of = wrk if shutil.which("wrk") and shutil.which("taskset") else own_client


def warm(server: Server, *, seconds: float) -> None:
    """Let every worker have worked."""
    with own_client(server, seconds=seconds) as answered:
        answered()


def compare(servers: Sequence[Server], *, seconds: float) -> dict[Server, Side]:
    """Load all at the same time."""
    with contextlib.ExitStack() as stack:
        before = {server: tree_cpu_seconds(server.pid) for server in servers}
        loads = {server: stack.enter_context(load_of(server, seconds=seconds)) for server in servers}
        answered = {server: each() for server, each in loads.items()}
        return {server: Side(answered[server], tree_cpu_seconds(server.pid) - before[server]) for server in servers}


def take_runs(gunicorn: Server, contender: Server, *, settings: Settings) -> list[Run]:
    """Compare them as often as is wanted; who is loaded first alternates."""
    for server in (gunicorn, contender):
        warm(server, seconds=WARM_SECONDS)
    found: list[Run] = []
    for number in range(settings.runs):
        order = (gunicorn, contender) if number % 2 == 0 else (contender, gunicorn)
        seen = compare(order, seconds=settings.seconds)
        found.append(Run(seen[gunicorn], seen[contender]))
    return found


def throughput(worker_class: str, *, settings: Settings) -> dict[int, list[Run]]:
    """All runs of one class, by generation."""
    found: dict[int, list[Run]] = {generation: [] for generation in GENERATIONS}
    _, cpus = cores()
    for number in range(settings.rounds):
        with (
            Server(launch("gunicorn", worker_class, cpus=cpus)) as gunicorn,
            Server(launch(settings.contender, worker_class, cpus=cpus)) as contender,
        ):
            now = 0
            for generation in GENERATIONS:
                while now < generation:
                    advance(contender)
                    now += 1
                found[generation] += take_runs(gunicorn, contender, settings=settings)
        ratios = "  ".join(f"gen {each}: {ratio_of(runs):.3f}" for each, runs in found.items())
        say(f"{worker_class}, round {number + 1} of {settings.rounds}: {ratios}")
    return found


def advance(server: Server) -> None:
    """One generation further, from a worker that is warm."""
    if server.launch.kind == "refork":
        warm(server, seconds=0.2)
        server.refork()


def ratio_of(runs: list[Run]) -> float:
    """The median of the runs' ratios."""
    return statistics.median(run.ratio for run in runs)


def latency(worker_class: str, *, settings: Settings) -> Latency:
    """The p99 while reforking and in between, at half the capacity."""
    patient = Launch(
        kind="refork",
        app=APPS[worker_class],
        chdir=ROOT,
        workers=LATENCY_WORKERS,
        worker_class=worker_class,
        options=OPTIONS.get(worker_class, ()),
    )
    with (
        Server(patient) as server,
        tempfile.TemporaryDirectory(prefix="refork-bench-") as directory,
    ):
        capacity = _load.run(_load.Plan(url=server.url(), connections=CONNECTIONS, seconds=3)).rps
        samples = Path(directory, "samples")
        plan = _load.Plan(url=server.url(), connections=64, rate=capacity / 2, samples=str(samples))
        with _load.start(plan) as load:
            windows = [watch_refork(server) for _ in range(settings.reforks)]
            report = load.stop()
        answers = _load.read_samples(samples)
    steady = sorted(taken for ended, taken in answers if any(low <= ended < mid for low, mid, _ in windows))
    during = sorted(taken for ended, taken in answers if any(mid <= ended < high for _, mid, high in windows))
    for note in report.notes:
        say(f"failed: {note}")
    return Latency(
        rate=capacity / 2,
        steady_p99=_load.percentile(steady, 0.99),
        refork_p99=_load.percentile(during, 0.99),
        failed=report.failed_requests,
    )


def watch_refork(server: Server) -> tuple[float, float, float]:
    """Steady time, then a refork: when the one began, when the other, and when that ended."""
    time.sleep(0.5)  # what the last refork left behind is over
    before = server.log().count(SUCCEEDED)
    began = time.monotonic()
    time.sleep(2)
    commanded = time.monotonic()
    os.kill(server.pid, signal.SIGURG)
    server.until(lambda: server.log().count(SUCCEEDED) > before, within=60, what="end of the refork")
    return began, commanded, time.monotonic()


def show(found: dict[str, dict[int, list[Run]]], latencies: dict[str, Latency]) -> None:
    """Both tables."""
    rows = []
    for worker_class, generations in found.items():
        for generation, runs in generations.items():
            ratios = [run.ratio for run in runs]
            low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
            rows.append((
                f"{worker_class} gen {generation}",
                f"{statistics.median(run.gunicorn.rate for run in runs):.0f}",
                f"{statistics.median(run.contender.rate for run in runs):.0f}",
                f"{middle:.3f}",
                f"{low:.3f} to {high:.3f}",
            ))  # fmt: skip
    header = ("requests per CPU second", "gunicorn", "refork", "median ratio", "half of the ratios")
    print("\n" + table(header, rows) + "\n")
    for worker_class, generations in found.items():
        ratio = ratio_of(generations[GENERATIONS[-1]])
        print(f"  {worker_class:>28}  {bar(ratio, of=1.5)} {ratio:.2f} of gunicorn's")
    if latencies:
        lines = [
            (name, f"{each.rate:.0f}/s", *(f"{1000 * value:.2f}" for value in (each.steady_p99, each.refork_p99)),
             f"{each.ratio:.2f}", each.failed)
            for name, each in latencies.items()
        ]  # fmt: skip
        print("\n" + table(("p99, ms", "fixed rate", "steady", "during a refork", "ratio", "failed"), lines))


def parse() -> Settings:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description=__doc__)
    parser.add_argument("--classes", nargs="+", choices=APPS, default=list(APPS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1)
    parser.add_argument("--reforks", type=int, default=5)
    parser.add_argument("--null", action="store_true", help="gunicorn on both sides: the noise of this machine")
    found = parser.parse_args()
    return Settings(
        classes=tuple(found.classes),
        rounds=found.rounds,
        runs=found.runs,
        seconds=found.seconds,
        reforks=found.reforks,
        contender="gunicorn" if found.null else "refork",
    )


def main() -> int:
    """The command."""
    settings = parse()
    found = {each: throughput(each, settings=settings) for each in settings.classes}
    measured = settings.classes if settings.contender == "refork" else ()
    latencies = {each: latency(each, settings=settings) for each in measured}
    show(found, latencies)
    figures: dict[str, float] = {
        f"{name.rpartition('.')[2]}_gen{generation}_rps_ratio": round(ratio_of(runs), 4)
        for name, generations in found.items()
        for generation, runs in generations.items()
    }
    figures["rps_ratio"] = min(figures.values())
    if not latencies:
        return conclude("throughput-null", figures, {"rps_ratio": TARGETS["rps_ratio"]})
    figures |= {f"{name.rpartition('.')[2]}_p99_ratio": round(each.ratio, 3) for name, each in latencies.items()}
    figures["p99_ratio"] = round(max(each.ratio for each in latencies.values()), 3)
    figures["failed_requests"] = sum(each.failed for each in latencies.values())
    return conclude("throughput", figures, TARGETS)


if __name__ == "__main__":
    command(main)
