"""refork-exporter beside a real gunicorn: what it tells is what the kernel says, whatever happens to the server."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest
from prometheus_client.parser import text_string_to_metric_families

from refork import cgroup
from tests.integration.server import PATIENCE, children, free_port, memory_of, parent_of, until
from tests.integration.steered import environment
from tests.integration.test_ctl import NOBODY, as_root

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.integration.conftest import Serve

MIB = 1024 * 1024
WORKERS = 3
EXPORTER = (sys.executable, "-m", "refork.exporter")
BRISK = ("--interval", "0.1", "--cpu-share", "1", "--estimate-interval", "0.1")
"""Looks often, so that no test waits for time to pass."""

SHOP = """
cache = [{"id": n, "name": f"product {n}", "price": n / 100} for n in range(100_000)]

def app(environ, start_response):
    sum(each["price"] for each in cache)
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""

type Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@dataclass
class Running:
    """A command that runs, with its log."""

    log: Path
    command: Sequence[str]
    directory: Path
    process: subprocess.Popen[bytes] = field(init=False)
    pid: int = 0
    end: signal.Signals = signal.SIGTERM

    def start(self, **popen: Any) -> Self:
        """Execute it. Its pid is its own, also where something else has executed it."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment(PYTHONPATH=str(self.directory)),
                **popen,
            )
        self.pid = self.process.pid
        return self

    def within(self) -> Self:
        """Take the pid of what the command has forked to run it: ``nsenter`` and ``unshare`` stay, and wait."""
        (self.pid,) = until(lambda: children(self.process.pid), what="the command to be executed")
        return self

    def said(self, pattern: str) -> bool:
        """Whether a line of the log has this in it."""
        return re.search(pattern, self.log.read_text()) is not None

    def stop(self) -> int:
        """End it; return the exit status."""
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, self.end)
        return self.process.wait(PATIENCE)


@dataclass
class Exporter(Running):
    """An exporter that runs."""

    port: int = 0

    def ask(self, path: str) -> tuple[int, str]:
        """Ask; nothing and 0 when nobody answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        with contextlib.closing(connection):
            try:
                connection.request("GET", path)
                answer = connection.getresponse()
                return answer.status, answer.read().decode()
            except ConnectionError:
                return 0, ""

    def scrape(self) -> Samples:
        """Read the metrics: name and labels to value."""
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(self.ask("/metrics")[1])
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float | None:
        """Return one sample, if there is one."""
        return self.scrape().get((name, frozenset(labels.items())))

    def wait_ready(self, *, ready: bool = True, says: str = "") -> str:
        """Wait for what the probe is to answer; return what it says."""

        def look() -> str | None:
            assert self.process.poll() is None, "the exporter has ended"
            status, line = self.ask("/readyz")
            return line if status == (200 if ready else 503) and says in line else None

        try:
            return str(until(look, what=f"ready={ready} {says}"))
        except AssertionError as error:
            raise AssertionError(f"{error}; it says {self.ask('/readyz')}\n{self.log.read_text()}") from None

    def slots(self) -> set[str]:
        """Name the slots that have a series."""
        return {dict(labels)["slot"] for name, labels in self.scrape() if name == "refork_memory_rss_bytes"} - {""}


