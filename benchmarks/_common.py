"""What every comparison needs: a server to start and surely to stop, its memory, a table, a verdict.

A server is a process of its own on a free loopback port, with its log in a file. Memory is read from the kernel for
the whole tree below that process: monitor, molds and workers, whatever they are called, so that neither side of a
comparison can leave anything out. Of refork this knows the command line and the status on the wire.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import msgspec

from benchmarks import _load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from types import FrameType

    from refork import api

ROOT = Path(__file__).resolve().parent.parent
MIB = 1024 * 1024
BOOT_SECONDS = 120.0
STOP_SECONDS = 40.0
COMMAND_INTERVAL = 1.1
"""Just above the default of refork_min_interval: commands that come faster are refused."""
CGROUPS = Path("/sys/fs/cgroup")

_began = time.monotonic()
_numbers = itertools.count()


class BenchmarkError(Exception):
    """The comparison could not be made; the text says why."""


# Memory -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """One process as proc(5) ``smaps_rollup`` sees it, in bytes."""

    pid: int
    role: str
    rss: int
    pss: int
    uss: int
    private_dirty: int


@dataclass(frozen=True, slots=True)
class TreeMemory:
    """A process and everything below it."""

    processes: tuple[ProcessMemory, ...]

    def pss(self, role: str | None = None) -> int:
        """The sum of PSS, of all processes or those of one role."""
        return sum(each.pss for each in self.processes if role in (None, each.role))

    @property
    def rss(self) -> int:
        """What a sum of RSS would claim."""
        return sum(each.rss for each in self.processes)

    @property
    def uss(self) -> int:
        """What belongs to one process alone, summed."""
        return sum(each.uss for each in self.processes)

    @property
    def workers(self) -> tuple[ProcessMemory, ...]:
        """The processes that serve."""
        return tuple(each for each in self.processes if each.role == "worker")


@dataclass(frozen=True, slots=True)
class Process:
    """One living process; its start time tells it from another that got the same number later."""

    pid: int
    parent: int
    session: int
    started: int


def processes() -> list[Process]:
    """All processes that are alive: zombies are not."""
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            if words[0] != "Z":
                each = Process(pid=int(entry), parent=int(words[1]), session=int(words[3]), started=int(words[19]))
                found.append(each)
    return found


def descendants(pid: int) -> list[Process]:
    """A process and everything below it, parents first."""
    by_parent: dict[int, list[Process]] = {}
    found = []
    for each in processes():
        by_parent.setdefault(each.parent, []).append(each)
        if each.pid == pid:
            found.append(each)
    for each in found:
        found += by_parent.get(each.pid, [])
    return found


def tree(pid: int) -> list[int]:
    """The numbers of a process and everything below it, parents first."""
    return [each.pid for each in descendants(pid)]


def role(pid: int, *, top: int) -> str:
    """Tell ``monitor``, ``mold`` or ``worker`` by the process title; gunicorn has workers below its top process."""
    try:
        title = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return "gone"
    if found := re.match(r"refork:(monitor|mold|worker)", title):
        return found[1]
    return "monitor" if pid == top else "worker"


def process_memory(pid: int, *, top: int) -> ProcessMemory | None:
    """One process's memory; None when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return None
    sizes = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
    if "Pss" not in sizes:
        return None
    return ProcessMemory(
        pid=pid,
        role=role(pid, top=top),
        rss=sizes["Rss"],
        pss=sizes["Pss"],
        uss=sizes["Private_Clean"] + sizes["Private_Dirty"],
        private_dirty=sizes["Private_Dirty"],
    )


def tree_memory(pid: int) -> TreeMemory:
    """The memory of a process and everything below it."""
    found = (process_memory(each, top=pid) for each in tree(pid))
    return TreeMemory(tuple(each for each in found if each is not None))


@dataclass(frozen=True, slots=True)
class TreeCounts:
    """What must not grow from generation to generation."""

    processes: int
    threads: int
    fds: int


def tree_counts(pid: int) -> TreeCounts:
    """Processes, threads and file descriptors of a whole tree."""
    pids = tree(pid)
    threads = fds = 0
    for each in pids:
        with contextlib.suppress(OSError):
            threads += len(os.listdir(f"/proc/{each}/task"))
            fds += len(os.listdir(f"/proc/{each}/fd"))
    return TreeCounts(processes=len(pids), threads=threads, fds=fds)


