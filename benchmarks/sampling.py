"""What it costs to know the memory of 64 workers of 200 MiB, forked from one mold, and how quickly it is told.

The promise is half a percent of one core, and scrapes that wait for nothing. Measured from outside where it can be: the
monitor's processor time is the kernel's account, for a while without and for a while with scrapes. The server's own
account of the looks alone is compared with the promise; that of the whole monitor, idle but for its sampling, is shown
next to it. After the boot everything has just been looked at on credit, so the measurement begins when that is paid.
"""

from __future__ import annotations

import http.client
import re
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks._common import (
    MIB,
    ROOT,
    BenchmarkError,
    Launch,
    Server,
    Target,
    command,
    conclude,
    free_port,
    mib,
    process_memory,
    say,
    table,
)

WORKERS = 64
HEAP_MIB = 200
QUIET_SECONDS = 30.0
SCRAPED_SECONDS = 60.0
SCRAPES_A_SECOND = 5
SETTLED_SECONDS = 5.0

SPENT = re.compile(rb"^refork_sampling_cpu_seconds_total (\S+)$", re.MULTILINE)
INTERVAL = re.compile(rb"^refork_sampling_interval_seconds (\S+)$", re.MULTILINE)
SAMPLED = re.compile(rb"^refork_memory_rss_bytes\{role=\"worker\",", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Scrape:
    """One answer of ``/metrics``, and how many seconds it took from connecting to the last byte."""

    body: bytes
    seconds: float

    def number(self, pattern: re.Pattern[bytes]) -> float:
        """A sample's value."""
        found = pattern.search(self.body)
        if found is None:
            message = f"no {pattern.pattern!r} among the metrics"
            raise BenchmarkError(message)
        return float(found[1])


@dataclass(frozen=True, slots=True)
class Account:
    """What a while has cost, in shares of one core: the looks by the server's account, the monitor by the kernel's.

    The seconds are those of scrapes, and of as many probes between them, which have next to nothing to answer: what
    they take is the machine's and HTTP's share.
    """

    looks: float
    monitor: float
    scrapes: list[float]
    probes: list[float]


def scrape(port: int, path: str = "/metrics") -> Scrape:
    """Ask once, as Prometheus does, on a connection of its own."""
    began = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", path, headers={"Accept": "application/openmetrics-text; version=1.0.0"})
        body = connection.getresponse().read()
    finally:
        connection.close()
    return Scrape(body=body, seconds=time.monotonic() - began)


def cpu_seconds(pid: int) -> float:
    """The processor time of one process, all its threads, to the nanosecond (proc(5), schedstat)."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def wait_for_sampling(server: Server, port: int) -> None:
    """Until every worker has a sample, and what the boot has cost is paid: then regular looks begin."""

    def sampled() -> bool:
        return len(SAMPLED.findall(scrape(port).body)) == WORKERS

    server.until(sampled, within=120, what="sample of every worker")
    spent, since = 0.0, time.monotonic()
    while time.monotonic() < since + SETTLED_SECONDS:
        time.sleep(0.5)
        if (now := scrape(port).number(SPENT)) > spent:
            spent, since = now, time.monotonic()
    say(f"{WORKERS} workers are known after {spent:.2f} s of looking; waiting until that is paid for")
    server.until(lambda: scrape(port).number(SPENT) > spent, within=600, what="regular look")


def account(server: Server, port: int, *, seconds: float, scrapes_a_second: int) -> Account:
    """Let time pass, with scrapes or without."""
    scrapes, probes = [], []
    spent, used, began = scrape(port).number(SPENT), cpu_seconds(server.pid), time.monotonic()
    while (now := time.monotonic()) < began + seconds:
        if scrapes_a_second:
            scrapes.append(scrape(port).seconds)
            time.sleep(max(0.0, now + 0.5 / scrapes_a_second - time.monotonic()))
            probes.append(scrape(port, "/healthz").seconds)
            time.sleep(max(0.0, now + 1 / scrapes_a_second - time.monotonic()))
        else:
            time.sleep(began + seconds - now)
    used = cpu_seconds(server.pid) - used
    passed = time.monotonic() - began
    spent = scrape(port).number(SPENT) - spent
    return Account(looks=spent / passed, monitor=used / passed, scrapes=sorted(scrapes), probes=sorted(probes))


def p99(ordered: list[float]) -> float:
    """What 99 of 100 are below, in milliseconds."""
    return round(ordered[int(len(ordered) * 0.99)] * 1000, 2)


def main() -> int:
    """The command."""
    port = free_port()
    launch = Launch(
        kind="refork",
        app="benchmarks._apps:wsgi",
        chdir=ROOT,
        workers=WORKERS,
        options=("--metrics-bind", f"127.0.0.1:{port}"),
        environment={"HEAP_MIB": str(HEAP_MIB)},
    )
    say(f"starting {WORKERS} workers with a heap of {HEAP_MIB} MiB")
    with Server(launch) as server:
        wait_for_sampling(server, port)
        quiet = account(server, port, seconds=QUIET_SECONDS, scrapes_a_second=0)
        say(f"without scrapes: looks {quiet.looks:.3%} of a core, the whole monitor {quiet.monitor:.3%}")
        scraped = account(server, port, seconds=SCRAPED_SECONDS, scrapes_a_second=SCRAPES_A_SECOND)
        say(f"with {SCRAPES_A_SECOND} scrapes a second: looks {scraped.looks:.3%}, the monitor {scraped.monitor:.3%}")
        last = scrape(port)
        monitor = process_memory(server.pid, top=server.pid)
        smallest = min(each.rss for each in server.memory().workers)
    if monitor is None or smallest < HEAP_MIB * MIB or min(quiet.looks, scraped.looks) <= 0:
        message = f"the smallest worker has {mib(smallest)} MiB; looks {quiet.looks}, {scraped.looks}"
        raise BenchmarkError(message)
    ordered = scraped.scrapes
    rows = [
        ("without scrapes", f"{quiet.looks:.4f}", f"{quiet.monitor:.4f}"),
        (f"{SCRAPES_A_SECOND} scrapes a second", f"{scraped.looks:.4f}", f"{scraped.monitor:.4f}"),
    ]
    print("\n" + table(("shares of a core", "looks", "whole monitor"), rows))
    median, slowest = ordered[len(ordered) // 2] * 1000, ordered[-1] * 1000
    print(f"\n  {len(ordered)} scrapes of {len(last.body)} bytes: median {median:.1f} ms, slowest {slowest:.1f} ms")
    print(f"  a look at each process every {last.number(INTERVAL):.0f} s")
    figures = {
        "workers": WORKERS,
        "worker_rss_mib": mib(smallest),
        "sampling_cpu_share": round(max(quiet.looks, scraped.looks), 5),
        "idle_monitor_cpu_share": round(quiet.monitor, 5),
        "sampling_interval_seconds": round(last.number(INTERVAL), 1),
        "metrics_p99_ms": p99(scraped.scrapes),
        "healthz_p99_ms": p99(scraped.probes),
        "monitor_pss_mib": mib(monitor.pss),
    }
    targets = {
        "sampling_cpu_share": Target(at_most=0.005),
        "metrics_p99_ms": Target(at_most=20),
        "monitor_pss_mib": Target(at_most=40),
    }
    return conclude("sampling", figures, targets)


if __name__ == "__main__":
    command(main)
