"""Requests a second, and latency during a refork: each reforking worker class against gunicorn with the same class.

Two cores and neighbours make a noisy scale, so: the load runs on one core and the servers on the other; both servers
are up and take turns in short runs, the one that begins alternating, and each pair of runs gives one ratio, so that
whatever slows the machine slows both; servers are started afresh several times, because the layout of memory differs
from start to start; and the median of all ratios counts. Beside it stands the same ratio per second of the processor
time that the server used, which neighbours move less. ``--null`` puts gunicorn on both sides and shows what is left of
the noise; pairs that other programs disturbed are taken again. The application answers two bytes: a real one would
hide the server.

The latency is measured at a fixed rate of half the capacity, on all cores, with as many workers as gunicorn recommends
(two for each core and one more) and the default settings: the p99 of everything answered between the refork signal and
the end of the rollout, over all reforks, against the p99 of as many seconds in between. It is a signal, because the
start of a ``reforkctl`` would take half of this machine from both sides for a while.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

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
DISTURBED = 0.08
"""Share of the machine that others may use beside a run. An idle system's own share is about a hundredth."""
RETRIES = 1
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
        pairs: pairs of runs at each generation of a round.
        seconds: length of one run.
        reforks: how many reforks the latency is measured over.
        contender: ``refork``, or ``gunicorn`` to see the noise.
    """

    classes: tuple[str, ...]
    rounds: int
    pairs: int
    seconds: float
    reforks: int
    contender: str


@dataclass(frozen=True, slots=True)
class Run:
    """One short run.

    Attributes:
        rps: requests a second.
        per_cpu: requests a second of processor time that the server's processes used.
        foreign: share of the machine's processor time that went to neither server nor load.
    """

    rps: float
    per_cpu: float
    foreign: float


@dataclass(frozen=True, slots=True)
class Pair:
    """Two runs next to each other."""

    gunicorn: Run
    contender: Run

    @property
    def ratio(self) -> float:
        """Of requests a second; more than one: the contender is faster."""
        return self.contender.rps / self.gunicorn.rps

    @property
    def disturbed(self) -> bool:
        """Whether other programs ran beside one of the runs."""
        return max(self.gunicorn.foreign, self.contender.foreign) > DISTURBED

    @property
    def cpu_ratio(self) -> float:
        """Of requests a second of processor time: moved less by what else the machine does."""
        return self.contender.per_cpu / self.gunicorn.per_cpu


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


def wrk_rps(server: Server, *, seconds: float) -> float:
    """One run of wrk; an error of any kind makes the comparison void."""
    words = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{max(1, round(seconds))}s", server.url()]
    load, _ = cores()
    if load:
        words = ["taskset", "--cpu-list", str(load[0]), *words]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    found = re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)
    if found is None or "Non-2xx" in done.stdout or "Socket errors" in done.stdout:
        message = f"wrk met errors:\n{done.stdout}"
        raise BenchmarkError(message)
    return float(found[1])


def own_rps(server: Server, *, seconds: float) -> float:
    """One run of our own client, where wrk is not installed."""
    load, _ = cores()
    plan = _load.Plan(url=server.url(), connections=CONNECTIONS, seconds=seconds, cpus=load)
    report = _load.run(plan)
    if report.failed_requests:
        message = f"{server.launch.kind} failed requests: {report.notes}"
        raise BenchmarkError(message)
    return report.rps


rps = wrk_rps if shutil.which("wrk") and shutil.which("taskset") else own_rps


def run(server: Server, *, seconds: float) -> Run:
    """One run, with the processor time that it cost the server, and that others took."""
    before = spent(server)
    found = rps(server, seconds=seconds)
    after = spent(server)
    own, children, busy, taken = (then - now for now, then in zip(before, after, strict=True))
    foreign = (busy - own - children) / taken / (os.cpu_count() or 1)
    return Run(rps=found, per_cpu=found * taken / own, foreign=foreign)


def spent(server: Server) -> tuple[float, float, float, float]:
    """Processor seconds of the server, of this program's ended children, and of the machine; and the time."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return tree_cpu_seconds(server.pid), children.ru_utime + children.ru_stime, busy, time.monotonic()


