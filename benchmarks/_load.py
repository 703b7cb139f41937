"""An HTTP load client that proves, or disproves, that no request failed.

Most load generators reconnect in silence when a server closes a kept-alive connection under a request that was just
sent. That is exactly the failure that a careless restart causes, so here it counts: every request that was written
and did not get a complete answer is a failed request, whatever the reason. A connection that the server closes
*between* requests is none; it is only counted.

It runs as a process of its own (``python -m benchmarks._load URL --connections 16 --seconds 10 --json``), so that
measuring disturbs neither the server nor the program that drives both. ``start()`` does that from Python. It needs
the standard library only, and knows nothing of refork.
"""

from __future__ import annotations

import argparse
import array
import asyncio
import contextlib
import ctypes
import functools
import json
import os
import signal
import ssl
import statistics
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Sequence

STARTED = "started"
MAX_NOTES = 10
RECONNECT_SECONDS = 0.02
MAX_INSTANTS = 1000
WATCHDOG_SECONDS = 0.25
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to ask for, how often and for how long.

    Attributes:
        url: ``http://host:port/path``, or ``https://…`` (the certificate is not verified: it is a test's own).
        unix: connect to this Unix socket instead of the host of the URL; ``@name`` is an abstract one.
        connections: how many requests may be under way at once, each on its own kept-alive connection.
        seconds: stop after so long; None: until SIGTERM or SIGINT.
        requests: stop after so many.
        rate: requests a second, whether or not the server keeps up (open loop); None: as fast as it answers.
        pause: idle time of a connection between an answer and the next request.
        timeout: a request without a complete answer after so long has failed.
        cpus: run on these processors only.
    """

    url: str
    unix: str | None = None
    connections: int = 16
    seconds: float | None = None
    requests: int | None = None
    rate: float | None = None
    pause: float = 0.0
    timeout: float = 30.0
    cpus: tuple[int, ...] = ()

    def arguments(self) -> list[str]:
        """The command line that says the same."""
        words = [self.url]
        for name, value in asdict(self).items():
            if name == "url" or value in (None, ()):
                continue
            words += [f"--{name}", ",".join(map(str, value)) if isinstance(value, tuple) else str(value)]
        return words


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What came of it.

    Attributes:
        requests: requests begun; each of them was answered or is in ``failed_requests``.
        failed_requests: not answered in full, or answered with anything but 2xx.
        non_2xx: failed requests that were answered.
        socket_errors: failed requests that were not, by closed or reset connections, timeouts, or no connection.
        failures: failed requests by reason.
        idle_closes: connections closed by the server between two requests. Not failures.
        connections: connections opened.
        seconds: duration.
        rps: good answers a second.
        latency_ms: mean, p50, p90, p99, p999 and max of the good answers.
        pids: good answers by the ``X-Worker-Pid`` that gave them.
        notes: the first few failures, in words.
        failed_at: the first thousand failures: the instant, on the machine's monotonic clock, and the reason.
    """

    requests: int
    failed_requests: int
    non_2xx: int
    socket_errors: int
    failures: dict[str, int]
    idle_closes: int
    connections: int
    seconds: float
    rps: float
    latency_ms: dict[str, float]
    pids: dict[str, int]
    notes: list[str]
    failed_at: list[tuple[float, str]]

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what ``--json`` printed."""
        found = json.loads(text)
        return cls(**{each.name: found[each.name] for each in fields(cls)})


@dataclass(frozen=True, slots=True)
class Head:
    """The part of an answer's head that matters here."""

    status: int
    length: int | None
    chunked: bool
    closes: bool
    pid: str | None


class BadAnswerError(Exception):
    """The bytes that came are not an HTTP answer to the request that was sent."""


@functools.lru_cache(maxsize=256)  # the same head comes again until the Date header's second is over
def parse_head(head: bytes) -> Head:
    """Read the head of an answer, without its final empty line."""
    first, *lines = head.decode("latin-1").split("\r\n")
    protocol, _, rest = first.partition(" ")
    if not protocol.startswith("HTTP/1.") or not rest[:3].isdigit():
        message = f"not an HTTP/1 answer: {first[:60]!r}"
        raise BadAnswerError(message)
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    connection = headers.get("connection", "").lower()
    status = int(rest[:3])
    length = headers.get("content-length")
    chunked = "chunked" in headers.get("transfer-encoding", "").lower()
    bodyless = status in (204, 304) or status < 200
    endless = length is None and not chunked and not bodyless
    return Head(
        status=status,
        length=0 if bodyless else int(length) if length is not None else None,
        chunked=chunked and not bodyless,
        closes="close" in connection or endless or (protocol == "HTTP/1.0" and "keep-alive" not in connection),
        pid=headers.get("x-worker-pid"),
    )


