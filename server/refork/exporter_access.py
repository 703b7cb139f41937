"""Why the kernel does not let us look at a process, and what would help: in a sentence for whoever writes the pod.

The rule is ptrace(2), "Ptrace access mode checking". It lets those look who have the same user and group, all of the
capabilities that the other has, and the other has not changed its user since it was executed; or who have
CAP_SYS_PTRACE. A container of a pod has nothing but the first. Which of them fails can be read from
``/proc/PID/status``, which the kernel shows to everybody.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from refork.memory import contents

_IDS = r"^{}:\s+(\d+)\s+(\d+)\s+(\d+)\s"
_UIDS, _GIDS = (re.compile(_IDS.format(name).encode(), re.MULTILINE) for name in ("Uid", "Gid"))
_PERMITTED, _EFFECTIVE = (
    re.compile(f"^{name}:\\s+([0-9a-f]{{1,16}})$".encode(), re.MULTILINE) for name in ("CapPrm", "CapEff")
)
_CAP_SYS_PTRACE = 1 << 19


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """Who a process is, to the kernel; ids are real, effective and saved ones, capabilities are sets of bits."""

    uids: tuple[int, int, int]
    gids: tuple[int, int, int]
    permitted: int
    effective: int


def obstacle(pid: int) -> str:
    """Tell why a process may not be looked at, and what to do; empty when it may, or is gone.

    To open ``smaps_rollup`` is to be checked; only to read it costs.
    """
    try:
        os.close(os.open(f"/proc/{pid}/smaps_rollup", os.O_RDONLY | os.O_CLOEXEC))
    except PermissionError:
        own, other = (parse_status(contents(f"/proc/{name}/status")) for name in ("self", pid))
        return explain(own, other)
    except OSError:
        return ""
    return ""


def parse_status(text: bytes) -> Credentials | None:
    """Read a ``/proc/PID/status``."""
    found = [pattern.search(text) for pattern in (_UIDS, _GIDS, _PERMITTED, _EFFECTIVE)]
    if None in found:
        return None
    uids, gids, permitted, effective = (match.groups() for match in found if match is not None)
    return Credentials(
        uids=(int(uids[0]), int(uids[1]), int(uids[2])),
        gids=(int(gids[0]), int(gids[1]), int(gids[2])),
        permitted=int(permitted[0], 16),
        effective=int(effective[0], 16),
    )


def explain(own: Credentials | None, other: Credentials | None) -> str:
    """Find the part of the rule that does not hold."""
    if own is None or other is None:
        return "the kernel does not let this process look at it: run the exporter as the server's user"
    uid, gid = own.uids[1], own.gids[1]
    if len(set(other.uids)) > 1 or len(set(other.gids)) > 1:
        return (
            "it runs with the rights of several users at once, and may be looked at by root with the capability "
            "SYS_PTRACE only"
        )
    if uid != other.uids[0]:
        return (
            f"it runs as user {other.uids[0]}, the exporter as user {uid}: give both containers the same runAsUser "
            f"({other.uids[0]}), or name it for both in the securityContext of the pod"
        )
    if gid != other.gids[0]:
        return (
            f"it runs as group {other.gids[0]}, the exporter as group {gid}: give both containers the same runAsGroup "
            f"({other.gids[0]}), or name it for both in the securityContext of the pod"
        )
    if other.permitted & ~own.effective:
        return (
            "it has capabilities that the exporter has not: take them from the server's container (capabilities: "
            "{drop: [ALL]} in its securityContext), or give the exporter's the same"
        )
    if own.effective & _CAP_SYS_PTRACE:
        return "a security module of the kernel (AppArmor, SELinux) forbids it: give both containers the same profile"
    return (
        f"it has changed its user since it was started (like gunicorn with --user), and is closed to user {uid} too: "
        f"start the server's container as that user (runAsUser: {uid}) and leave the change out; or a security module "
        "(AppArmor, SELinux) forbids it: give both containers the same profile"
    )
