"""What a process costs, in the kernel's own words.

RSS alone lies about forked workers: it counts a shared page once for each of them. ``/proc/PID/smaps_rollup`` has the
truth, at a price (the kernel walks the page tables under the process's memory lock): whoever calls decides how often.

Processes come and go while they are looked at. Every reader here answers None when there is nothing to read, and never
raises. The parsers are pure: bytes in, facts out. This module knows no monitor, no slot and no loop.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from refork import api

if TYPE_CHECKING:
    from collections.abc import Iterable

KIB = 1024

_ROLLUP_LINE = re.compile(rb"^([A-Z][A-Za-z_]*):[ \t]+([0-9]{1,18}) kB$", re.MULTILINE)
_BOOT_LINE = re.compile(rb"^btime ([0-9]{1,18})$", re.MULTILINE)

# proc(5) counts the fields of /proc/PID/stat from 1; the command's name, which may hold anything, is the second. What
# follows its closing parenthesis begins with field 3, the state; the start time is field 22.
_START_TICKS = 22 - 3


def read(pid: int) -> api.Memory | None:
    """Measure one process; None when it is gone, a zombie, or not ours to read."""
    return parse_rollup(_contents(f"/proc/{pid}/smaps_rollup"))


def start_ticks(pid: int) -> int | None:
    """Tell when a process started, in clock ticks since boot: with the pid, this names a process for good."""
    return parse_start_ticks(_contents(f"/proc/{pid}/stat"))


def started_at(pid: int) -> float | None:
    """Tell when a process started, as a Unix time."""
    ticks = start_ticks(pid)
    boot = parse_boot_time(_contents("/proc/stat"))
    if ticks is None or boot is None:
        return None
    return boot + ticks / os.sysconf("SC_CLK_TCK")


def totals(memories: Iterable[api.Memory | None]) -> api.Totals:
    """Add up what could be measured."""
    known = [memory for memory in memories if memory is not None]
    rss = sum(memory.rss for memory in known)
    pss = sum(memory.pss for memory in known)
    return api.Totals(rss=rss, pss=pss, uss=sum(memory.uss for memory in known), saved=rss - pss)


def parse_rollup(text: bytes) -> api.Memory | None:
    """Read the contents of a ``smaps_rollup``; None unless every figure that is needed is there."""
    sizes = {name: int(kib) * KIB for name, kib in _ROLLUP_LINE.findall(text)}
    try:
        return api.Memory(
            rss=sizes[b"Rss"],
            pss=sizes[b"Pss"],
            uss=sizes[b"Private_Clean"] + sizes[b"Private_Dirty"],
            shared=sizes[b"Shared_Clean"] + sizes[b"Shared_Dirty"],
            private_dirty=sizes[b"Private_Dirty"],
        )
    except KeyError:
        return None


def parse_start_ticks(text: bytes) -> int | None:
    """Read field 22 of a ``/proc/PID/stat``, whatever the process calls itself."""
    _, closing, rest = text.rpartition(b")")
    fields = rest.split()
    if not closing or len(fields) <= _START_TICKS or not fields[_START_TICKS].isdigit():
        return None
    return int(fields[_START_TICKS])


def parse_boot_time(text: bytes) -> int | None:
    """Read the instant of boot from ``/proc/stat``."""
    found = _BOOT_LINE.search(text)
    return int(found[1]) if found else None


def _contents(path: str) -> bytes:
    """Read a file of /proc whole; nothing when there is nothing (any more).

    A process that ends between open and read answers ESRCH, one that belongs to somebody else EACCES or EPERM.
    """
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""
