"""Reads the table of all processes from ``/proc``: what everybody may see of them, and what the kernel lets us see.

Which program a process runs is shown to those who may look at its memory; who started when, and how large it is, to
all. Processes come and go while the table is read: what is gone is not in it.
"""

from __future__ import annotations

import os
import re

from refork.memory import contents, stat_fields
from refork.prefork import Entry

_PAGE = os.sysconf("SC_PAGE_SIZE")
_DEAD = frozenset({b"Z", b"X"})

# As proc(5) counts the fields of /proc/PID/stat, from the third on.
_STATE, _PARENT, _START_TICKS, _RSS = 3 - 3, 4 - 3, 22 - 3, 24 - 3

_HIDING = re.compile(rb"^\S+ \S+ \S+ \S+ /proc .* - proc \S+ \S*\bhidepid=([^,\s]+)", re.MULTILINE)
_NOT_HIDING = frozenset({b"0", b"off"})


def read() -> dict[int, Entry]:
    """Read them all, by pid, but for zombies. Raises ``OSError`` where there is no ``/proc`` to be read."""
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return {entry.pid: entry for pid in pids if (entry := _entry(pid)) is not None}


def is_hiding() -> bool:
    """Whether ``/proc`` is mounted so that processes of other users are not shown (``hidepid``, proc(5))."""
    return parse_hiding(contents("/proc/self/mountinfo"))


def parse_hiding(mounts: bytes) -> bool:
    """Read that from a ``/proc/PID/mountinfo``; of several mounts in one place the last one is seen."""
    found = _HIDING.findall(mounts)
    return bool(found) and found[-1] not in _NOT_HIDING


def parse(pid: int, stat: bytes, *, program: str, command: bytes) -> Entry | None:
    """Make an entry of a ``/proc/PID/stat`` and a ``/proc/PID/cmdline``; None for a zombie, and for nonsense."""
    fields = stat_fields(stat)
    if len(fields) <= _RSS or fields[_STATE] in _DEAD:
        return None
    numbers = [fields[field] for field in (_PARENT, _START_TICKS, _RSS)]
    if not all(number.isdigit() for number in numbers):
        return None
    parent, started, pages = map(int, numbers)
    words = command.replace(b"\0", b" ").decode(errors="replace").strip()
    return Entry(pid=pid, parent=parent, started=started, rss=pages * _PAGE, program=program, command=words)


def _entry(pid: int) -> Entry | None:
    stat = contents(f"/proc/{pid}/stat")
    return parse(pid, stat, program=program(pid), command=contents(f"/proc/{pid}/cmdline")) if stat else None


def program(pid: int) -> str:
    """Name the file that a process runs; empty where that may not be known."""
    try:
        return os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return ""
