"""The harness: boots the real server as a process, waits on facts that its user can see, and leaves nothing behind.

A test names an application, a configuration and some words; the server runs in a directory of its own, on a free
loopback port, with a control socket that only the test knows. Nothing here sleeps and hopes: every wait is for a line
in the log, a fact in the status, a file or the end of a process, and has a deadline that says what was missing.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import refork
from benchmarks import _load
from refork import api
from refork.address import parse_unix
from refork.ctl_client import Client, RefusedError, UnreachableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

SOURCES = os.pathsep.join([str(Path(refork.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
PATIENCE = 40.0
POLL = 0.02

BRISK = (
    *("--refork-after", "0", "--refork-min-interval", "0"),
    *("--canary-seconds", "0.1", "--drain-seconds", "0.2", "--graceful-timeout", "5"),
)
"""A rollout in little time. The drain leaves the load client ten times what it needs for its next request."""

GATES = """
import os, time

HERE = os.path.dirname(os.path.abspath(__file__))

def gate(name):
    "Say that somebody has come here, and wait until a test lets them through."
    with open(os.path.join(HERE, f"{name}.reached"), "a") as file:
        file.write(f"{os.getpid()}\\n")
    while not os.path.exists(os.path.join(HERE, f"{name}.open")):
        time.sleep(0.01)
"""

WSGI = (
    GATES
    + """
import socket, sys, threading

kept = []

def app(environ, start_response):
    path = environ["PATH_INFO"]
    status, body = "200 OK", b"hello"
    if path.startswith("/gate/"):
        gate(path.removeprefix("/gate/"))
    elif path == "/thread":
        thread = threading.Thread(target=threading.Event().wait, name="meddler", daemon=True)
        thread.start()
    elif path == "/connect":
        connection = socket.create_connection((environ["SERVER_NAME"], int(environ["SERVER_PORT"])))
        kept.append(connection)
    elif path == "/close":
        while kept:
            kept.pop().close()
    elif path == "/crash":
        os._exit(7)
    elif path == "/error":
        raise RuntimeError("an error in the application")
    elif path.startswith("/eval/"):
        body = str(eval(path.removeprefix("/eval/"))).encode()
    elif path == "/file":
        return environ["wsgi.file_wrapper"](answer_with_file(start_response))
    headers = [("Content-Length", str(len(body))), ("X-Worker-Pid", str(os.getpid()))]
    start_response(status, headers)
    return [body]

def answer_with_file(start_response):
    file = open(os.path.join(HERE, "file.bin"), "rb")
    size = os.fstat(file.fileno()).st_size
    start_response("200 OK", [("Content-Length", str(size)), ("X-Worker-Pid", str(os.getpid()))])
    return file
"""
)
"""An application that does what its path says, in the worker that gets the request."""

ASGI = (
    GATES
    + """
import asyncio, contextlib, socket, sys, threading

kept = []

