"""Which processes are a prefork server: a master, its workers, and what else is below; from a table of processes.

Pure: ``refork.process_table`` reads the table from ``/proc``. Nobody asks a server what it is, so it is told by what
any prefork server has, in whatever language: a process whose children run one program and are alike in size.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

LEAST_RSS = 8 * 1024 * 1024
"""What is smaller is no worker that somebody looks for: an interpreter with nothing loaded has more, a shell less."""

LARGER = 2
"""A server has to be so many times as large as the one that is watched to take its place."""

_LEAST_WORKERS = 2
_LEAST_SHARE_OF_A_WORKER = 0.25
_SERVERS = frozenset({
    "refork", "gunicorn", "uvicorn", "hypercorn", "granian", "daphne", "uwsgi", "celery",
    "puma", "pitchfork", "unicorn", "nginx", "apache2", "httpd",
})  # fmt: skip
_WORD = re.compile(r"[^-_:.]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One process, as everybody may see it.

    Attributes:
        parent: its pid; 0 where the parent is outside the pid namespace.
        started: in clock ticks since boot: with the pid, this names a process for good.
        rss: in bytes, as roughly as the kernel counts it in passing.
        program: the file that it runs; empty where that may not be known.
        command: its command line, or the title that it gave itself.
    """

    pid: int
    parent: int
    started: int
    rss: int
    program: str = ""
    command: str = ""

    @property
    def identity(self) -> tuple[int, int]:
        """What no other process ever has."""
        return self.pid, self.started


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """A prefork server: its master, its workers, and the other processes below the master."""

    master: Entry
    workers: tuple[Entry, ...]
    others: tuple[Entry, ...]

    @property
    def rss(self) -> int:
        """What the workers have, summed: how large this server is, compared with others."""
        return sum(worker.rss for worker in self.workers)

    @property
    def processes(self) -> tuple[Entry, ...]:
        """All of them, the master first."""
        return self.master, *self.workers, *self.others

    @property
    def server(self) -> str:
        """What it is called, in one word: ``gunicorn``, ``uwsgi``, or its program."""
        return server_name(self.master)

    @property
    def program(self) -> str:
        """The program that its workers run, without its folder: ``python3.13``…; empty where that may not be known."""
        return _base(self.workers[0].program) if self.workers else ""


def tree_of(pid: int, table: Mapping[int, Entry]) -> Tree | None:
    """Make the tree whose master is ``pid``, or what that has started (a shell, an init); None if there is no such."""
    below = _children(table)
    return _tree(table[_unwrap(pid, table, below)], below) if pid in table else None


def find_trees(table: Mapping[int, Entry]) -> list[Tree]:
    """Find all prefork servers with two workers at least; that whose workers are largest comes first."""
    below = _children(table)
    trees = [_tree(table[pid], below) for pid in below if pid in table]
    return sorted(filter(_is_server, trees), key=lambda tree: (-tree.rss, tree.master.identity))


def choose(trees: Sequence[Tree], *, watched: Entry | None) -> Tree | None:
    """Choose the largest; but stay with the one that is ``watched``, unless another is much larger.

    Sizes change while servers boot and work: who goes by them alone changes his mind all the time.
    """
    if not trees:
        return None
    same = [tree for tree in trees if watched is not None and tree.master.identity == watched.identity]
    return same[0] if same and same[0].rss * LARGER >= trees[0].rss else trees[0]


def pick_workers(children: Sequence[Entry]) -> tuple[Entry, ...]:
    """Tell workers from helpers: they run the program that most children run, and none is much smaller than others."""
    if not children:
        return ()
    weight: Counter[str] = Counter()
    for child in children:
        weight[child.program] += child.rss
    most = max(weight, key=weight.__getitem__)
    same = [child for child in children if child.program == most]
    least = _LEAST_SHARE_OF_A_WORKER * max(child.rss for child in same)
    return tuple(child for child in same if child.rss >= least)


def server_name(master: Entry) -> str:
    """Name a server by the first word of its command line or title that is known, or else by its program."""
    for word in re.split(r"[\0\s]+", master.command):
        name = _WORD.match(_base(word).lower())
        if name is not None and name[0] in _SERVERS:
            return name[0]
    return _base(master.program) or "unknown"


def _base(path: str) -> str:
    return path.rpartition("/")[2]


def _tree(master: Entry, below: Mapping[int, Sequence[Entry]]) -> Tree:
    children = below.get(master.pid, [])
    workers = pick_workers(children)
    known = {master, *workers}
    others = tuple(each for each in _descendants(master, below) if each not in known)
    return Tree(master=master, workers=workers, others=others)


def _is_server(tree: Tree) -> bool:
    """Whether somebody who looks for a server means this: a shell, an init, a supervisor run other programs."""
    workers = tree.workers
    return (
        len(workers) >= _LEAST_WORKERS
        and workers[0].program == tree.master.program
        and all(worker.rss >= LEAST_RSS for worker in workers)
    )


def _unwrap(pid: int, table: Mapping[int, Entry], below: Mapping[int, Sequence[Entry]]) -> int:
    """Step over a shell, an init or a launcher: one child, of another program, that has children itself."""
    wrappers: set[int] = set()
    while pid not in wrappers:
        wrappers.add(pid)
        children = below.get(pid, [])
        if len(children) == 1 and below.get(children[0].pid) and children[0].program != table[pid].program:
            pid = children[0].pid
    return pid


def _children(table: Mapping[int, Entry]) -> dict[int, list[Entry]]:
    below: dict[int, list[Entry]] = {}
    for entry in sorted(table.values(), key=lambda entry: entry.pid):
        if entry.parent != entry.pid:
            below.setdefault(entry.parent, []).append(entry)
    return below


def _descendants(entry: Entry, below: Mapping[int, Sequence[Entry]]) -> Iterator[Entry]:
    """Name all that is below, once: a table that was read while pids were used anew may have circles."""
    found = {entry.pid}
    generation = [entry]
    while generation:
        generation = [each for parent in generation for each in below.get(parent.pid, []) if each.pid not in found]
        found.update(each.pid for each in generation)
        yield from generation