def tree_cpu_seconds(pid: int) -> float:
    """The processor time that the threads now alive in a tree have used, to the nanosecond (proc(5), schedstat)."""
    total = 0
    for each in tree(pid):
        for path in Path(f"/proc/{each}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError):
                total += int(path.read_text().split()[0])
    return total / 1e9


def resident(pid: int) -> int:
    """VmRSS of one process, in bytes."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) * 1024 if found else 0


class MemoryCgroup:
    """A memory control group for one side of a comparison: what a container's limit would count."""

    def __init__(self, path: Path, *, usage: str, inactive: str) -> None:
        self.path = path
        self._usage = usage
        self._inactive = inactive

    def join(self) -> None:
        """Move the calling process in."""
        (self.path / "cgroup.procs").write_text(str(os.getpid()))

    def working_set(self) -> int:
        """Usage less the page cache that could go: what kubelet compares with the limit."""
        usage = int((self.path / self._usage).read_text())
        found = re.search(rf"^{self._inactive} (\d+)$", (self.path / "memory.stat").read_text(), re.MULTILINE)
        return max(0, usage - (int(found[1]) if found else 0))


@contextlib.contextmanager
def memory_cgroup() -> Iterator[MemoryCgroup | None]:
    """A fresh memory cgroup, of version 1 or 2; None where this process may not make one."""
    name = f"refork-bench-{os.getpid()}-{next(_numbers)}"
    version_1 = (CGROUPS / "memory" / name, "memory.usage_in_bytes", "total_inactive_file")
    version_2 = (CGROUPS / name, "memory.current", "inactive_file")
    for path, usage, inactive in (version_1, version_2):
        try:
            path.mkdir()
        except OSError:
            continue
        try:
            yield MemoryCgroup(path, usage=usage, inactive=inactive) if (path / usage).exists() else None
        finally:
            remove_cgroup(path)
        return
    yield None


def remove_cgroup(path: Path) -> None:
    """Remove an empty control group; the kernel may take a moment to see that it is."""
    for _ in range(50):
        with contextlib.suppress(OSError):
            path.rmdir()
            return
        time.sleep(0.1)


# Servers ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How to start a server.

    Attributes:
        kind: ``refork`` or ``gunicorn``; the options that both know are the same.
        app: ``module:callable``, found in ``chdir``.
        cpus: run on these processors only.
        cgroup: count its memory there.
    """

    kind: str
    app: str
    chdir: Path
    workers: int
    worker_class: str = "sync"
    options: tuple[str, ...] = ()
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    cpus: tuple[int, ...] = ()
    cgroup: MemoryCgroup | None = None
    ready_path: str = "/health"


class Server:
    """A running server; a context manager, so that nothing is left behind."""

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self.port = free_port()
        self._commanded = -COMMAND_INTERVAL
        self.control = f"@refork-bench-{os.getpid()}-{next(_numbers)}"
        log, self._log_path = tempfile.mkstemp(prefix=f"{launch.kind}-", suffix=".log")
        self._process = subprocess.Popen(
            self._command(),
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": "0"} | dict(launch.environment),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a Ctrl-C reaches this program alone, which then stops the server in order
            preexec_fn=self._settle,  # noqa: PLW1509 - no threads here
        )
        os.close(log)

    def _command(self) -> list[str]:
        launch = self.launch
        own = {
            "gunicorn": ["--no-control-socket"],
            "refork": ["--control-bind", f"unix:{self.control}", "--refork-after", "0"],
        }[launch.kind]
        shared = [
            *(launch.app, "--chdir", str(launch.chdir), "-b", f"127.0.0.1:{self.port}"),
            *("-w", str(launch.workers), "-k", launch.worker_class),
        ]
        return [sys.executable, "-m", launch.kind, *shared, *own, *launch.options]

    def _settle(self) -> None:
        """Run in the child, before it becomes the server."""
        _load.die_with_parent()
        if self.launch.cpus:
            os.sched_setaffinity(0, self.launch.cpus)
        if self.launch.cgroup is not None:
            self.launch.cgroup.join()

    def __enter__(self) -> Self:
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The top process: refork's monitor, gunicorn's arbiter."""
        return self._process.pid

    def url(self, path: str = "/") -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}{path}"

    def log(self) -> str:
        """Everything it has logged so far."""
        return Path(self._log_path).read_text(errors="replace")

    def memory(self) -> TreeMemory:
        """Its memory now, all processes."""
        if self._process.poll() is not None:
            raise self._failure(f"{self.launch.kind} has ended")
        return tree_memory(self.pid)

    def _wait_until_ready(self) -> None:
        self.until(self._answers, within=BOOT_SECONDS, what="an answer")

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=BOOT_SECONDS)
        with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
            connection.request("GET", self.launch.ready_path)
            return connection.getresponse().status == 200
        return False

    def until(self, happened: Callable[[], bool], *, within: float, what: str) -> None:
        """Wait for something to become true."""
        deadline = time.monotonic() + within
        while not happened():
            if self._process.poll() is not None:
                raise self._failure(f"{self.launch.kind} ended with exit code {self._process.returncode}")
            if time.monotonic() > deadline:
                raise self._failure(f"{self.launch.kind}: no {what} within {within:.0f} s")
            time.sleep(0.05)

    def _failure(self, sentence: str) -> BenchmarkError:
        return BenchmarkError(f"{sentence}; the end of its log:\n" + "\n".join(self.log().splitlines()[-30:]))

    def stop(self) -> None:
        """Stop it, in order if it will, by force if it will not; say so when anything had to be forced."""
        known = descendants(self.pid)
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_SECONDS)
        left = self._left(known)
        for each in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(each.pid, signal.SIGKILL)
        self._process.wait()
        Path(self._log_path).unlink(missing_ok=True)
        if left:
            say(f"warning: {self.launch.kind} left {len(left)} processes behind, which were killed")

    def _left(self, known: Iterable[Process]) -> list[Process]:
        """Those of its processes that outlive it: known before, or of the session that only it began."""
        wanted = set(known)
        deadline = time.monotonic() + 2
        while left := [each for each in processes() if each in wanted or each.session == self.pid]:
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        return left

    # What only refork knows

    def ctl(self, *words: str, within: float = 300.0) -> str:
        """Run reforkctl against this server; what it printed, or BenchmarkError."""
        command = [sys.executable, "-m", "refork.ctl", "--socket", self.control, *words]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=within, check=False)
        if done.returncode != 0:
            raise self._failure(f"reforkctl {' '.join(words)}: exit code {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def status(self) -> api.Status:
        """What it says about itself."""
        from refork import api  # noqa: PLC0415 - comparisons that never start refork do without it

        return msgspec.json.decode(self.ctl("status", "--json"), type=api.Status)

    def refork(self, *words: str) -> float:
        """Refork and wait until every slot has rolled; how many seconds that took, the command's own start included."""
        time.sleep(max(0.0, self._commanded + COMMAND_INTERVAL - time.monotonic()))
        before = time.monotonic()
        self.ctl("refork", "--wait", *words)
        self._commanded = time.monotonic()
        return self._commanded - before


def free_port() -> int:
    """A loopback port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def drive_until_each(
    server: Server, *, requests: int, path: str = "/", connections: int = 16, within: float = 300.0
) -> list[_load.Report]:
    """Load until every worker has answered so many requests; the reports of all the rounds that took."""
    workers = server.launch.workers
    answered: dict[str, int] = {}
    reports = []
    deadline = time.monotonic() + within
    while len(answered) < workers or min(answered.values()) < requests:
        if time.monotonic() > deadline:
            message = f"not every worker got {requests} requests within {within:.0f} s: {answered}"
            raise BenchmarkError(message)
        missing = max(workers * requests - sum(answered.values()), workers * max(1, requests // 10), 4 * workers)
        report = _load.run(_load.Plan(url=server.url(path), connections=connections, requests=missing))
        reports.append(report)
        for pid, count in report.pids.items():
            answered[pid] = answered.get(pid, 0) + count
    return reports


# What people and programs read --------------------------------------------------------------------------------------


def say(sentence: str) -> None:
    """One line of progress, with the seconds since the start."""
    print(f"[{time.monotonic() - _began:6.1f} s] {sentence}", flush=True)


def mib(size: float) -> float:
    """Bytes as MiB with one digit."""
    return round(size / MIB, 1)


def bar(value: float, *, of: float, width: int = 40) -> str:
    """A horizontal bar, in eighths of a character."""
    eighths = round(8 * width * max(0.0, min(1.0, value / of if of else 0.0)))
    if (sys.stdout.encoding or "").lower().replace("-", "") != "utf8":
        return "#" * (eighths // 8)
    return "█" * (eighths // 8) + ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")[eighths % 8]


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns, the first one to the left and the others to the right."""
    cells = [[*map(str, header)], *([*map(str, row)] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = [
        "  ".join(cell.rjust(width) if column else cell.ljust(width) for column, (cell, width) in enumerate(pairs))
        for pairs in (list(zip(row, widths, strict=True)) for row in cells)
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(f"  {line}".rstrip() for line in lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a figure has to be."""

    at_least: float | None = None
    at_most: float | None = None

    def met(self, value: float) -> bool:
        """Whether it is."""
        return (self.at_least is None or value >= self.at_least) and (self.at_most is None or value <= self.at_most)

    def __str__(self) -> str:
        return f">= {self.at_least:g}" if self.at_least is not None else f"<= {self.at_most:g}"


def conclude(name: str, figures: Mapping[str, Any], targets: Mapping[str, Target]) -> int:
    """Print the verdict, and as the last line the result as JSON; the exit code: 0 met, 1 not met."""
    verdicts = {figure: target.met(figures[figure]) for figure, target in targets.items()}
    rows = [(key, figures[key], target, "met" if verdicts[key] else "NOT MET") for key, target in targets.items()]
    print("\n" + table(("figure", "value", "target", "verdict"), rows) + "\n")
    met = all(verdicts.values())
    print(json.dumps({"name": name, "figures": dict(figures), "met": met}), flush=True)
    return 0 if met else 1


def command(body: Callable[[], int]) -> None:
    """Run a benchmark as a command: whatever ends it, servers are stopped first."""

    def ended(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, ended)
    signal.signal(signal.SIGHUP, ended)
    try:
        code = body()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    sys.exit(code)