class Start:
    """Starts exporters and servers in a directory, and ends them all."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._running: list[Running] = []

    def exporter(self, *words: str, prefix: Sequence[str] = (), command: Sequence[str] = EXPORTER) -> Exporter:
        """Start an exporter."""
        port = free_port()
        command = (*prefix, *command, "--bind", f"127.0.0.1:{port}", *BRISK, *words)
        log = self._directory / f"exporter-{len(self._running)}"
        exporter = Exporter(log, command, self._directory, port=port).start()
        self._running.append(exporter)
        return exporter

    def gunicorn(self, *words: str, prefix: Sequence[str] = (), workers: int = WORKERS) -> Running:
        """Start a gunicorn that has booted its workers."""
        (self._directory / "shop.py").write_text(SHOP)
        binding = ("-b", f"127.0.0.1:{free_port()}", "-w", str(workers), "--no-control-socket")
        command = (*prefix, sys.executable, "-m", "gunicorn", *binding, *words, "shop:app")
        server = self.other(*command)
        booted = "Booting worker"
        until(lambda: server.log.read_text().count(booted) == workers, what=f"gunicorn: {server.log.read_text()}")
        return server

    def other(self, *command: str) -> Running:
        """Start something else."""
        running = Running(self._directory / f"log-{len(self._running)}", command, self._directory).start()
        self._running.append(running)
        return running

    def close(self) -> None:
        """End them, the last one first; an exporter ends as it should."""
        for running in reversed(self._running):
            status = running.stop()
            if isinstance(running, Exporter):
                assert status == 0, running.log.read_text()
                assert "Traceback" not in running.log.read_text()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start exporters and servers."""
    starting = Start(tmp_path)
    yield starting
    starting.close()


def as_the_kernel_says(exporter: Exporter, pids: dict[tuple[str, str], int]) -> bool:
    """Whether each place has the memory that its process has, or had a moment ago: PSS moves with the neighbours."""
    before = {place: memory_of(pid) for place, pid in pids.items()}
    told = exporter.scrape()
    after = {place: memory_of(pid) for place, pid in pids.items()}
    for place, pid in pids.items():
        labels = frozenset({("role", place[0]), ("slot", place[1])})
        for size in ("rss", "pss", "uss", "shared", "private_dirty"):
            value = told.get((f"refork_memory_{size}_bytes", labels))
            if value not in {getattr(before[place], size), getattr(after[place], size)}:
                return False
        assert pid > 0
    return True


@pytest.mark.parametrize("preload", [(), ("--preload",)], ids=["each loads", "preload"])
def test_each_process_of_a_gunicorn_has_the_memory_that_the_kernel_says(start: Start, preload: tuple[str, ...]) -> None:
    """RSS, PSS, USS, shared and copied, by role and slot; and what refork would save of it."""
    server = start.gunicorn(*preload)
    exporter = start.exporter("--pid", str(server.pid))
    exporter.wait_ready(says="watching: processes=4 measured=4")
    by_age = sorted(children(server.pid), key=lambda pid: (Path(f"/proc/{pid}/stat").read_text().split()[21], pid))
    pids = {("master", ""): server.pid} | {("worker", str(slot)): pid for slot, pid in enumerate(by_age)}
    until(lambda: as_the_kernel_says(exporter, pids), what="what the kernel says")
    until(lambda: exporter.value("refork_estimates_total", outcome=outcome_here()), what="an estimate")

    told = exporter.scrape()
    used = told["refork_estimate_used_bytes", frozenset()]
    saved = {dict(labels)["bound"]: value for (name, labels), value in told.items() if name.endswith("saved_bytes")
             and labels}  # fmt: skip
    assert used == pytest.approx(sum(memory_of(pid).pss for pid in pids.values()), rel=0.2)
    assert 0 <= saved.get("at_least", 0) <= saved["at_most"] < used
    (info,) = [dict(labels) for name, labels in told if name == "refork_exporter_info"]
    assert info["server"] == "gunicorn"
    assert info["program"].startswith("python3")
    assert exporter.value("refork_exporter_state", state="watching") == 1
    assert told["refork_start_time_seconds", frozenset()] <= time.time()
    assert 0 < told["refork_exporter_memory_pss_bytes", frozenset()] < 40 * MIB
    assert exporter.said(rf"watching server=gunicorn pid={server.pid} workers=3")
    assert_promtool_agrees(exporter.ask("/metrics")[1])


