"""The memory of the control group that this process is in: what a container's limit is compared with.

There are two versions of control groups, a hybrid of both, and containers that see their group as the root or from
outside. ``find`` sorts that out once, from /proc/self/cgroup and /proc/self/mountinfo (cgroups(7)); ``read`` then opens
five small files. The parsers are pure. What is not there is None, and never an exception: a server without a readable
control group is a server without these figures.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

from refork import api

if TYPE_CHECKING:
    from collections.abc import Iterable

_UNLIMITED = 1 << 60
"""Version 1 has no word for "no limit": it is the highest number of pages that the kernel can count."""

_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a control group's files are; ``top`` is the mount point, above which nothing can be seen."""

    version: int
    directory: str
    top: str

    def upwards(self) -> list[str]:
        """Name the group's directory and those of its ancestors, as far as they can be seen."""
        found = [self.directory]
        while found[-1] != self.top:
            found.append(os.path.dirname(found[-1]))
        return found


@dataclass(frozen=True, slots=True)
class Mount:
    """A mounted hierarchy; ``root`` is the group that its mount point shows."""

    version: int
    root: str
    point: str
    controllers: frozenset[str]


def find(root: str = "/") -> Place | None:
    """Find the control group that counts the memory of this process; ``root`` is where the file system begins."""
    return _find(os.path.join(root, "proc/self"), root=root)


def find_of(pid: int) -> Place | None:
    """Find the control group of a process that we may look at, through its own view of the file system."""
    return _find(f"/proc/{pid}", root=f"/proc/{pid}/root")


def _find(process: str, *, root: str) -> Place | None:
    groups = parse_membership(_text(os.path.join(process, "cgroup")))
    for mount in parse_mounts(_text(os.path.join(process, "mountinfo"))):
        group = groups.get("memory" if mount.version == 1 else "")
        if group is None or (mount.version == 1 and "memory" not in mount.controllers):
            continue
        place = _nearest(Place(mount.version, *_locate(mount, group, root=root)))
        if place is not None:
            return place
    return None


def read(place: Place) -> api.Cgroup | None:
    """Read what the group is charged now; None when it cannot be read (any more)."""
    return _read_1(place) if place.version == 1 else _read_2(place)


def parse_membership(text: str) -> dict[str, str]:
    """Read a /proc/PID/cgroup: which group for which controller; the empty name is version 2."""
    groups = {}
    for line in text.splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        for controller in controllers.split(","):
            groups[controller] = path
    return groups


def parse_mounts(text: str) -> list[Mount]:
    """Read a /proc/PID/mountinfo (proc(5)): the hierarchies, version 1 first, because in a hybrid it has the memory."""
    mounts = []
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")
        if len(fields) > 4 and len(kind) > 2 and kind[0] in {"cgroup", "cgroup2"}:  # noqa: PLR2004 - see proc(5)
            version = 2 if kind[0] == "cgroup2" else 1
            mounts.append(Mount(version, _plain(fields[3]), _plain(fields[4]), frozenset(kind[2].split(","))))
    return sorted(mounts, key=lambda mount: mount.version)


def parse_stat(text: str) -> dict[str, int]:
    """Read a file of names and numbers, like memory.stat and memory.events."""
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and _is_number(pair[1])}  # noqa: PLR2004 - a pair


def parse_limit(text: str) -> int | None:
    """Read a limit; None for ``max``, for version 1's way to write that, and for nothing."""
    number = text.strip()
    return int(number) if _is_number(number) and int(number) < _UNLIMITED else None


def parse_pressure(text: str) -> dict[str, float]:
    """Read a memory.pressure: the ten second averages of ``some`` and ``full``, in percent."""
    found = re.findall(r"^(some|full) avg10=([0-9]+(?:\.[0-9]+)?)\b", text, re.MULTILINE)
    return {kind: float(share) for kind, share in found}


def _read_1(place: Place) -> api.Cgroup | None:
    usage = _text(os.path.join(place.directory, "memory.usage_in_bytes")).strip()
    if not _is_number(usage):
        return None
    stat = parse_stat(_text(os.path.join(place.directory, "memory.stat")))
    control = parse_stat(_text(os.path.join(place.directory, "memory.oom_control")))
    limits = [parse_limit(str(stat.get("hierarchical_memory_limit", "")))]
    limits.append(parse_limit(_text(os.path.join(place.directory, "memory.limit_in_bytes"))))
    return api.Cgroup(
        version=1,
        usage=int(usage),
        working_set=max(0, int(usage) - stat.get("total_inactive_file", 0)),
        limit=_lowest(limits),
        oom_kills=control.get("oom_kill", 0),
    )


def _read_2(place: Place) -> api.Cgroup | None:
    usage = _text(os.path.join(place.directory, "memory.current")).strip()
    if not _is_number(usage):
        return None
    stat = parse_stat(_text(os.path.join(place.directory, "memory.stat")))
    events = parse_stat(_text(os.path.join(place.directory, "memory.events")))
    pressure = parse_pressure(_text(os.path.join(place.directory, "memory.pressure")))
    return api.Cgroup(
        version=2,
        usage=int(usage),
        working_set=max(0, int(usage) - stat.get("inactive_file", 0)),
        limit=_lowest(parse_limit(_text(os.path.join(above, "memory.max"))) for above in place.upwards()),
        oom_kills=events.get("oom_kill", 0),
        psi_some_avg10=pressure.get("some"),
        psi_full_avg10=pressure.get("full"),
    )


def _locate(mount: Mount, group: str, *, root: str) -> tuple[str, str]:
    """Turn a group's name into its directory below the mount point, and name the mount point.

    A container without a namespace of its own for control groups is told its name as the host sees it, and shown
    its own group as the top; one whose group lies outside of what is mounted (``/..``) has to do with the top too.
    """
    top = os.path.join(root, mount.point.lstrip("/")).rstrip("/") or "/"
    base = mount.root.rstrip("/")
    inside = group == base or group.startswith(f"{base}/")
    parts = [part for part in group[len(base) :].split("/") if part] if inside else []
    return (top if ".." in parts else os.path.join(top, *parts)), top


def _nearest(place: Place) -> Place | None:
    """Go up to the first group that counts memory: the controller may be off below, and a name may not be shown."""
    counter = "memory.usage_in_bytes" if place.version == 1 else "memory.current"
    without = takewhile(lambda directory: not os.path.exists(os.path.join(directory, counter)), place.upwards())
    above = place.upwards()[len(list(without)) :]
    return Place(place.version, above[0], place.top) if above else None


def _lowest(limits: Iterable[int | None]) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < len("9" * 20)


def _plain(path: str) -> str:
    """Undo the escapes of mountinfo: a space is written as backslash 040."""
    return _ESCAPE.sub(lambda found: chr(int(found[1], 8)), path)


def _text(path: str) -> str:
    """Read a small file; nothing when it is not there, not ours to read, or not supported by this kernel."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
