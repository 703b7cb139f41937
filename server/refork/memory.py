"""What a process costs, in the kernel's own words.

RSS alone lies about forked workers: it counts a shared page once for each of them. ``/proc/PID/smaps_rollup`` has the
truth, at a price (the kernel walks the page tables under the process's memory lock): whoever calls decides how often.

Processes come and go while they are looked at. Every reader here answers None when there is nothing to read, and never
raises. The parsers are pure: bytes in, facts out. This module knows no monitor, no slot and no loop.
"""

from __future__ import annotations

import os
import re
from functools import cache
from typing import TYPE_CHECKING

from refork import api

if TYPE_CHECKING:
    from collections.abc import Iterable

KIB = 1024

_ROLLUP_LINE = re.compile(rb"^([A-Z][A-Za-z_]*):[ \t]+([0-9]{1,18}) kB$", re.MULTILINE)
_BOOT_LINE = re.compile(rb"^btime ([0-9]{1,18})$", re.MULTILINE)

# proc(5) counts the fields of /proc/PID/stat from 1; what ``stat_fields`` returns begins with the third.
_START_TICKS = 22 - 3
_MINOR_FAULTS, _USER_TICKS, _SYSTEM_TICKS, _THREADS = 10 - 3, 14 - 3, 15 - 3, 20 - 3

_TICK = 1 / os.sysconf("SC_CLK_TCK")


def read(pid: int) -> api.Memory | None:
    """Measure one process; None when it is gone, a zombie, or not ours to read."""
    return parse_rollup(contents(f"/proc/{pid}/smaps_rollup"))


def start_ticks(pid: int) -> int | None:
    """Tell when a process started, in clock ticks since boot: with the pid, this names a process for good."""
    return parse_start_ticks(contents(f"/proc/{pid}/stat"))


def started_at(pid: int) -> float | None:
    """Tell when a process started, as a Unix time."""
    ticks = start_ticks(pid)
    boot = _boot_time()
    if ticks is None or boot is None:
        return None
    return boot + ticks * _TICK


def process(pid: int) -> api.Process | None:
    """Tell what else there is to know about one process; None when it is gone."""
    return parse_stat(contents(f"/proc/{pid}/stat"), boot=_boot_time() or 0, fds=_count_fds(pid))


def totals(memories: Iterable[api.Memory | None]) -> api.Totals:
    """Add up what could be measured."""
    known = [memory for memory in memories if memory is not None]
    rss = sum(memory.rss for memory in known)
    pss = sum(memory.pss for memory in known)
    uss = sum(memory.uss for memory in known)
    return api.Totals(rss=rss, pss=pss, uss=uss, saved=rss - pss, shared_ratio=1 - uss / rss if rss else 0.0)


def parse_rollup(text: bytes) -> api.Memory | None:
    """Read the contents of a ``smaps_rollup``; None unless every figure that is needed is there.

    The others came to the kernel one after the other (KSM with 6.6): what it does not tell is 0.
    """
    sizes = {name: int(kib) * KIB for name, kib in _ROLLUP_LINE.findall(text)}
    try:
        return api.Memory(
            rss=sizes[b"Rss"],
            pss=sizes[b"Pss"],
            uss=sizes[b"Private_Clean"] + sizes[b"Private_Dirty"],
            shared=sizes[b"Shared_Clean"] + sizes[b"Shared_Dirty"],
            private_dirty=sizes[b"Private_Dirty"],
            private_clean=sizes[b"Private_Clean"],
            shared_clean=sizes[b"Shared_Clean"],
            shared_dirty=sizes[b"Shared_Dirty"],
            pss_anon=sizes.get(b"Pss_Anon", 0),
            pss_file=sizes.get(b"Pss_File", 0),
            pss_shmem=sizes.get(b"Pss_Shmem", 0),
            swap=sizes.get(b"Swap", 0),
            ksm=sizes.get(b"KSM", 0),
        )
    except KeyError:
        return None


def parse_start_ticks(text: bytes) -> int | None:
    """Read field 22 of a ``/proc/PID/stat``, whatever the process calls itself."""
    fields = stat_fields(text)
    if len(fields) <= _START_TICKS or not fields[_START_TICKS].isdigit():
        return None
    return int(fields[_START_TICKS])


def parse_stat(text: bytes, *, boot: float, fds: int | None) -> api.Process | None:
    """Read a ``/proc/PID/stat``; ``boot`` is the instant that its start time is counted from."""
    fields = stat_fields(text)
    if len(fields) <= _START_TICKS:
        return None
    wanted = [fields[field] for field in (_MINOR_FAULTS, _USER_TICKS, _SYSTEM_TICKS, _THREADS, _START_TICKS)]
    if not all(field.isdigit() for field in wanted):
        return None
    faults, user, system, threads, started = map(int, wanted)
    return api.Process(
        minor_faults=faults,
        cpu_seconds=(user + system) * _TICK,
        threads=threads,
        fds=fds,
        started_at=boot + started * _TICK,
    )


def stat_fields(text: bytes) -> list[bytes]:
    """Split a ``/proc/PID/stat`` from field 3 on: the second, the command's name, may hold anything, also spaces."""
    _, closing, rest = text.rpartition(b")")
    return rest.split() if closing else []


def parse_boot_time(text: bytes) -> int | None:
    """Read the instant of boot from ``/proc/stat``."""
    found = _BOOT_LINE.search(text)
    return int(found[1]) if found else None


@cache
def _boot_time() -> int | None:
    return parse_boot_time(contents("/proc/stat"))


def _count_fds(pid: int) -> int | None:
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return None


def contents(path: str) -> bytes:
    """Read a file of ``/proc`` whole; nothing when there is nothing (any more).

    A process that ends between open and read answers ESRCH, one that belongs to somebody else EACCES or EPERM.
    """
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""
