"""Collects the facts that ``refork.audit`` judges, from Python and from /proc/self (proc(5)).

What belongs to refork, to the log, or to whoever started the server is no evidence. Two things are waited for: threads
that were told to end, and the garbage collector, when a connection only waits for its last reference cycle. And one
thing is tried: libraries with threads of their own that know about forks (OpenBLAS is in every numpy) end them in a
handler that runs before each fork (pthread_atfork(3)); a rehearsed fork tells them from those that do not.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import os
import signal
import socket
import sys
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from refork import fork_safety
from refork.audit import Connection, Descriptor, Facts, NativeThread, Thread

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

THREAD_PATIENCE = 2.0
"""Seconds for threads that were told to end, an event loop's executor for one, to do so."""

_SECONDS_TO_REHEARSE = 5.0
_POLL = 0.01

_FORK_AWARE_THREADS = ("jemalloc_bg_thd", "libuv-worker")
"""Threads of libraries that begin anew in a forked process."""

_KERNEL_OBJECTS = frozenset({"eventpoll", "eventfd", "io_uring", "timerfd", "inotify", "signalfd", "fanotify"})
_GRAPHICS = ("/dev/nvidia", "/dev/dri/", "/dev/kfd")
_SQLITE = b"SQLite format 3\0"
_ESTABLISHED = 1  # TCP_ESTABLISHED of <netinet/tcp.h>, the first byte of TCP_INFO

_given: set[str] = set()


def remember_given() -> None:
    """Note what a freshly executed process has open: the surroundings that the server was started in."""
    _given.update(link for _, link in _open())


def collect(
    *, own: Iterable[int], log: Any, sections: tuple[str, ...] = (), patience: float = THREAD_PATIENCE
) -> Facts:
    """Look at this process; ``own`` are refork's descriptors, ``patience`` is for threads."""
    threads, native = _settled_threads(patience)
    ours = {*own, *_of_log(log), *_of_resource_tracker()}
    opened = _opened(ours)
    if threads or opened != Facts():
        gc.collect()
        opened = _opened(ours)
    return replace(
        opened,
        threads=threads,
        native=native,
        devices=tuple(Descriptor(fd, link) for fd, link in _strange(ours) if link.startswith(_GRAPHICS)),
        children=_children(),
        loops=_running_loops(),
        locks=tuple(_held_locks()),
        marks=fork_safety.marks(),
        sections=sections,
        modules=frozenset(name for name in sys.modules if "." not in name),
    )


def _opened(ours: set[int]) -> Facts:
    """Look at what garbage may still hold open."""
    return Facts(
        connections=_connections(ours),
        databases=tuple(_databases(ours)),
        kernel=tuple(_kernel(ours)),
        pipes=tuple(_pipes(ours)),
    )


# --- threads ----------------------------------------------------------------------------------------------------------


def _settled_threads(patience: float) -> tuple[tuple[Thread, ...], tuple[NativeThread, ...]]:
    deadline = time.monotonic() + patience
    while _python_threads() and time.monotonic() < deadline:
        time.sleep(_POLL)
    if any(_native_threads()):
        rehearse_fork()
        while any(_native_threads()) and not _python_threads() and time.monotonic() < deadline:
            time.sleep(_POLL)
    return tuple(_describe(thread) for thread in _python_threads()), tuple(_native_threads())


def rehearse_fork() -> None:
    """Fork a process that ends at once: native libraries' handlers run, Python's do not."""
    # PyDLL keeps the lock of the interpreter, which the only thread of the child then has.
    child = ctypes.PyDLL(None).fork()
    if child == 0:
        os._exit(0)
    if child < 0:
        return
    deadline = time.monotonic() + _SECONDS_TO_REHEARSE
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > deadline:  # a handler that hangs would hang in every worker
            os.kill(child, signal.SIGKILL)
        time.sleep(_POLL)


def _python_threads() -> list[threading.Thread]:
    main = threading.main_thread()
    return [thread for thread in threading.enumerate() if thread is not main]


def _native_threads() -> Iterator[NativeThread]:
    known = {thread.native_id for thread in _python_threads()} | {os.getpid()}
    for task in os.listdir("/proc/self/task"):
        if int(task) in known:
            continue
        try:
            with open(f"/proc/self/task/{task}/comm", encoding="utf-8", errors="replace") as file:
                name = file.read().rstrip("\n")
        except OSError:
            continue  # it has ended meanwhile
        if name not in _FORK_AWARE_THREADS:
            # One that was given no name has that of the process, which is ours.
            yield NativeThread("" if name.startswith("refork:") else name)


def _describe(thread: threading.Thread) -> Thread:
    return Thread(thread.name, _module_of(thread), loop=_runs_loop(thread))


def _module_of(thread: threading.Thread) -> str:
    """Name the module of what a thread runs: its target, a timer's function, or its class."""
    run: Any = getattr(thread, "_target", None) or getattr(thread, "function", None)
    run = getattr(run, "func", run)  # functools.partial
    if run is None and type(thread) not in {threading.Thread, threading._DummyThread}:  # noqa: SLF001
        run = type(thread)
    return str(getattr(run, "__module__", None) or "")


def _runs_loop(thread: threading.Thread) -> bool:
    frame = sys._current_frames().get(thread.ident or 0)  # noqa: SLF001 - documented, whatever its name
    while frame is not None:
        if frame.f_code.co_name == "run_forever" and "asyncio" in frame.f_code.co_filename:
            return True
        frame = frame.f_back
    return False


