"""Whether a drained process may be forked from: facts in, findings out.

A fork copies memory and descriptors, and one thread. So what goes wrong afterwards is what several processes share
without knowing (a connection, an open database, a kernel event queue) and what is missing in the copy (every other
thread, and with it the hope that it ever releases a lock). ``findings`` judges facts, and knows no process;
``refork.evidence`` collects them.

A finding is one sentence: what it is, where it is, and what to do about it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

HOOKS = "before_promote"


class Mode(StrEnum):
    """What a finding does to a promotion."""

    REFUSE = "refuse"
    WARN = "warn"
    ALLOW = "allow"


class Kind(StrEnum):
    """What a finding is about."""

    MARK = "mark"
    SECTION = "section"
    THREAD = "thread"
    NATIVE_THREAD = "native thread"
    CONNECTION = "connection"
    DATABASE = "database"
    DESCRIPTOR = "descriptor"
    PIPE = "pipe"
    DEVICE = "device"
    POOL = "pool"
    LOOP = "loop"
    LOCK = "lock"


# --- facts ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Thread:
    """A thread that Python knows. ``module``: of what it runs, as far as known; ``loop``: it runs an event loop."""

    name: str
    module: str = ""
    loop: bool = False


@dataclass(frozen=True, slots=True)
class NativeThread:
    """A thread that Python did not start, by the name that it has from its library; empty if it has none."""

    name: str


@dataclass(frozen=True, slots=True)
class Connection:
    """A connected stream socket; ``port`` is 0, and ``host`` a path or empty, for a unix socket."""

    fd: int
    host: str
    port: int = 0
    unix: bool = False

    @property
    def peer(self) -> str:
        """The other end, as one writes it."""
        if self.unix:
            return f"unix:{self.host}" if self.host else "an unnamed unix socket"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Descriptor:
    """Something else that is open: ``name`` is what the kernel calls it, a path or like ``eventpoll``."""

    fd: int
    name: str


@dataclass(frozen=True, slots=True)
class Facts:
    """What a process has that a fork would not carry, or would double.

    Attributes:
        threads: those that Python knows, without the main one.
        native: the others.
        connections: established ones.
        databases: SQLite files, open for writing.
        kernel: epoll, eventfd, io_uring and their like.
        pipes: ends whose other end is in another process.
        devices: of graphics processors.
        children: processes of ``multiprocessing``.
        loops: event loops that run in the main thread.
        locks: that nobody will release.
        marks: reasons that the application gave for being unsafe.
        sections: critical sections that were still held when the time was up.
        modules: imported ones.
    """

    threads: tuple[Thread, ...] = ()
    native: tuple[NativeThread, ...] = ()
    connections: tuple[Connection, ...] = ()
    databases: tuple[Descriptor, ...] = ()
    kernel: tuple[Descriptor, ...] = ()
    pipes: tuple[Descriptor, ...] = ()
    devices: tuple[Descriptor, ...] = ()
    children: tuple[str, ...] = ()
    loops: int = 0
    locks: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()
    sections: tuple[str, ...] = ()
    modules: frozenset[str] = frozenset()


# --- judgement --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Policy:
    """The settings ``fork_safety`` and ``fork_safety_allow``."""

    mode: Mode = Mode.REFUSE
    allowed: tuple[str, ...] = ()

    def allows_thread(self, name: str) -> bool:
        """Whether a thread of this name may be there."""
        return any(fnmatchcase(name, pattern) for pattern in self._of("thread"))

    def allows_module(self, module: str) -> bool:
        """Whether what this module, or a package around it, has may be there."""
        return any(f"{module}.".startswith(f"{allowed}.") for allowed in self._of("module"))

    def allows_address(self, connection: Connection) -> bool:
        """Whether a connection to this peer may be open."""
        if connection.unix:
            return (
                bool(connection.host)
                and {connection.host, f"unix:{connection.host}"}.intersection(self._of("address")) != set()
            )
        hosts = {connection.host, f"[{connection.host}]", connection.peer}
        return not hosts.isdisjoint(self._of("address"))

    def _of(self, kind: str) -> Iterator[str]:
        for entry in self.allowed:
            found, _, pattern = entry.partition(":")
            if found == kind:
                yield pattern


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that makes a fork unsafe: what and where it is, what to do, and the entry that would allow it."""

    kind: Kind
    what: str
    do: str
    allow: str = field(default="")

    def __str__(self) -> str:
        allowing = f", or set fork_safety_allow = [{self.allow!r}] if that does no harm" if self.allow else ""
        return f"{self.what}: {self.do}{allowing}"


def findings(facts: Facts, policy: Policy) -> tuple[Finding, ...]:
    """Return what makes a fork unsafe and is not allowed; the mode is the caller's to obey."""
    return (
        *_marks(facts),
        *_threads(facts, policy),
        *_native_threads(facts, policy),
        *_connections(facts, policy),
        *_descriptors(facts, policy),
        *_children(facts, policy),
        *_locks(facts),
    )