def assert_promtool_agrees(body: str) -> None:
    """Have the names, help texts and types checked."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed: apt-get install prometheus")
    checked = subprocess.run([promtool, "check", "metrics"], input=body.encode(), capture_output=True, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


def outcome_here() -> str:
    """How an estimate ends on this machine: only root may read contents where Yama says so."""
    scope = Path("/proc/sys/kernel/yama/ptrace_scope")
    restricted = scope.exists() and scope.read_text().strip() != "0" and os.geteuid() != 0
    return "figures_only" if restricted else "complete"


def test_a_worker_that_is_replaced_has_the_series_of_the_one_before(start: Start) -> None:
    """Killed, or reloaded one and all: the slots are those of as many workers as there are at once."""
    server = start.gunicorn()
    exporter = start.exporter("--pid", str(server.pid), "--estimate-interval", "0")
    exporter.wait_ready()
    assert exporter.slots() == {"0", "1", "2"}
    before = set(children(server.pid))
    os.kill(min(before), signal.SIGKILL)
    until(lambda: len(set(children(server.pid)) - before) == 1, what="a new worker")
    (fresh,) = set(children(server.pid)) - before
    pids = {("worker", "0"): fresh}
    until(lambda: as_the_kernel_says(exporter, pids) and len(exporter.slots()) == 3, what="the new worker in slot 0")

    os.kill(server.pid, signal.SIGHUP)
    until(lambda: not set(children(server.pid)) & {fresh, *before}, what="all workers to be renewed")
    until(lambda: len(exporter.slots()) == 3, what="the old ones to be forgotten")
    assert exporter.slots() <= {str(slot) for slot in range(2 * WORKERS)}
    assert exporter.value("refork_exporter_errors_total", kind="internal") == 0
    assert exporter.value("refork_estimates_total", outcome="complete") == 0
    assert exporter.value("refork_estimate_used_bytes") is None


def test_the_control_group_is_that_of_the_server(start: Start) -> None:
    """Seen through the eyes of the server's master, whose container it is."""
    place = cgroup.find()
    if place is None or (expected := cgroup.read(place)) is None:
        pytest.skip("these processes are in no control group that counts memory")
    exporter = start.exporter("--pid", str(start.gunicorn().pid), "--estimate-interval", "0")
    until(lambda: exporter.value("refork_cgroup_memory_usage_bytes"), what="the control group")
    assert exporter.value("refork_cgroup_memory_limit_bytes") == expected.limit


def test_refork_itself_is_not_told_twice(start: Start, serve: Serve) -> None:
    """It has metrics of its own; the exporter says so, and is not ready."""
    exporter = start.exporter("--pid", str(serve().monitor))
    exporter.wait_ready(ready=False, says="refork: this is refork already")
    assert exporter.value("refork_exporter_state", state="refork") == 1
    assert exporter.slots() == set()


# --- as in a pod ------------------------------------------------------------------------------------------------------


@pytest.fixture
def pod(start: Start) -> Callable[[], tuple[str, ...]]:
    """Return what makes a pid namespace with a first process that does nothing: what starts others in it."""

    def make() -> tuple[str, ...]:
        unshare = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
        who = () if os.geteuid() == 0 else ("--user", "--map-root-user")
        try:
            pause = start.other(*unshare, *who, "sh", "-c", "echo made; exec sleep infinity")
        except FileNotFoundError:
            pytest.skip("unshare is not installed: apt-get install util-linux")
        until(lambda: pause.said("made") or pause.process.poll() is not None, what="a pid namespace")
        if pause.process.poll() is not None:
            pytest.skip(f"no pid namespace can be made here: {pause.log.read_text()}")
        first = pause.within().pid
        pause.end = signal.SIGKILL  # what has no handler for a signal does not get it as process 1
        same = () if os.geteuid() == 0 else ("--user", "--preserve-credentials")
        return ("nsenter", "--target", str(first), "--pid", "--mount", *same, "--")

    return make


