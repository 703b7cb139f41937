"""Keeps the application's directory of prometheus_client small, however many processes come and go.

In its multiprocess mode prometheus_client has files for each process that ever was, because what a counter has counted
must not be lost with the process that did. With reforks that is a few files more for each worker of each generation,
and every scrape of the application reads them all. So when a process has ended, what it has counted is added to one
file for its type, in the library's own format and with its own class, and the process's files go.

* Counters, histograms, summaries: values of the same key are added up. A histogram's buckets are not accumulated in
  the files, so that is right for them too.
* Gauges of the modes ``min``, ``max``, ``sum``, ``mostrecent``: the same, by the meaning of the mode.
* Gauges of ``live`` modes are removed, as the library's ``mark_process_dead()`` does.
* Gauges of the mode ``all`` name the process by its pid, so they cannot be added up. Those of the last processes stay.

The application may read at any moment, and fails when a file that it has just listed is gone. So a file is first
emptied, which the library reads as no values, and removed some seconds later. Between the new sum and the emptied files
lie microseconds in which a reader sees a value twice: there is no way to change two files at once. Therefore processes
that end together are taken together.

The directory belongs to the application, which may have fewer rights than the monitor: no link is followed, and what
is written is owned by whoever owns the files that it comes from. Nothing here is called in the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import stat
import struct
import time
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
MERGED = "refork"
"""What stands in the name of a merged file where the pid of a process stands in others."""

KEPT = 32
"""Processes that have ended whose gauges of the mode ``all`` are kept."""

SECONDS_TOGETHER = 1.0
"""Processes that end within this time are taken together."""

SECONDS_TO_READ = 10.0
"""A reader that has listed the directory has read its files after this time."""

LARGEST = 64 * 1024 * 1024
_TEMPORARY = ".refork.tmp"
_EMPTY = struct.pack("i", 8)  # the length that is in use: the header alone

type Value = tuple[float, float]
"""A value and its timestamp."""

_FILE = re.compile(r"(counter|histogram|summary|gauge_[a-z]+)_([0-9]+)\.db")


def _added(old: Value, new: Value) -> Value:
    return old[0] + new[0], max(old[1], new[1])


_MERGE: dict[str, Callable[[Value, Value], Value]] = {
    "counter": _added,
    "histogram": _added,
    "summary": _added,
    "gauge_sum": _added,
    "gauge_min": lambda old, new: min(old, new, key=lambda value: value[0]),
    "gauge_max": lambda old, new: max(old, new, key=lambda value: value[0]),
    "gauge_mostrecent": lambda old, new: max(old, new, key=lambda value: value[1]),
}


class Directory:
    """One such directory. Its methods block, and are to be called by one thread at a time."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._emptied: list[tuple[float, str]] = []
        self._kept: deque[str] = deque()

    def bury(self, pids: Collection[int], *, now: float) -> None:
        """Take in what processes have left that have ended; a pid that is in use again names somebody else's files."""
        left: dict[str, list[str]] = {}
        for kind, pid, name in self._files():
            if pid in pids and not _is_in_use(pid):
                left.setdefault(kind, []).append(name)
        for kind, names in sorted(left.items()):
            if kind in _MERGE:
                self._merge(kind, names, now=now)
            elif kind.startswith("gauge_live"):
                self._remove(names)
            elif kind == "gauge_all":
                self._kept.extend(names)
        while len(self._kept) > KEPT:
            self._remove_of_dead(self._kept.popleft())

    def sweep(self, *, now: float) -> None:
        """Remove the files that were emptied long enough ago for nobody to read them any more."""
        due = [name for at, name in self._emptied if now - at >= SECONDS_TO_READ]
        self._emptied = [(at, name) for at, name in self._emptied if name not in due]
        for name in due:
            # A new process may have got the number, and write to the file: then it is its own.
            if not any(True for _ in self._values(name)):
                self._remove([name])

    def _files(self) -> Iterator[tuple[str, int, str]]:
        with contextlib.suppress(OSError):
            for name in os.listdir(self.path):
                found = _FILE.fullmatch(name)
                if found is not None:
                    yield found[1], int(found[2]), name

    def _merge(self, kind: str, names: Iterable[str], *, now: float) -> None:
        merge = _MERGE[kind]
        target = f"{kind}_{MERGED}.db"
        values: dict[str, Value] = {}
        taken = []
        for name in (target, *names):
            try:
                for key, value in self._values(name):
                    values[key] = merge(values[key], value) if key in values else value
            except (OSError, RuntimeError, ValueError, struct.error):
                continue  # it is damaged: what it says is not to be trusted, and it is left to whoever looks into it
            if name != target:
                taken.append(name)
        if taken and self._write(target, values, owner=taken[0]):
            for name in taken:
                self._empty(name)
                self._emptied.append((now, name))

    def _values(self, name: str) -> Iterator[tuple[str, Value]]:
        """Read a file whole before anything is done with it; one that is not there has no values."""
        from prometheus_client.mmap_dict import MmapedDict  # noqa: PLC0415 - for applications that use it alone

        try:
            fd = self._open(name, os.O_RDONLY)
        except FileNotFoundError:
            return
        try:
            read: Any = MmapedDict.read_all_values_from_file
            found = list(read(f"/proc/self/fd/{fd}"))
        finally:
            os.close(fd)
        for key, value, timestamp, _ in found:
            yield key, (value, timestamp)

    def _write(self, target: str, values: dict[str, Value], *, owner: str) -> bool:
        """Put a file in place of another, whole."""
        from prometheus_client.mmap_dict import MmapedDict  # noqa: PLC0415 - for applications that use it alone

        temporary = os.path.join(self.path, _TEMPORARY)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            create: Any = MmapedDict
            file = create(f"/proc/self/fd/{fd}")
            for key, (value, timestamp) in values.items():
                file.write_value(key, value, timestamp)
            file.close()
            like = os.lstat(os.path.join(self.path, owner))
            with contextlib.suppress(PermissionError):
                os.fchown(fd, like.st_uid, like.st_gid)
            os.fchmod(fd, stat.S_IMODE(like.st_mode))
            os.rename(temporary, os.path.join(self.path, target))
        except OSError:
            return False
        finally:
            os.close(fd)
        return True

    def _empty(self, name: str) -> None:
        with contextlib.suppress(OSError):
            fd = self._open(name, os.O_WRONLY)
            try:
                os.pwrite(fd, _EMPTY, 0)
            finally:
                os.close(fd)

    def _open(self, name: str, mode: int) -> int:
        """Open a regular file of a sensible size, and nothing else that somebody may have put there."""
        fd = os.open(os.path.join(self.path, name), mode | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        found = os.fstat(fd)
        if stat.S_ISREG(found.st_mode) and found.st_size <= LARGEST:
            return fd
        os.close(fd)
        raise ValueError(f"{name} is no file of prometheus_client")

    def _remove(self, names: Iterable[str]) -> None:
        for name in names:
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(self.path, name))

    def _remove_of_dead(self, name: str) -> None:
        found = _FILE.fullmatch(name)
        if found is not None and not _is_in_use(int(found[2])):
            self._remove([name])