def chunked_end(data: bytes | bytearray, at: int) -> int:
    """Where the chunked body that begins at ``at`` ends; -1 when it has not all come yet."""
    while (eol := data.find(b"\r\n", at)) >= 0:
        size = int(data[at:eol].split(b";")[0], 16)
        at = eol + 2
        if size == 0:
            end = data.find(b"\r\n", at)
            while end > at:  # trailer fields
                at = end + 2
                end = data.find(b"\r\n", at)
            return end + 2 if end >= 0 else -1
        at += size + 2
        if at > len(data):
            return -1
    return -1


class Connection(asyncio.Protocol):
    """One connection; at most one request under way on it."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.since = 0.0
        self.closed_by_server = False
        self._buffer = bytearray()
        self._answer: asyncio.Future[Head] | None = None

    @property
    def usable(self) -> bool:
        """Whether a request may be sent, as far as this side knows."""
        return self.transport is not None and not self.transport.is_closing()

    @property
    def in_flight(self) -> bool:
        """Whether a request was sent and not yet answered."""
        return self._answer is not None

    def ask(self, request: bytes) -> asyncio.Future[Head]:
        """Send a request; the answer, or why there is none, comes in the future."""
        assert self.transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self.since = time.monotonic()
        self.transport.write(request)
        return self._answer

    def drop(self, error: Exception | None = None) -> None:
        """Close from this side; what was under way fails with ``error``."""
        if error is not None:
            self._fail(error)
        if self.transport is not None:
            self.transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if self._answer is None:  # unasked for, as a 408 before an idle close
            self.closed_by_server = True
            self.drop()
            return
        self._buffer += data
        try:
            self._take_answer(ended=False)
        except (BadAnswerError, ValueError) as error:
            self.drop(BadAnswerError(str(error)))

    def eof_received(self) -> None:
        self.closed_by_server = True

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:
            self.closed_by_server = True
        if self._answer is None:
            return
        if exc is None:
            with contextlib.suppress(BadAnswerError, ValueError):
                self._take_answer(ended=True)
        self._fail(exc or ConnectionAbortedError("closed by the server with the request in flight"))

    def _take_answer(self, *, ended: bool) -> None:
        while self._answer is not None and (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = parse_head(bytes(self._buffer[:end]))
            body = end + 4
            if head.chunked:
                stop = chunked_end(self._buffer, body)
            elif head.length is not None:
                stop = body + head.length
            else:
                stop = len(self._buffer) if ended else -1
            if stop < 0 or stop > len(self._buffer):
                return
            del self._buffer[:stop]
            if head.status < 200:  # 100 Continue and the like come before the answer
                continue
            if self._buffer:
                message = "more bytes than the answer has"
                raise BadAnswerError(message)
            answer, self._answer = self._answer, None
            if not answer.done():
                answer.set_result(head)

    def _fail(self, error: Exception) -> None:
        answer, self._answer = self._answer, None
        if answer is not None and not answer.done():
            answer.set_exception(error)


@dataclass(slots=True)
class Tally:
    """Everything counted while the load runs."""

    begun: int = 0
    good: int = 0
    opened: int = 0
    idle_closes: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    pids: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    failed_at: list[tuple[float, str]] = field(default_factory=list)
    taken: array.array[float] = field(default_factory=lambda: array.array("d"))

    def answered(self, head: Head, *, seconds: float) -> None:
        """One answer came in full."""
        if not 200 <= head.status < 300:
            self.failed(f"status {head.status}", note=f"by pid {head.pid}")
            return
        self.good += 1
        self.taken.append(seconds)
        if head.pid is not None:
            self.pids[head.pid] += 1

    def failed(self, reason: str, *, note: str = "") -> None:
        """One request got no answer, or a bad one."""
        self.failures[reason] += 1
        if len(self.failed_at) < MAX_INSTANTS:
            self.failed_at.append((time.monotonic(), reason))
        if len(self.notes) < MAX_NOTES:
            self.notes.append(f"{reason}: {note}")

    def report(self, *, seconds: float) -> Report:
        """The sums."""
        failed = self.failures.total()
        non_2xx = sum(count for reason, count in self.failures.items() if reason.startswith("status "))
        return Report(
            requests=self.begun,
            failed_requests=failed,
            non_2xx=non_2xx,
            socket_errors=failed - non_2xx,
            failures=dict(self.failures),
            idle_closes=self.idle_closes,
            connections=self.opened,
            seconds=round(seconds, 3),
            rps=round(self.good / seconds, 1) if seconds > 0 else 0.0,
            latency_ms=summary_ms(self.taken),
            pids=dict(self.pids),
            notes=self.notes,
            failed_at=self.failed_at,
        )


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value that ``share`` of the sorted values do not exceed; 0 when there are none."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


def summary_ms(seconds: Sequence[float]) -> dict[str, float]:
    """Mean, percentiles and maximum, in milliseconds."""
    ordered = sorted(seconds)
    found = {"mean": statistics.fmean(ordered) if ordered else 0.0}
    found |= {name: percentile(ordered, share) for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))}
    found |= {"p999": percentile(ordered, 0.999), "max": ordered[-1] if ordered else 0.0}
    return {name: round(value * 1000, 3) for name, value in found.items()}


class Load:
    """N lanes, each sending one request after the other."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.tally = Tally()
        self._target = urlsplit(plan.url)
        self._request = (
            f"GET {self._target.path or '/'}{'?' + self._target.query if self._target.query else ''} HTTP/1.1\r\n"
            f"Host: {self._target.netloc or 'localhost'}\r\nAccept: */*\r\n\r\n"
        ).encode()
        self._connections: set[Connection] = set()
        self._stopped = False
        self._tickets = 0
        self._start = 0.0
        self._end = float("inf")

    def stop(self) -> None:
        """Begin no more requests; those under way are still waited for."""
        self._stopped = True

    async def run(self) -> Report:
        """Drive the load to its end."""
        self._start = time.monotonic()
        if self.plan.seconds is not None:
            self._end = self._start + self.plan.seconds
        watchdog = asyncio.create_task(self._watch())
        await asyncio.gather(*(self._lane() for _ in range(self.plan.connections)))
        watchdog.cancel()
        return self.tally.report(seconds=time.monotonic() - self._start)

    async def _lane(self) -> None:
        connection = Connection()
        while (since := await self._turn()) is not None:
            if connection.closed_by_server:
                self.tally.idle_closes += 1
            self.tally.begun += 1
            connection = await self._exchange(connection, since)
            if self.plan.pause:
                await asyncio.sleep(self.plan.pause)
        connection.drop()

    async def _turn(self) -> float | None:
        """Wait for this lane's next request: the instant it counts from, or None when there is no more to do."""
        now = time.monotonic()
        number, self._tickets = self._tickets, self._tickets + 1
        if self._stopped or now >= self._end or (self.plan.requests is not None and number >= self.plan.requests):
            return None
        if self.plan.rate is None:
            return now
        # Open loop: request number k is due at k/rate, and one that found no free lane then has waited since. A lane
        # that had to sleep counts from its waking instead: the timer's own lateness is not the server's.
        due = self._start + number / self.plan.rate
        if due <= now:
            return due
        await asyncio.sleep(due - now)
        return None if self._stopped or due >= self._end else time.monotonic()

    async def _exchange(self, connection: Connection, since: float) -> Connection:
        """One request; returns the connection that the next one may use."""
        try:
            if not connection.usable:
                self._connections.discard(connection)
                connection = await self._open()
        except (OSError, TimeoutError) as error:
            self.tally.failed("connect", note=repr(error))
            await asyncio.sleep(RECONNECT_SECONDS)
            return Connection()
        try:
            head = await connection.ask(self._request)
        except (OSError, TimeoutError, BadAnswerError) as error:
            self.tally.failed(reason_of(error), note=f"{error!r} after {time.monotonic() - connection.since:.3f} s")
            connection.drop()
            return Connection()
        self.tally.answered(head, seconds=time.monotonic() - since)
        if head.closes:
            connection.drop()
            self._connections.discard(connection)
            return Connection()
        return connection

    async def _open(self) -> Connection:
        loop = asyncio.get_running_loop()
        context = unverified() if self._target.scheme == "https" else None
        async with asyncio.timeout(self.plan.timeout):
            if self.plan.unix is None:
                port = self._target.port or (443 if context else 80)
                host = self._target.hostname or "localhost"
                _, made = await loop.create_connection(Connection, host, port, ssl=context)
            else:
                path = "\0" + self.plan.unix[1:] if self.plan.unix.startswith("@") else self.plan.unix
                name = self._target.hostname if context else None
                _, made = await loop.create_unix_connection(Connection, path, ssl=context, server_hostname=name)
        self._connections.add(made)
        self.tally.opened += 1
        return made

    async def _watch(self) -> None:
        """One look at all connections costs less than a timer for each request."""
        while True:
            await asyncio.sleep(WATCHDOG_SECONDS)
            oldest = time.monotonic() - self.plan.timeout
            for connection in list(self._connections):
                if connection.in_flight and connection.since < oldest:
                    connection.drop(TimeoutError("no complete answer"))