def test_in_a_pod_the_server_is_found_when_it_comes_and_again_when_it_restarts(
    start: Start, pod: Callable[[], tuple[str, ...]]
) -> None:
    """Side by side in one pid namespace, the exporter first; nobody names a pid."""
    enter = pod()
    exporter = start.exporter(prefix=enter)
    exporter.within()
    assert "no process has two or more children that run its own program" in exporter.wait_ready(ready=False)
    assert exporter.ask("/healthz") == (200, "ok\n")
    first = start.gunicorn(prefix=enter).within()
    exporter.wait_ready(says="watching: processes=4 measured=4")
    workers = children(first.pid)
    until(lambda: exporter.value("refork_estimate_used_bytes"), what="an estimate")

    for pid in (first.pid, *workers):
        os.kill(pid, signal.SIGKILL)
    exporter.wait_ready(ready=False, says="searching")
    assert exporter.slots() == set()
    assert exporter.value("refork_estimate_used_bytes") is None

    second = start.gunicorn(prefix=enter).within()
    exporter.wait_ready(says="watching: processes=4 measured=4")
    assert exporter.slots() == {"0", "1", "2"}
    pids = {("master", ""): second.pid}
    until(lambda: as_the_kernel_says(exporter, pids), what="the memory of the new master")
    assert parent_of(exporter.pid) == exporter.process.pid
    assert exporter.stop() == 0


def test_alone_in_its_pid_namespace_it_says_what_to_change(start: Start) -> None:
    """As process 1 of a container in a pod without shareProcessNamespace; it ends by SIGTERM all the same."""
    if os.geteuid() != 0:
        pytest.skip("only root can make a pid namespace with a /proc of its own")
    exporter = start.exporter(prefix=("unshare", "--pid", "--fork", "--kill-child", "--mount-proc"))
    exporter.within()
    line = exporter.wait_ready(ready=False, says="no other process can be seen")
    assert "set shareProcessNamespace: true in the spec of the pod" in line
    assert exporter.stop() == 0
    assert exporter.said("ended")


# --- who may look -----------------------------------------------------------------------------------------------------

BECOME = """
import ctypes, os, sys

def become(user):
    "Be somebody else, as if executed so: the kernel closes a process that changes its user, until it is executed."
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)
    assert ctypes.CDLL(None).prctl(4, 1, 0, 0, 0) == 0  # PR_SET_DUMPABLE
"""

AS_SOMEBODY = f"""{BECOME}
import encodings.idna, uvicorn.config, uvicorn.protocols.http.h11_impl
from refork import exporter, exporter_app, web_server
become(int(sys.argv[1]))
sys.exit(exporter.main(sys.argv[2:]))
"""
"""The installation may be one that only its owner can read, so everything is loaded before."""

PREFORK = f"""{BECOME}
import signal
become(int(sys.argv[1]))
kept = [str(number) for number in range(200_000)]
ends, held = os.pipe()
for _ in range({WORKERS}):
    if os.fork() == 0:
        os.close(held)
        if len(sys.argv) > 2:
            os.setgid(int(sys.argv[2]))
            os.setuid(int(sys.argv[2]))
        os.read(ends, 1)
        os._exit(0)
print("forked", flush=True)
signal.pause()
"""
"""A server whose workers end with it."""


def somebody(user: int) -> tuple[str, ...]:
    """The exporter as another user."""
    return (sys.executable, "-c", AS_SOMEBODY, str(user))


def prefork(start: Start, *users: int) -> Running:
    """Start a server as a user; its workers may change to another one."""
    server = start.other(sys.executable, "-c", PREFORK, *map(str, users))
    until(lambda: server.said("forked"), what="workers")
    return server


@as_root
def test_the_same_user_may_look_without_any_capability(start: Start) -> None:
    """That is all a pod needs; the contents of pages too, where Yama does not forbid it."""
    server = prefork(start, NOBODY)
    exporter = start.exporter("--pid", str(server.pid), command=somebody(NOBODY))
    exporter.wait_ready(says="watching: processes=4 measured=4")
    scope = Path("/proc/sys/kernel/yama/ptrace_scope")
    outcome = "figures_only" if scope.exists() and scope.read_text().strip() != "0" else "complete"
    until(lambda: exporter.value("refork_estimates_total", outcome=outcome), what=f"an estimate that is {outcome}")


