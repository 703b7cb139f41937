"""Reads what ``refork.estimate`` needs from ``/proc``, without the looked-at processes noticing.

Nothing is stopped, nothing is written, nothing is attached to: ``/proc/PID/mem`` is read as a file. So workers go on
working while they are looked at, and a page that is written in that moment may look different from what it is; that
errs on the careful side. What is read is bounded, however large the server is: page *tables* are read for all private
memory (8 bytes a page), page *contents* for a sample.

Who may look is the kernel's decision (ptrace(2), "Ptrace access mode checking"): the same user, or CAP_SYS_PTRACE.
Contents need more than figures do; where Yama forbids them to all but root, the figures still make half an estimate.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import time
from array import array
from bisect import bisect_left
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from refork import memory, process_table
from refork.estimate import Estimate, Process, Role, Sample, estimate
from refork.prefork import tree_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

PAGE = os.sysconf("SC_PAGE_SIZE")
PAGES = 40_000
SECONDS = 2.0
MOST_PEERS = 7
"""A sampled page is compared with so many other workers at most."""

_FEW = 0.5
_SEVERAL = 2
_BATCH = 256
_ENTRIES = 1 << 16
_DIGEST = 16

# /proc/PID/pagemap: present, of no file, and mapped by this process alone (Documentation/admin-guide/mm/pagemap.rst).
_PRESENT, _OF_A_FILE, _EXCLUSIVE = 1 << 63, 1 << 61, 1 << 56
_MASK, _PRIVATE = _PRESENT | _OF_A_FILE | _EXCLUSIVE, _PRESENT | _EXCLUSIVE

_AREA = re.compile(rb"^([0-9a-f]+)-([0-9a-f]+) (....) \S+ \S+ [0-9]+ *(.*)$")
_DIRTY = re.compile(rb"^Private_Dirty: +([0-9]+) kB$")
_PYTHON = re.compile(rb"/(libpython[0-9][^/\n]*|[^/\n]+\.cpython-[0-9][^/\n]*)$", re.MULTILINE)
_SWAPPED = re.compile(rb"^SwapPss: +([0-9]+) kB$", re.MULTILINE)

type Progress = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and how much there is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How hard to look.

    Attributes:
        pages: how many pages may be read, at most.
        seconds: from the first look at a page to the second; 0 for no second look.
        progress: is told how far it is.
        chance: draws the pages.
    """

    pages: int = PAGES
    seconds: float = SECONDS
    progress: Progress = lambda _what, _done, _total: None
    chance: random.Random = field(default_factory=random.Random)


class EstimateError(Exception):
    """There can be no estimate; the sentence says why."""


class GoneError(EstimateError):
    """There is no such process, or no longer."""


class ForbiddenError(EstimateError):
    """The kernel does not let us look."""


@dataclass(frozen=True, slots=True)
class _Area:
    """A mapping of a process in which it has private pages."""

    start: int
    end: int
    name: bytes