def reason_of(error: Exception) -> str:
    """The word that failures are counted under."""
    if isinstance(error, TimeoutError):
        return "timeout"
    if isinstance(error, ConnectionResetError | BrokenPipeError):
        return "reset"
    if isinstance(error, ConnectionAbortedError):
        return "closed"
    return "bad answer" if isinstance(error, BadAnswerError) else "socket"


@functools.cache
def unverified() -> ssl.SSLContext:
    """TLS to a server whose certificate was made for the occasion."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def die_with_parent() -> None:
    """End by SIGTERM when the thread that started this process has ended (prctl(2), PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class LoadProcess:
    """A load that runs in a process of its own; use as a context manager, so that none is left behind."""

    def __init__(self, plan: Plan) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", os.path.abspath(__file__), *plan.arguments(), "--json"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a Ctrl-C is for the program that drives; it ends this one in its own time
            preexec_fn=die_with_parent,  # noqa: PLW1509 - it calls prctl(2) and nothing else
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline().strip() != STARTED:
            self._process.wait()
            message = f"the load client did not start: exit code {self._process.returncode}"
            raise RuntimeError(message)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    @property
    def running(self) -> bool:
        """Whether it has not ended by itself."""
        return self._process.poll() is None

    def wait(self) -> Report:
        """The report, once the plan is done."""
        out, _ = self._process.communicate()
        if not out.strip():
            message = f"the load client died: exit code {self._process.returncode}"
            raise RuntimeError(message)
        return Report.from_json(out.strip().splitlines()[-1])

    def stop(self) -> Report:
        """Let the requests under way end, begin no more, and report."""
        if self.running:
            self._process.send_signal(signal.SIGTERM)
        return self.wait()


def start(plan: Plan) -> LoadProcess:
    """Run a plan in a process of its own."""
    return LoadProcess(plan)


def run(plan: Plan) -> Report:
    """Run a plan that ends by itself, in a process of its own, and wait for it."""
    with start(plan) as process:
        return process.wait()


def describe(report: Report) -> str:
    """A few lines for people."""
    latency = "  ".join(f"{name} {value:.2f}" for name, value in report.latency_ms.items())
    lines = [
        f"{report.requests} requests in {report.seconds:.2f} s, {report.rps:.0f}/s, {report.connections} connections",
        f"latency ms: {latency}",
        f"failed: {report.failed_requests}  (not 2xx {report.non_2xx}, socket {report.socket_errors})",
        f"connections closed while idle: {report.idle_closes}",
    ]
    lines += [f"  pid {pid}: {count}" for pid, count in sorted(report.pids.items(), key=lambda each: int(each[0]))]
    return "\n".join(lines + [f"  {note}" for note in report.notes])


def parse(arguments: Sequence[str] | None = None) -> tuple[Plan, bool]:
    """The plan on a command line, and whether JSON is wanted."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks._load", description="HTTP load that counts failures.")
    parser.add_argument("url")
    parser.add_argument("--unix", help="a Unix socket to connect to; @name is abstract")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--seconds", type=float, help="default: until SIGTERM or Ctrl-C")
    parser.add_argument("--requests", type=int)
    parser.add_argument("--rate", type=float, help="requests a second; default: as fast as the server answers")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between an answer and the next request")
    parser.add_argument("--timeout", type=float, default=30.0)
    parser.add_argument("--cpus", type=lambda text: tuple(map(int, text.split(","))), default=())
    parser.add_argument("--json", action="store_true")
    found = vars(parser.parse_args(arguments))
    as_json = found.pop("json")
    return Plan(**found), as_json


async def serve(plan: Plan) -> Report:
    """Run a plan in this process until it is done or a signal ends it."""
    load = Load(plan)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, load.stop)
    print(STARTED, flush=True)
    return await load.run()


def main() -> int:
    """The command; exit code 1 when a request failed."""
    plan, as_json = parse()
    if plan.cpus:
        os.sched_setaffinity(0, plan.cpus)
    report = asyncio.run(serve(plan))
    print(json.dumps(asdict(report)) if as_json else describe(report), flush=True)
    return 1 if report.failed_requests else 0


if __name__ == "__main__":
    sys.exit(main())