def _is_in_use(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")


def directory_of(cfg: Any) -> str | None:
    """Find the directory that molds and workers will use; None where the application has none."""
    named = cfg.env.get(VARIABLE) or os.environ.get(VARIABLE)
    return os.path.join(cfg.chdir, named) if named else None


class Undertaker:
    """Has a directory kept while the event loop runs; told of each process that has ended."""

    def __init__(self, path: str | None, *, log: Any) -> None:
        self._directory = None if path is None else Directory(path)
        self._log = log
        self._ended: set[int] = set()
        self._task: asyncio.Task[None] | None = None

    def ended(self, pid: int) -> None:
        """Take note of a process that has ended."""
        if self._directory is None:
            return
        self._ended.add(pid)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._work(self._directory))

    async def _work(self, directory: Directory) -> None:
        while self._ended:
            await asyncio.sleep(SECONDS_TOGETHER)
            pids, self._ended = self._ended, set()
            await self._quietly(directory.bury, pids)
            await asyncio.sleep(SECONDS_TO_READ)
            await self._quietly(directory.sweep)

    async def _quietly(self, act: Callable[..., None], *arguments: Any) -> None:
        try:
            await asyncio.to_thread(act, *arguments, now=time.monotonic())
        except Exception:  # noqa: BLE001 - the server serves on
            self._log.exception("the directory of prometheus_client could not be kept")
