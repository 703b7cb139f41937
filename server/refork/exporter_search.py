"""Which server the exporter watches, or why none; from a table of processes.

Pure. The sentences are read by whoever has just put the exporter beside a server: each names what to change.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from refork.prefork import choose, find_trees, tree_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from refork.prefork import Entry, Tree

_REFORK = "refork"


class State(StrEnum):
    """What the exporter does."""

    SEARCHING = "searching"
    WATCHING = "watching"
    FORBIDDEN = "forbidden"
    REFORK = "refork"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What is there.

    Attributes:
        tree: the server that is watched; None while there is none.
        servers: how many there are to choose from.
        reason: what keeps the exporter from its work, or what whoever reads its log should know; may be empty.
    """

    state: State
    tree: Tree | None = None
    servers: int = 0
    reason: str = ""


def search(table: Mapping[int, Entry], *, pid: int | None, watched: Entry | None, hiding: bool) -> Found:
    """Find the server to watch.

    Args:
        table: all processes that can be seen, but for the exporter's own.
        pid: of the master, if somebody has named it.
        watched: the master that is watched so far.
        hiding: whether there may be processes of others that cannot be seen.
    """
    if pid is not None:
        tree = tree_of(pid, table)
        if tree is None:
            return _nothing(table, f"there is no process {pid}", hiding=hiding)
        if not tree.workers:
            return Found(state=State.SEARCHING, reason=f"process {pid} has no children: --pid names a server's master")
        return _found(tree, servers=1)
    trees = find_trees(table)
    tree = choose(trees, watched=watched)
    if tree is not None:
        others = ", ".join(_brief(other) for other in trees if other is not tree)
        return _found(
            tree, servers=len(trees), reason=f"the largest; --pid chooses another: {others}" if others else ""
        )
    lack = (
        "no process has two or more children that run its own program: the server may not be up yet, or has one worker "
        "(then name its master with --pid)"
    )
    return _nothing(table, lack, hiding=hiding)


def _found(tree: Tree, *, servers: int, reason: str = "") -> Found:
    if tree.server == _REFORK:
        reason = "this is refork already, which tells all this itself (--metrics-bind): the exporter has nothing to do"
        return Found(state=State.REFORK, servers=servers, reason=reason)
    return Found(state=State.WATCHING, tree=tree, servers=servers, reason=reason)


def _nothing(table: Mapping[int, Entry], reason: str, *, hiding: bool) -> Found:
    if hiding:
        reason += "; /proc hides the processes of other users (hidepid): run the exporter as the server's user"
    elif not table:
        reason = (
            "no other process can be seen: set shareProcessNamespace: true in the spec of the pod, or run the exporter "
            "in the pid namespace of the server"
        )
    return Found(state=State.SEARCHING, reason=reason)


def _brief(tree: Tree) -> str:
    return f"{tree.server} pid={tree.master.pid} workers={len(tree.workers)}"