@dataclass(frozen=True, slots=True)
class _Trouble:
    """A library known to live badly with forks; ``threads`` are the beginnings of its native threads' names."""

    module: str
    title: str
    do: str
    threads: tuple[str, ...] = ()


_TROUBLES = (
    _Trouble(
        "grpc",
        "gRPC",
        f"close its channels in {HOOKS}, open them in after_worker_fork, and set GRPC_ENABLE_FORK_SUPPORT=1",
        ("grpc_", "default-executo", "resolver-execut", "event_engine", "timer_manager", "lifeguard"),
    ),
    _Trouble(
        "confluent_kafka",
        "librdkafka",
        f"flush and drop its producers and consumers in {HOOKS}, and make new ones in after_worker_fork",
        ("rdk:",),
    ),
    _Trouble(
        "torch",
        "PyTorch",
        "call torch.set_num_threads(1) before the first computation, or compute in the forked workers only",
        ("pt_", "OMP"),
    ),
    _Trouble("tensorflow", "TensorFlow", "load and use it in the forked workers only", ("tf_",)),
    _Trouble("tokenizers", "tokenizers", "set TOKENIZERS_PARALLELISM=false: its thread pool does not survive a fork"),
    _Trouble("pyarrow", "PyArrow", "call pyarrow.set_cpu_count(1) before its first use", ("AwsEventLoop",)),
    _Trouble("polars", "Polars", "set POLARS_MAX_THREADS=1, or use it in the forked workers only", ("polars",)),
    _Trouble("pymongo", "PyMongo", f"close its clients in {HOOKS} and make new ones in after_worker_fork"),
    _Trouble("sklearn", "scikit-learn (OpenMP)", "set OMP_NUM_THREADS=1"),
    _Trouble("numba", "Numba", "use a fork-safe threading layer (NUMBA_THREADING_LAYER=workqueue), or one thread"),
)

_PORTS = {
    3306: "MySQL",
    5432: "PostgreSQL",
    5672: "RabbitMQ",
    6379: "Redis",
    9092: "Kafka",
    9200: "Elasticsearch",
    11211: "memcached",
    27017: "MongoDB",
}

_GIVEN_NAME = re.compile(r"Thread-\d+")
"""What Python calls a thread that nobody has named: its number is another one in every process."""

_NATIVE_DO = f"end it in {HOOKS}, or let the library that started it do so"


def _marks(facts: Facts) -> Iterator[Finding]:
    for reason in facts.marks:
        do = "remove its cause, or set fork_safety = 'warn'"
        yield Finding(Kind.MARK, f"the application marked itself unsafe to fork from ({reason})", do)
    for reason in facts.sections:
        do = "leave it sooner, or raise promote_timeout"
        yield Finding(Kind.SECTION, f"the critical section {reason!r} was not left in time", do)
    if facts.loops:
        do = "it must have ended when the worker class comes back from its loop"
        yield Finding(Kind.LOOP, "an asyncio event loop is still running in the main thread", do)


def _threads(facts: Facts, policy: Policy) -> Iterator[Finding]:
    seen = [t for t in facts.threads if not policy.allows_thread(t.name) and not policy.allows_module(t.module)]
    for (name, module, loop), same in groupby(sorted(seen, key=_thread_key), key=_thread_key):
        count = len(list(same))
        which = f"thread {name!r}" if count == 1 else f"{count} threads {name!r}"
        where = f" of {module}" if module else ""
        what = f"{which}{where} {'is' if count == 1 else 'are'} running" + (" an event loop" if loop else "")
        trouble = _trouble_of(module)
        do = trouble.do if trouble is not None else _thread_advice(module)
        named = not module or _GIVEN_NAME.match(name) is None
        yield Finding(Kind.THREAD, what, do, f"thread:{name}" if named else f"module:{module}")


def _thread_key(thread: Thread) -> tuple[str, str, bool]:
    return thread.name, thread.module, thread.loop


def _thread_advice(module: str) -> str:
    if module.startswith("concurrent.futures"):
        return f"shut its executor down in {HOOKS} and make one in after_worker_fork"
    return f"end it in {HOOKS} and start it in after_worker_fork"


def _native_threads(facts: Facts, policy: Policy) -> Iterator[Finding]:
    unknown: list[str] = []
    for name, same in groupby(sorted(thread.name for thread in facts.native)):
        if policy.allows_thread(name):
            continue
        trouble = next((t for t in _TROUBLES if t.threads and name.startswith(t.threads)), None)
        if trouble is None:
            unknown += same
        elif not policy.allows_module(trouble.module):
            count = len(list(same))
            what = f"{_number(count, 'thread')} {name!r} of {trouble.title} {_be(count)} running"
            yield Finding(Kind.NATIVE_THREAD, what, trouble.do, f"thread:{name}")
    if unknown:
        yield from _unknown_threads(unknown, facts, policy)