def _running_loops() -> int:
    events = sys.modules.get("asyncio.events")
    return int(events is not None and events._get_running_loop() is not None)  # noqa: SLF001 - as documented


# --- descriptors ------------------------------------------------------------------------------------------------------


def _open() -> Iterator[tuple[int, str]]:
    for name in os.listdir("/proc/self/fd"):
        try:
            yield int(name), os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue  # the descriptor of the listing itself


def _strange(ours: set[int]) -> list[tuple[int, str]]:
    """List what is open and neither ours nor the surroundings'."""
    everything = list(_open())
    standard = {link for fd, link in everything if fd <= 2 and not link.startswith("/")}  # noqa: PLR2004 - standard error
    return [(fd, link) for fd, link in everything if fd > 2 and fd not in ours and link not in standard | _given]  # noqa: PLR2004


def _connections(ours: set[int]) -> tuple[Connection, ...]:
    found: list[Connection] = []
    unnamed: list[Connection] = []
    for fd, link in _strange(ours):
        connection = _connection(fd) if link.startswith("socket:") else None
        if connection is not None:
            (unnamed if connection.unix and not connection.host else found).append(connection)
    # A pair with both ends here talks to nobody else; an odd one has its other end in another process.
    return (*found, *(unnamed[-1:] if len(unnamed) % 2 else ()))


def _connection(fd: int) -> Connection | None:
    try:
        with socket.socket(fileno=os.dup(fd)) as end:
            # Datagrams (syslog, statsd) are whole messages: two processes may send them on one socket.
            if end.type not in {socket.SOCK_STREAM, socket.SOCK_SEQPACKET}:
                return None
            peer = end.getpeername()
            if end.family == socket.AF_UNIX:
                return Connection(fd, _unix_name(peer) or _unix_name(end.getsockname()), unix=True)
            internet = end.family in {socket.AF_INET, socket.AF_INET6}
            if internet and end.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != _ESTABLISHED:
                return None  # the other side has hung up: nobody speaks on it any more
    except OSError:
        return None  # closed meanwhile, or not connected
    host, port = (peer[0], peer[1]) if isinstance(peer, tuple) else (str(peer), 0)
    return Connection(fd, str(host), int(port))


def _unix_name(name: str | bytes) -> str:
    return name if isinstance(name, str) else f"@{name.decode(errors='replace').strip(chr(0))}" if name else ""


def _databases(ours: set[int]) -> Iterator[Descriptor]:
    for fd, link in _strange(ours):
        if not link.startswith("/") or link.startswith(("/dev/", "/proc/", "/memfd:")):
            continue
        try:
            written = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
            if written and os.pread(fd, len(_SQLITE), 0) == _SQLITE:
                yield Descriptor(fd, link)
        except OSError:
            continue  # closed meanwhile, or not a file that can be read


def _kernel(ours: set[int]) -> Iterator[Descriptor]:
    for fd, link in _strange(ours):
        name = link.removeprefix("anon_inode:").strip("[]")
        if name in _KERNEL_OBJECTS and link.startswith("anon_inode:"):
            yield Descriptor(fd, name)


def _pipes(ours: set[int]) -> Iterator[Descriptor]:
    """List ends whose other end is not here: one that has both (a queue, a wake-up) talks to nobody else."""
    pipes = [(fd, link) for fd, link in _strange(ours) if link.startswith("pipe:")]
    ends: dict[str, set[int]] = {}
    for fd, link in pipes:
        try:
            ends.setdefault(link, set()).add(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE)
        except OSError:
            continue
    for fd, link in pipes:
        if ends.get(link) in ({os.O_RDONLY}, {os.O_WRONLY}):
            yield Descriptor(fd, "pipe")


def _of_log(log: Any) -> Iterator[int]:
    """Find what gunicorn's logs write to: a stream to syslog is shared by all workers, as it is with gunicorn."""
    for name in ("error_log", "access_log"):
        for handler in getattr(getattr(log, name, None), "handlers", ()):
            for attribute in ("socket", "sock", "stream"):
                try:
                    yield getattr(handler, attribute).fileno()
                except (AttributeError, OSError, ValueError):
                    continue


def _of_resource_tracker() -> Iterator[int]:
    """``multiprocessing`` has one pipe for all descendants of a process, on purpose."""
    tracker = getattr(sys.modules.get("multiprocessing.resource_tracker"), "_resource_tracker", None)
    fd = getattr(tracker, "_fd", None)
    if isinstance(fd, int):
        yield fd


# --- the rest ---------------------------------------------------------------------------------------------------------


def _children() -> tuple[str, ...]:
    process = sys.modules.get("multiprocessing.process")
    if process is None:
        return ()
    return tuple(
        child.name for child in process.active_children() if getattr(child, "_parent_pid", None) == os.getpid()
    )


def _held_locks() -> Iterator[str]:
    logging = sys.modules.get("logging")
    for reference in getattr(logging, "_handlerList", ()):
        handler = reference()
        lock = getattr(handler, "lock", None)
        if lock is not None:
            if not lock.acquire(blocking=False):
                yield f"the lock of the logging handler {handler!r}"
            else:
                lock.release()
    bootstrap: Any = sys.modules.get("_frozen_importlib")
    for name, reference in list(getattr(bootstrap, "_module_locks", {}).items()):
        if getattr(reference(), "owner", None) is not None:
            yield f"the import lock of {name}"
