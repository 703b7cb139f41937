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
the end of the rollout, against the p99 of as long a time right before; the median of several reforks counts. It is a
signal, because the start of a ``reforkctl`` would take half of this machine for a while. The load is wrk's where there
is one: a client that takes as much of the machine as the server does waits for the processor itself, and reports that
as the server's latency.
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
CLIENTS = 64
"""So many connections share the fixed rate: a client that waits for its answer holds no other one back."""
CAPACITY_SECONDS = 3
CONNECT_SECONDS = 0.3
"""So long clients have to connect, all at once, before anything else happens."""
STEADY_SECONDS = 2.5
"""About as long as a refork takes with the default settings."""
MILLISECONDS = {"us": 0.001, "ms": 1.0, "s": 1000.0}
"""In wrk's units."""
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
class Window:
    """What clients saw for a while.

    Attributes:
        rate: answers a second.
        p99: milliseconds.
        failed: requests that were not answered, or with anything but 2xx.
    """

    rate: float
    p99: float
    failed: int


@dataclass(frozen=True, slots=True)
class Disturbance:
    """One refork, and the time before it."""

    steady: Window
    refork: Window

    @property
    def ratio(self) -> float:
        """More than one: slower while it reforks."""
        return self.refork.p99 / self.steady.p99


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
    load, _ = cores()
    pinned = ("taskset", "--cpu-list", str(load[0])) if load else ()
    words = [*pinned, "wrk", "-t1", f"-c{CONNECTIONS}", f"-d{max(1, round(seconds))}s", server.url()]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:

        def answered() -> int:
            printed, _ = process.communicate()
            if process.returncode or failures(printed):
                message = f"wrk met errors:\n{printed}"
                raise BenchmarkError(message)
            return int(find(r"(\d+) requests in ", printed)[1])

        yield answered


@contextlib.contextmanager
def paced_wrk(server: Server, *, rate: float) -> Iterator[Callable[[], Window]]:
    """Start wrk with clients that wait between two requests; the call ends it, and tells what they saw."""
    pause = 1000 * CLIENTS / rate
    with tempfile.NamedTemporaryFile("w", prefix="refork-bench-", suffix=".lua") as script:
        script.write(f"function delay() return math.random({pause / 2:.0f}, {pause * 3 / 2:.0f}) end\n")
        script.flush()
        words = ["wrk", "-t1", f"-c{CLIENTS}", "-d600s", "--latency", "-s", script.name, server.url()]
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:

            def stop() -> Window:
                process.send_signal(signal.SIGINT)
                printed, _ = process.communicate()
                value, unit = find(r"99%\s+([\d.]+)(us|ms|s)\b", printed).groups()
                answered = float(find(r"Requests/sec:\s+([\d.]+)", printed)[1])
                return Window(answered, float(value) * MILLISECONDS[unit], failures(printed))

            yield stop


def find(pattern: str, printed: str) -> re.Match[str]:
    """What wrk has printed of something."""
    found = re.search(pattern, printed)
    if found is None:
        message = f"wrk printed nothing like {pattern}:\n{printed}"
        raise BenchmarkError(message)
    return found


def failures(printed: str) -> int:
    """How many requests have failed, by wrk's account."""
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", printed)
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", printed)
    return sum(int(number) for match in (errors, refused) if match is not None for number in match.groups())


@contextlib.contextmanager
def own_client(server: Server, *, seconds: float) -> Iterator[Callable[[], int]]:
    """The same as ``wrk`` with our own client: it is always there."""
    load, _ = cores()
    with _load.start(_load.Plan(url=server.url(), connections=CONNECTIONS, seconds=seconds, cpus=load)) as process:

        def answered() -> int:
            report = process.wait()
            if report.failed_requests:
                message = f"{server.launch.kind} failed requests: {report.notes}"
                raise BenchmarkError(message)
            return report.requests

        yield answered


@contextlib.contextmanager
def paced_own_client(server: Server, *, rate: float) -> Iterator[Callable[[], Window]]:
    """The same as ``paced_wrk`` with our own client."""
    with _load.start(_load.Plan(url=server.url(), connections=CLIENTS, rate=rate)) as process:

        def stop() -> Window:
            report = process.stop()
            return Window(report.rps, report.latency_ms["p99"], report.failed_requests)

        yield stop


have_wrk = shutil.which("wrk") and shutil.which("taskset")
load_of, paced_load_of = (wrk, paced_wrk) if have_wrk else (own_client, paced_own_client)


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


def disturbance_of(reforks: list[Disturbance]) -> float:
    """The median of the reforks' ratios."""
    return statistics.median(each.ratio for each in reforks)


def failed_in(reforks: list[Disturbance]) -> int:
    """The failed requests of all of them."""
    return sum(window.failed for each in reforks for window in (each.steady, each.refork))


def latency(worker_class: str, *, settings: Settings) -> list[Disturbance]:
    """The p99 while reforking and in between, at half the capacity."""
    patient = Launch(
        kind="refork",
        app=APPS[worker_class],
        chdir=ROOT,
        workers=LATENCY_WORKERS,
        worker_class=worker_class,
        options=OPTIONS.get(worker_class, ()),
    )
    with Server(patient) as server:
        with load_of(server, seconds=CAPACITY_SECONDS) as answered:
            rate = answered() / CAPACITY_SECONDS / 2
        found = [watch_refork(server, rate=rate) for _ in range(settings.reforks)]
    say(f"{worker_class}, p99 during a refork against before: {'  '.join(f'{each.ratio:.2f}' for each in found)}")
    return found


def watch_refork(server: Server, *, rate: float) -> Disturbance:
    """Some steady time, then a refork."""
    with paced_load_of(server, rate=rate) as stop:
        time.sleep(CONNECT_SECONDS + STEADY_SECONDS)
        steady = stop()
    before = server.log().count(SUCCEEDED)
    with paced_load_of(server, rate=rate) as stop:
        time.sleep(CONNECT_SECONDS)
        os.kill(server.pid, signal.SIGURG)
        server.until(lambda: server.log().count(SUCCEEDED) > before, within=60, what="end of the refork")
        during = stop()
    time.sleep(0.5)  # what the refork has left behind is over
    return Disturbance(steady, during)


def show(found: dict[str, dict[int, list[Run]]], latencies: dict[str, list[Disturbance]]) -> None:
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
            (
                name,
                f"{statistics.median(one.steady.rate for one in each):.0f}/s",
                f"{statistics.median(one.steady.p99 for one in each):.2f}",
                f"{statistics.median(one.refork.p99 for one in each):.2f}",
                f"{disturbance_of(each):.2f}",
                failed_in(each),
            )
            for name, each in latencies.items()
        ]
        print("\n" + table(("p99, ms", "rate", "steady", "during a refork", "median ratio", "failed"), lines))


def parse() -> Settings:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description=__doc__)
    parser.add_argument("--classes", nargs="+", choices=APPS, default=list(APPS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1)
    parser.add_argument("--reforks", type=int, default=11)
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
    ratios = {name.rpartition(".")[2]: disturbance_of(each) for name, each in latencies.items()}
    figures |= {f"{name}_p99_ratio": round(ratio, 3) for name, ratio in ratios.items()}
    figures["p99_ratio"] = round(max(ratios.values()), 3)
    figures["failed_requests"] = sum(failed_in(each) for each in latencies.values())
    return conclude("throughput", figures, TARGETS)


if __name__ == "__main__":
    command(main)