def _unknown_threads(names: list[str], facts: Facts, policy: Policy) -> Iterator[Finding]:
    suspects = [t for t in _TROUBLES if t.module in facts.modules]
    if suspects and all(policy.allows_module(suspect.module) for suspect in suspects):
        return
    for name, same in groupby(names):
        count = len(list(same))
        shown = repr(name) if name else "without a name"
        what = f"{_number(count, 'native thread')} {shown}, not started by Python, {_be(count)} running"
        do = "; ".join(f"if it is of {suspect.title}, {suspect.do}" for suspect in suspects) or _NATIVE_DO
        by_module = f"module:{suspects[0].module}" if len(suspects) == 1 else ""
        yield Finding(Kind.NATIVE_THREAD, what, do, f"thread:{name}" if name else by_module)


def _connections(facts: Facts, policy: Policy) -> Iterator[Finding]:
    seen = [connection for connection in facts.connections if not policy.allows_address(connection)]
    for peer, group in groupby(sorted(seen, key=_peer), key=_peer):
        same = list(group)
        many = len(same) > 1
        service = f" ({_PORTS[same[0].port]})" if same[0].port in _PORTS else ""
        where = ", ".join(f"fd {connection.fd}" for connection in same)
        what = f"{len(same)} connections" if many else "a connection"
        do = f"close {'them' if many else 'it'} in {HOOKS}: two processes that speak on one connection corrupt it"
        allow = "" if same[0].unix and not same[0].host else f"address:{peer.removeprefix('unix:')}"
        yield Finding(Kind.CONNECTION, f"{what} to {peer}{service} {'are' if many else 'is'} open ({where})", do, allow)


def _peer(connection: Connection) -> str:
    return connection.peer


_KERNEL_DO = {
    "eventpoll": f"close the event loop or selector that it belongs to in {HOOKS}",
    "io_uring": f"close the event loop that it belongs to in {HOOKS}",
    "inotify": f"stop watching files in {HOOKS} and start in after_worker_fork",
}


def _descriptors(facts: Facts, policy: Policy) -> Iterator[Finding]:
    for database in facts.databases:
        if not policy.allows_module("sqlite3"):
            what = f"the SQLite database {database.name} is open (fd {database.fd})"
            do = f"close its connection in {HOOKS}: SQLite's locks do not survive a fork"
            yield Finding(Kind.DATABASE, what, do, "module:sqlite3")
    for name, group in groupby(sorted(facts.kernel, key=lambda d: d.name), key=lambda d: d.name):
        where = ", ".join(f"fd {descriptor.fd}" for descriptor in group)
        do = _KERNEL_DO.get(name, f"close it in {HOOKS}")
        yield Finding(Kind.DESCRIPTOR, f"an {name} descriptor is open ({where}), and all workers would share it", do)
    for pipe in facts.pipes:
        what = f"a {pipe.name} to another process is open (fd {pipe.fd})"
        yield Finding(Kind.PIPE, what, f"end the process or close the {pipe.name} in {HOOKS}")
    if facts.devices and not policy.allows_module("torch"):
        names = ", ".join(sorted({device.name for device in facts.devices}))
        do = "a CUDA context does not survive a fork, so use the graphics processor in the forked workers only"
        yield Finding(Kind.DEVICE, f"a graphics processor is in use ({names})", do)


def _children(facts: Facts, policy: Policy) -> Iterator[Finding]:
    if facts.children and not policy.allows_module("multiprocessing"):
        count = len(facts.children)
        names = ", ".join(facts.children)
        what = f"{_number(count, 'process', 'es')} of multiprocessing {_be(count)} alive ({names})"
        do = f"close and join the pool in {HOOKS} and make one in after_worker_fork"
        yield Finding(Kind.POOL, what, do, "module:multiprocessing")


def _locks(facts: Facts) -> Iterator[Finding]:
    for lock in facts.locks:
        do = "the thread that held it has ended without releasing it, so find out which and let it use `with`"
        yield Finding(Kind.LOCK, f"{lock} is held", do)


def _trouble_of(module: str) -> _Trouble | None:
    top = module.partition(".")[0]
    return next((trouble for trouble in _TROUBLES if trouble.module == top), None)


def _number(count: int, noun: str, plural: str = "s") -> str:
    return f"{count} {noun}{'' if count == 1 else plural}"


def _be(count: int) -> str:
    return "is" if count == 1 else "are"


def sentences(found: Iterable[Finding], *, most: int = 20, longest: int = 400) -> tuple[str, ...]:
    """Write findings so that they fit a message."""
    written = [sentence if len(sentence) <= longest else f"{sentence[: longest - 1]}…" for sentence in map(str, found)]
    if len(written) > most:
        return (*written[:most], f"and {len(written) - most} more")
    return tuple(written)