def note(line):
    with open(os.path.join(HERE, "lifespan"), "a") as file:
        file.write(f"{line} {os.getpid()}\\n")

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            step = message["type"].removeprefix("lifespan.")
            note(step)
            if step == "startup":
                scope["state"]["born"] = os.getpid()
            await send({"type": f"lifespan.{step}.complete"})
            if step == "shutdown":
                return
    path, body = scope["path"], b"hello"
    if path.startswith("/gate/"):
        await asyncio.to_thread(gate, path.removeprefix("/gate/"))
    elif path == "/thread":
        threading.Thread(target=threading.Event().wait, name="meddler", daemon=True).start()
    elif path == "/connect":
        kept.append(socket.create_connection(scope["server"]))
    elif path == "/crash":
        os._exit(7)
    elif path == "/state":
        body = str(scope.get("state", {}).get("born")).encode()
    elif path.startswith("/eval/"):
        body = str(eval(path.removeprefix("/eval/"))).encode()
    headers = [(b"content-length", str(len(body)).encode()), (b"x-worker-pid", str(os.getpid()).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
"""
)
"""The same for ASGI; its lifespan leaves a line for each step, and its process id in the state."""

_numbers = itertools.count()


def _own_ports() -> Iterator[int]:
    """Yield, over and over, ports that neither the kernel nor another process of this test run hands out.

    Whoever connects, or binds to port 0, gets one of ``ip_local_port_range``: such a port may be somebody else's by the
    time that a server is started there, or is asserted to have left it.
    """
    lowest_ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    member = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    ports = range(10_000 + member % 32, max(lowest_ephemeral, 20_000), 32)
    start = os.getpid() % len(ports)
    return itertools.cycle([*ports[start:], *ports[:start]])


_ports = _own_ports()


def free_port() -> int:
    """Return a port that nobody uses, and that nobody is given before this process has used all its others."""
    return next(port for port in _ports if _is_free(port))


def _is_free(port: int) -> bool:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("0.0.0.0", port))
        except OSError:
            return False
        return True


def until(look: Callable[[], Any], *, what: str, seconds: float = PATIENCE) -> Any:
    """Return the first true value that ``look`` returns; fail with ``what`` was waited for when it takes too long."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds:g} s in vain for {what}")
        time.sleep(POLL)
    return found


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; a zombie does not."""
    return state_of(pid) not in {"", "Z", "X"}


def state_of(pid: int) -> str:
    """Return the letter that the kernel has for what a process does; empty if there is no such process."""
    return _stat(pid)[0]


def parent_of(pid: int) -> int:
    """Return the parent of a process; 0 if there is no such process."""
    return int(_stat(pid)[1])


def _stat(pid: int) -> tuple[str, str]:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return "", "0"
    return fields[0], fields[1]


def all_pids() -> list[int]:
    """Return the pids of all processes there are."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def children(parent: int) -> list[int]:
    """Return the children of a process."""
    return [pid for pid in all_pids() if parent_of(pid) == parent]


def descendants(root: int) -> set[int]:
    """Return the children of a process, and theirs; zombies too."""
    parents = {pid: parent_of(pid) for pid in all_pids()}
    found: set[int] = set()
    generation = {root}
    while generation:
        generation = {pid for pid, parent in parents.items() if parent in generation} - found
        found |= generation
    return found


def open_files(pid: int) -> int:
    """Count the descriptors of a process."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def memory_of(pid: int) -> api.Memory:
    """Return what the kernel says of a process, read here and not by the server."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    kib = {name: int(value) * 1024 for name, value in re.findall(r"^(\w+): +(\d+) kB", text, re.MULTILINE)}
    return api.Memory(
        rss=kib["Rss"],
        pss=kib["Pss"],
        uss=kib["Private_Clean"] + kib["Private_Dirty"],
        shared=kib["Shared_Clean"] + kib["Shared_Dirty"],
        private_dirty=kib["Private_Dirty"],
    )


def threads(pid: int) -> int:
    """Count the threads of a process."""
    return len(os.listdir(f"/proc/{pid}/task"))


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def pid(self) -> int:
        """The worker that answered."""
        return int(self.headers["x-worker-pid"])


@dataclass(slots=True)
class Server:
    """A real server in a directory of its own."""

    directory: Path
    port: int = field(default_factory=free_port)
    environment: dict[str, str] = field(default_factory=dict)
    traces: bool = False
    """Whether a traceback in the log is what the test is about."""
    threaded: bool = False
    """Whether a process with threads forks, which is what the test is about."""
    process: subprocess.Popen[bytes] | None = None
    monitor: int = 0
    control: str = ""
    seen: set[int] = field(default_factory=set)
    """The pids of all processes that the status has ever named."""

    # --- life ---------------------------------------------------------------------------------------------------------

    def write(self, name: str, text: str) -> Path:
        """Write a file into the server's directory, at once as a whole."""
        path = self.directory / name
        scratch = path.with_name(f".{path.name}.scratch")
        scratch.write_text(text)
        scratch.rename(path)
        return path

    def start(
        self,
        *words: str,
        bind: bool = True,
        control: bool = True,
        command: Sequence[str] = (sys.executable, "-m", "refork"),
        **popen: Any,
    ) -> Self:
        """Execute the server and return at once."""
        self.control = f"unix:@refork-test-{os.getpid()}-{next(_numbers)}"
        binding = ("--bind", f"127.0.0.1:{self.port}") if bind else ()
        controlling = ("--control-bind", self.control) if control else ()
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *binding, *controlling, *words],
                cwd=self.directory,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **popen,
            )
        self.monitor = self.process.pid
        return self

    def _environment(self) -> dict[str, str]:
        dropped = {"GUNICORN_CMD_ARGS", "REFORK_CONTROL", "LISTEN_FDS", "LISTEN_PID", "WEB_CONCURRENCY"}
        inherited = {name: value for name, value in os.environ.items() if name not in dropped}
        ours = {
            "PYTHONPATH": SOURCES,
            # The one warning that matters: a process with threads has forked.
            "PYTHONWARNINGS": "always:This process:DeprecationWarning",
            # Compiled once for all servers, whatever the environment of the tests says.
            "PYTHONDONTWRITEBYTECODE": "",
            "PYTHONPYCACHEPREFIX": str(Path(tempfile.gettempdir()) / f"refork-test-bytecode-{os.getuid()}"),
        }
        return inherited | ours | self.environment

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the monitor."""
        os.kill(self.monitor, number)

    def wait(self, *, seconds: float = PATIENCE) -> int:
        """Return the exit status once the server has ended."""
        assert self.process is not None
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the server did not end within {seconds:g} s\n{self.tail()}") from None

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Tell the server to end, and return its exit status."""
        self.send(number)
        return self.wait()

    @property
    def running(self) -> bool:
        """Whether the process that was executed has not ended."""
        return self.process is not None and self.process.poll() is None

    def close(self) -> None:
        """End the server, if the test has not, and make sure that nothing of it is left."""
        try:
            if self.running:
                until(self._without_zombies, what=f"the monitor to reap its children: {self.zombies()}")
                status = self.stop()
                assert status == 0, f"exit status {status}\n{self.tail()}"
            self._assert_gone()
            self._assert_quiet()
        finally:
            self._sweep()

    def zombies(self) -> list[int]:
        """Return the processes of this server that have ended and were not waited for."""
        return [pid for pid in descendants(self.monitor) if state_of(pid) == "Z"]

    def _without_zombies(self) -> bool:
        return not self.zombies()

    def _assert_gone(self) -> None:
        until(lambda: not self.left(), what=f"all processes to end: {self.left()}\n{self.tail()}", seconds=5)
        assert self.port_is_free(), self.tail()

    def left(self) -> dict[int, str]:
        """Return the processes that belong to this server, whoever their parent is now, with their titles."""
        found = {}
        for pid in all_pids():
            with contextlib.suppress(OSError):
                here = Path(os.readlink(f"/proc/{pid}/cwd")).is_relative_to(self.directory)
                if is_alive(pid) and (here or (pid in self.seen and self._is_ours(pid))):
                    found[pid] = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
        return found

    def _is_ours(self, pid: int) -> bool:
        return "refork" in Path(f"/proc/{pid}/cmdline").read_text()

    def port_is_free(self) -> bool:
        """Tell whether nobody listens on the server's port."""
        return _is_free(self.port)

    def _assert_quiet(self) -> None:
        log = self.log()
        assert self.threaded or "use of fork() may lead to deadlocks" not in log, log
        assert self.traces or "Traceback" not in log, log

    def _sweep(self) -> None:
        for pid in self.left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    # --- the log ------------------------------------------------------------------------------------------------------

    @property
    def log_path(self) -> Path:
        """What the server says on its standard output and error."""
        return self.directory / "log"

    def log(self) -> str:
        """Return all of it."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def tail(self) -> str:
        """Return the end of it, for people."""
        return "\n".join(["--- the log:", *self.log().splitlines()[-60:]])

    def wait_log(self, pattern: str, *, times: int = 1, seconds: float = PATIENCE) -> re.Match[str]:
        """Return the match once the pattern has come up so many times."""
        compiled = re.compile(pattern, re.MULTILINE)

        def look() -> re.Match[str] | None:
            found = list(compiled.finditer(self.log()))
            if len(found) < times and not self.running:
                raise AssertionError(f"the server ended without {pattern!r} in its log\n{self.tail()}")
            return found[times - 1] if len(found) >= times else None

        try:
            found = until(look, what=repr(pattern), seconds=seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.tail()}") from None
        assert isinstance(found, re.Match)
        return found

    # --- the status ---------------------------------------------------------------------------------------------------

    @property
    def client(self) -> Client:
        """What speaks to the control socket."""
        return Client(parse_unix(self.control))

    def status(self) -> api.Status:
        """Ask for everything."""
        status = self.client.status()
        self.seen.update(process.pid for process in (*status.molds, *status.workers))
        return status

    def wait_status(
        self, fact: Callable[[api.Status], bool], *, what: str, seconds: float = PATIENCE, each: list[Any] | None = None
    ) -> api.Status:
        """Return the first status of which ``fact`` is true; ``each`` collects all that were seen on the way."""

        def look() -> api.Status | None:
            try:
                status = self.status()
            except UnreachableError:
                if self.process is not None and not is_alive(self.monitor):
                    raise AssertionError(f"the server ended before {what}") from None
                assert "answer=500" not in self.log(), "the status cannot be told"
                return None
            if each is not None:
                each.append(status)
            return status if fact(status) else None

        try:
            found = until(look, what=what, seconds=seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.tail()}") from None
        assert isinstance(found, api.Status)
        return found

    def wait_steady(self, *, generation: int | None = None, workers: int | None = None) -> api.Status:
        """Wait until the full number of workers serves, all of one generation if one is named, and nothing goes on."""

        def fact(status: api.Status) -> bool:
            return (
                status.phase is api.Phase.STEADY
                and status.ready == status.wanted == len(status.workers)
                and workers in (None, status.wanted)
                and all(worker.state is api.WorkerState.READY for worker in status.workers)
                and generation in (None, status.generation)
                and (generation is None or all(worker.generation == generation for worker in status.workers))
                and any(mold.state is api.MoldState.READY for mold in status.molds)
            )

        return self.wait_status(fact, what=f"a steady server (generation={generation}, workers={workers})")

    def wait_phase(self, phase: api.Phase) -> api.Status:
        """Wait until the server is in a phase."""
        return self.wait_status(lambda status: status.phase is phase, what=f"phase {phase}")

    # --- commands -----------------------------------------------------------------------------------------------------

    def refork(self, *, slot: int | None = None) -> str:
        """Ask for a refork; return what names it."""
        return self.client.command("refork", api.ReforkCommand(slot=slot)).operation

    def rebase(self) -> str:
        """Ask for a rebase; return what names it."""
        return self.client.command("rebase", api.RebaseCommand()).operation

    def refusal(self) -> str:
        """Ask for a refork that is to be refused; return the sentence."""
        try:
            self.refork()
        except RefusedError as refusal:
            return str(refusal)
        raise AssertionError("the refork was not refused")

    def finish(self, operation: str | None = None, *, each: list[Any] | None = None) -> api.RolloutStatus:
        """Wait until the rollout under way, or the named one, has ended; return how."""

        def fact(status: api.Status) -> bool:
            last = status.last_rollout
            return status.rollout is None and last is not None and operation in (None, last.id)

        rollout = self.wait_status(fact, what="the end of the rollout", each=each, seconds=60).last_rollout
        assert rollout is not None
        return rollout

    def succeed(self, operation: str) -> api.RolloutStatus:
        """Wait until a rollout has ended as it should."""
        rollout = self.finish(operation)
        assert rollout.outcome is api.Outcome.SUCCEEDED, f"{rollout.reason}\n{self.tail()}"
        return rollout

    def fail(self, operation: str | None = None) -> str:
        """Wait until a rollout has failed; return why."""
        rollout = self.finish(operation)
        assert rollout.outcome is api.Outcome.FAILED, self.tail()
        return rollout.reason

    def ctl(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run reforkctl."""
        return subprocess.run(
            [sys.executable, "-m", "refork.ctl", "--socket", self.control, *words],
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    # --- requests -----------------------------------------------------------------------------------------------------

    def listening(self) -> int:
        """Return the port that the server says it listens on."""
        return int(self.wait_log(r"Listening at: http://127\.0\.0\.1:(\d+)")[1])

    def connect(self, *, port: int = 0) -> http.client.HTTPConnection:
        """Open a connection, to be kept or closed by the test."""
        return http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=PATIENCE)

    def get(self, path: str = "/", *, connection: http.client.HTTPConnection | None = None, port: int = 0) -> Answer:
        """Send one request, on a connection of its own unless one is given."""
        used = connection or self.connect(port=port)
        try:
            used.request("GET", urllib.parse.quote(path, safe="/?=&%"))
            response = used.getresponse()
            headers = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, headers, response.read())
        finally:
            if connection is None:
                used.close()

    def get_from(self, pid: int, path: str) -> Answer:
        """Send requests until one was answered by a certain worker, which ``path`` must say by itself."""
        found = until(lambda: next((a for a in [self.get(path)] if a.pid == pid), None), what=f"an answer by {pid}")
        assert isinstance(found, Answer)
        return found

    def load(
        self, *, connections: int = 12, pause: float = 0.01, path: str = "", scheme: str = "http", **plan: Any
    ) -> _load.LoadProcess:
        """Keep connections busy until told to stop; its report says whether a request failed."""
        url = f"{scheme}://127.0.0.1:{self.port}/{path}"
        return _load.start(_load.Plan(url=url, connections=connections, pause=pause, timeout=PATIENCE, **plan))

    # --- gates --------------------------------------------------------------------------------------------------------

    def reached(self, gate: str, *, times: int = 1) -> int:
        """Wait until somebody stands at a gate (the n-th one); return who."""
        path = self.directory / f"{gate}.reached"

        def look() -> str | None:
            lines = path.read_text().splitlines() if path.exists() else []
            return lines[times - 1] if len(lines) >= times else None

        try:
            return int(until(look, what=f"somebody at gate {gate!r}"))
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.tail()}") from None

    def open(self, gate: str) -> None:
        """Let through who stands at a gate, and all who come."""
        (self.directory / f"{gate}.open").touch()


def assert_no_failure(report: _load.Report) -> None:
    """Make sure that there were requests, and that each was answered."""
    assert report.requests > 0
    assert report.failed_requests == 0, f"{report.failures} {report.notes}"