def take_pairs(gunicorn: Server, contender: Server, *, settings: Settings) -> list[Pair]:
    """Runs in turn, the first of each pair alternating; a pair that was disturbed is taken again, within reason."""
    for server in (gunicorn, contender):
        own_rps(server, seconds=WARM_SECONDS)
    found: list[Pair] = []
    for number in range(settings.pairs * (1 + RETRIES)):
        order = (gunicorn, contender) if number % 2 == 0 else (contender, gunicorn)
        seen = {server: run(server, seconds=settings.seconds) for server in order}
        found.append(Pair(seen[gunicorn], seen[contender]))
        if sum(not pair.disturbed for pair in found) >= settings.pairs:
            break
    calm = [pair for pair in found if not pair.disturbed]
    if len(calm) < settings.pairs:
        say(f"warning: other programs keep this machine busy: {len(calm)} of {settings.pairs} pairs were undisturbed")
    return calm if len(calm) >= settings.pairs else found


def throughput(worker_class: str, *, settings: Settings) -> dict[int, list[Pair]]:
    """All pairs of one class, by generation."""
    found: dict[int, list[Pair]] = {generation: [] for generation in GENERATIONS}
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
                found[generation] += take_pairs(gunicorn, contender, settings=settings)
        ratios = "  ".join(
            f"gen {each}: {ratio_of(pairs):.3f} ({cpu_ratio_of(pairs):.3f} per CPU second)"
            for each, pairs in found.items()
        )
        say(f"{worker_class}, round {number + 1} of {settings.rounds}: {ratios}")
    return found


def advance(server: Server) -> None:
    """One generation further, from a worker that is warm."""
    if server.launch.kind == "refork":
        own_rps(server, seconds=0.2)
        server.refork()


def ratio_of(pairs: list[Pair]) -> float:
    """The median of the pairs' ratios."""
    return statistics.median(pair.ratio for pair in pairs)


def cpu_ratio_of(pairs: list[Pair]) -> float:
    """The same of their processor time."""
    return statistics.median(pair.cpu_ratio for pair in pairs)


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


def show(found: dict[str, dict[int, list[Pair]]], latencies: dict[str, Latency]) -> None:
    """Both tables."""
    rows = [
        (
            f"{worker_class} gen {generation}",
            f"{statistics.median(pair.gunicorn.rps for pair in pairs):.0f}",
            f"{statistics.median(pair.contender.rps for pair in pairs):.0f}",
            f"{ratio_of(pairs):.3f}",
            f"{min(pair.ratio for pair in pairs):.3f} to {max(pair.ratio for pair in pairs):.3f}",
            f"{cpu_ratio_of(pairs):.3f}",
        )
        for worker_class, generations in found.items()
        for generation, pairs in generations.items()
    ]
    header = ("requests a second", "gunicorn", "refork", "median ratio", "all ratios", "per CPU second")
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
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=1)
    parser.add_argument("--reforks", type=int, default=5)
    parser.add_argument("--null", action="store_true", help="gunicorn on both sides: the noise of this machine")
    found = parser.parse_args()
    return Settings(
        classes=tuple(found.classes),
        rounds=found.rounds,
        pairs=found.pairs,
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
        f"{name.rpartition('.')[2]}_gen{generation}_rps_ratio": round(ratio_of(pairs), 4)
        for name, generations in found.items()
        for generation, pairs in generations.items()
    }
    figures["rps_ratio"] = min(figures.values())
    figures["rps_per_cpu_second_ratio"] = round(
        min(cpu_ratio_of(pairs) for generations in found.values() for pairs in generations.values()), 4
    )
    if not latencies:
        return conclude("throughput-null", figures, {"rps_ratio": TARGETS["rps_ratio"]})
    figures |= {f"{name.rpartition('.')[2]}_p99_ratio": round(each.ratio, 3) for name, each in latencies.items()}
    figures["p99_ratio"] = round(max(each.ratio for each in latencies.values()), 3)
    figures["failed_requests"] = sum(each.failed for each in latencies.values())
    return conclude("throughput", figures, TARGETS)


if __name__ == "__main__":
    command(main)