class _Worker:
    """A worker whose pages are looked at."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        areas = list(parse_areas(_read(pid, "smaps")))
        self.stack = next((area.end for area in areas if area.name == b"[stack]"), 0)
        self.pages = array("Q")
        with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as pagemap:
            for area in areas:
                self.pages.extend(_private_pages(pagemap.fileno(), area))
        self._mem = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self._mem)

    def owns(self, address: int) -> bool:
        """Tell whether the page was private when the tables were read."""
        at = bisect_left(self.pages, address)
        return at < len(self.pages) and self.pages[at] == address

    def digest(self, address: int) -> bytes | None:
        """Hash a page; None when there is none."""
        try:
            contents = os.pread(self._mem, PAGE, address)
        except OSError:
            return None
        return hashlib.blake2b(contents, digest_size=_DIGEST).digest() if len(contents) == PAGE else None


@dataclass(frozen=True, slots=True)
class _Seen:
    """A page that was looked at once."""

    worker: _Worker
    address: int
    digest: bytes
    sample: Sample


def look(pid: int, effort: Effort) -> Estimate:
    """Look at the server whose master is ``pid``, or what has started it (a shell, an init).

    Raises:
        EstimateError: with a sentence.
    """
    master, processes = read_tree(pid)
    workers = [process.pid for process in processes if process.role is Role.WORKER]
    if not workers:
        advice = f"name the master of a server that forks its workers{_perhaps(pid)}"
        raise EstimateError(f"pid {master} has no child processes: {advice}")
    notes = [*_notes(master, processes)]
    samples: list[Sample] | None = []
    population = 0
    if len(workers) > 1:
        try:
            samples, population, forked = _compare(workers, effort)
        except PermissionError:
            samples = None
            notes.append(
                "page contents may not be read here (see /proc/sys/kernel/yama/ptrace_scope): run as root for a lower "
                "end of the range"
            )
        except (FileNotFoundError, ProcessLookupError) as error:
            raise GoneError("a worker ended while it was looked at: try again") from error
        else:
            if not forked:
                notes.append(
                    "the workers were not forked from one process but started one by one: equal objects have other "
                    "addresses in each, so pages cannot show what is equal, and the lower end is too low"
                )
            elif sum(sample.equal > 0 for sample in samples) < _FEW * len(samples):
                notes.append(
                    "what a worker made after its fork (a cache that fills at the first request) lies elsewhere in "
                    "each, and equal objects cannot be told from different ones: then the truth is near the upper end"
                )
    return estimate(processes, samples, sampled=population * PAGE, seconds=effort.seconds, notes=notes)


# --- the tree of processes --------------------------------------------------------------------------------------------


def read_tree(pid: int) -> tuple[int, list[Process]]:
    """Measure all processes of a server; return the pid of its master with them."""
    tree = tree_of(pid, process_table.read())
    if tree is None:
        raise GoneError(f"there is no process {pid}")
    roles = dict.fromkeys(tree.workers, Role.WORKER) | dict.fromkeys(tree.others, Role.OTHER)
    own = _measure(tree.master.pid, Role.MASTER)
    if own is None:
        raise GoneError(f"process {tree.master.pid} has ended, or is no program")
    below = [one for each, role in roles.items() if (one := _measure(each.pid, role)) is not None]
    return tree.master.pid, [own, *below]


def _perhaps(pid: int) -> str:
    """Name the master of a process that is a worker among others; empty if it is none."""
    table = process_table.read()
    tree = tree_of(table[pid].parent, table) if pid in table else None
    if tree is None or len(tree.workers) < _SEVERAL or pid not in {worker.pid for worker in tree.workers}:
        return ""
    return f", perhaps {tree.master.pid}"


def _measure(pid: int, role: Role) -> Process | None:
    """Measure one process; None when it is gone, a zombie or a kernel thread."""
    try:
        text = _read(pid, "smaps_rollup")
        command = _read(pid, "cmdline").replace(b"\0", b" ").decode(errors="replace").strip()
    except (FileNotFoundError, ProcessLookupError):
        return None
    except PermissionError as error:
        raise ForbiddenError(
            f"you may not look at process {pid}: run as root, as the server's user, or with CAP_SYS_PTRACE"
        ) from error
    sizes = memory.parse_rollup(text)
    if sizes is None:
        return None
    swapped = _SWAPPED.search(text)
    return Process(
        pid=pid,
        role=role,
        command=command,
        rss=sizes.rss,
        pss=sizes.pss,
        private=sizes.uss,
        swapped=int(swapped[1]) * memory.KIB if swapped else 0,
    )


def _runs_python(pid: int) -> bool:
    return is_python(process_table.program(pid), memory.contents(f"/proc/{pid}/maps"))


def is_python(program: str, maps: bytes) -> bool:
    """Tell from the file that it runs, or from what it has mapped: servers like uWSGI have Python as a library."""
    return "python" in os.path.basename(program) or _PYTHON.search(maps) is not None


def _read(pid: int, name: str) -> bytes:
    with open(f"/proc/{pid}/{name}", "rb") as file:
        return file.read()


def _notes(master: int, processes: Sequence[Process]) -> Iterator[str]:
    workers = [process for process in processes if process.role is Role.WORKER]
    if len(workers) == 1:
        yield "there is one worker: it has nobody to share with"
    if processes[0].command.startswith("refork:"):
        yield "this is a refork server already: reforkctl status knows better what a refork would win"
    elif not any(_runs_python(pid) for pid in (master, *(worker.pid for worker in workers))):
        yield "this is no Python program, and refork serves only those: take it as what there is to win in principle"
    swapped = sum(process.swapped for process in processes)
    if swapped:
        yield f"{swapped // memory.KIB // memory.KIB} MiB are swapped out, and not counted"


# --- the pages --------------------------------------------------------------------------------------------------------


def parse_areas(text: bytes) -> Iterator[_Area]:
    """Find the mappings with private pages in the contents of a ``smaps``, and the stack."""
    area, private = None, False
    for line in text.splitlines():
        if found := _AREA.match(line):
            area = _Area(int(found[1], 16), int(found[2], 16), found[4])
            private = found[3].endswith(b"p")
        elif area is not None and private and (found := _DIRTY.match(line)):
            if int(found[1]):
                yield area
            area = None


def _private_pages(pagemap: int, area: _Area) -> Iterator[int]:
    for start in range(area.start, area.end, _ENTRIES * PAGE):
        wanted = min(_ENTRIES, (area.end - start) // PAGE)
        data = os.pread(pagemap, wanted * 8, start // PAGE * 8)
        entries = array("Q")
        entries.frombytes(data[: len(data) // 8 * 8])
        yield from [start + index * PAGE for index, entry in enumerate(entries) if entry & _MASK == _PRIVATE]


def _compare(pids: Sequence[int], effort: Effort) -> tuple[list[Sample], int, bool]:
    """Draw pages and look at them: the samples, how many pages they stand for, and whether all workers are forks."""
    workers: list[_Worker] = []
    try:
        for done, pid in enumerate(pids):
            effort.progress("page tables", done, len(pids))
            workers.append(_Worker(pid))
        effort.progress("page tables", len(pids), len(pids))
        population = sum(len(worker.pages) for worker in workers)
        peers = min(MOST_PEERS, len(workers) - 1)
        number = min(population, max(1, effort.pages // (peers + 2)))
        began = time.monotonic()
        first = list(_first_look(_draw(workers, number=number, chance=effort.chance), workers, effort, peers=peers))
        samples = [seen.sample for seen in first]
        if effort.seconds:
            _wait(began + effort.seconds, progress=effort.progress)
            samples = list(_second_look(first, effort))
        return samples, population, len({worker.stack for worker in workers}) == 1
    finally:
        for worker in workers:
            worker.close()


def _draw(workers: Sequence[_Worker], *, number: int, chance: random.Random) -> list[tuple[_Worker, int]]:
    """Draw from all private pages of all workers, each with the same chance."""
    population = sum(len(worker.pages) for worker in workers)
    drawn = iter(sorted(chance.sample(range(population), number)))
    found: list[tuple[_Worker, int]] = []
    before, index = 0, next(drawn, population)
    for worker in workers:
        while index < before + len(worker.pages):
            found.append((worker, worker.pages[index - before]))
            index = next(drawn, population)
        before += len(worker.pages)
    chance.shuffle(found)
    return found


def _first_look(
    drawn: Sequence[tuple[_Worker, int]], workers: Sequence[_Worker], effort: Effort, *, peers: int
) -> Iterator[_Seen]:
    for done, (worker, address) in enumerate(drawn):
        if done % _BATCH == 0:
            effort.progress("pages compared", done, len(drawn))
        digest = worker.digest(address)
        if digest is not None:
            others = effort.chance.sample([other for other in workers if other is not worker], peers)
            yield _Seen(worker, address, digest, _among(others, address, digest))
    effort.progress("pages compared", len(drawn), len(drawn))


def _second_look(first: Sequence[_Seen], effort: Effort) -> Iterator[Sample]:
    for done, seen in enumerate(first):
        if done % _BATCH == 0:
            effort.progress("pages looked at again", done, len(first))
        yield replace(seen.sample, changed=seen.worker.digest(seen.address) != seen.digest)
    effort.progress("pages looked at again", len(first), len(first))


def _among(others: Iterable[_Worker], address: int, digest: bytes) -> Sample:
    compared = equal = 0
    held = False
    for other in others:
        compared += 1
        if other.digest(address) == digest:
            equal += 1
            held = held or not other.owns(address)
    return Sample(compared=compared, equal=equal, held=held)


def _wait(deadline: float, *, progress: Progress) -> None:
    total = max(0.0, deadline - time.monotonic())
    while (left := deadline - time.monotonic()) > 0:
        progress("waiting for changes", int(10 * (total - left)), int(10 * total))
        time.sleep(min(left, 0.1))