@as_root
@pytest.mark.parametrize(
    ("server_user", "user", "says"),
    [
        (0, NOBODY, "it runs as user 0, the exporter as user 65534: give both containers the same runAsUser (0)"),
        (NOBODY, 1000, "it runs as user 65534, the exporter as user 1000: give both containers the same runAsUser"),
    ],
)
def test_another_user_may_not_look_and_is_told_what_to_change(
    start: Start, server_user: int, user: int, says: str
) -> None:
    """In the log, at the probe and as a metric; and nothing is told of the server."""
    server = prefork(start, server_user)
    exporter = start.exporter("--pid", str(server.pid), command=somebody(user))
    exporter.wait_ready(ready=False, says=says)
    assert exporter.value("refork_exporter_state", state="forbidden") == 1
    assert exporter.slots() == set()
    until(lambda: (exporter.value("refork_exporter_errors_total", kind="forbidden") or 0) > 2, what="more attempts")
    assert exporter.log.read_text().count("forbidden") == 1, "it is said once"


@as_root
def test_a_server_with_more_capabilities_may_not_be_looked_at(start: Start) -> None:
    """The same user is not enough: a container that drops all looks at one that drops none."""
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is not installed: apt-get install util-linux")
    server = start.gunicorn()
    without = ("setpriv", "--bounding-set", "-all", "--inh-caps", "-all")
    exporter = start.exporter("--pid", str(server.pid), prefix=without)
    exporter.wait_ready(ready=False, says="it has capabilities that the exporter has not")


@as_root
def test_workers_that_have_changed_their_user_are_closed_to_it_too(start: Start) -> None:
    """Like those of a gunicorn with --user: the same user is not enough either, and the sentence says so."""
    server = prefork(start, 0, NOBODY)
    worker = min(children(server.pid))
    until(lambda: f"Uid:\t{NOBODY}\t" in Path(f"/proc/{worker}/status").read_text(), what="the change")
    code = f"{BECOME}\nfrom refork.exporter_access import obstacle\nbecome({NOBODY})\nprint(obstacle({worker}))"
    asked = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment(), timeout=PATIENCE
    )
    assert "it has changed its user since it was started (like gunicorn with --user)" in asked.stdout
    assert f"(runAsUser: {NOBODY})" in asked.stdout


@as_root
def test_a_proc_that_hides_processes_of_others_is_said_to(start: Start) -> None:
    """Nothing is found there, and the reason is not that there is nothing."""
    hiding = 'mount -o remount,hidepid=2 /proc && exec "$@"'
    prefix = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", hiding, "sh")
    exporter = start.exporter(prefix=prefix, command=somebody(NOBODY))
    exporter.within()
    exporter.wait_ready(ready=False, says="(hidepid): run the exporter as the server's user")


# --- the command ------------------------------------------------------------------------------------------------------


def run(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [*EXPORTER, *words], capture_output=True, text=True, check=False, timeout=PATIENCE, env=environment(**more)
    )


def test_help_teaches() -> None:
    """What it is for, what the pod has to say, what it answers."""
    result = run("--help")
    assert (result.returncode, result.stderr) == (0, "")
    for words in ("shareProcessNamespace: true", "runAsUser", "REFORK_EXPORTER_", "/readyz", "--estimate-interval"):
        assert words in result.stdout
    assert all(len(line) <= 120 for line in result.stdout.splitlines())


def test_an_address_that_is_taken_is_said_in_one_line(start: Start) -> None:
    """Also when it comes from the environment."""
    exporter = start.exporter()
    until(lambda: exporter.ask("/healthz")[0], what="the exporter")
    result = run(REFORK_EXPORTER_BIND=f"127.0.0.1:{exporter.port}")
    assert (result.returncode, result.stdout) == (1, "")
    assert re.search(
        rf"127\.0\.0\.1:{exporter.port} is in use by another process: choose another --bind\n$", result.stderr
    )


def test_it_ends_at_once_in_the_middle_of_an_estimate(start: Start) -> None:
    """Nobody waits for the second look at a page."""
    exporter = start.exporter("--pid", str(start.gunicorn().pid))
    until(lambda: exporter.said("watching"), what="the server to be found")
    exporter.end = signal.SIGINT
    assert exporter.stop() == 0
