"""``reforkctl estimate``: shows what ``refork.estimate`` makes of what ``refork.estimate_proc`` reads.

The result goes to standard output, how far it is to standard error, and only if somebody sits there.
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from refork.ctl_words import plain, size
from refork.estimate_proc import Effort, look

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refork.estimate import Estimate, Share
    from refork.estimate_proc import Progress as Tell

_UNLIMITED = 10_000
_LONGEST_COMMAND = 60
_COLUMNS = ("ROLE", "PID", "RSS", "PSS", "PRIVATE", "COMMAND")
_TO_THE_LEFT = frozenset({"ROLE", "COMMAND"})


def run(pid: int, *, pages: int, seconds: float, as_json: bool) -> None:
    """Make the estimate and print it. Raises ``EstimateError`` with a sentence."""
    with _progress() as tell:
        found = look(pid, Effort(pages=pages, seconds=seconds, progress=tell))
    if as_json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(found), indent=2).decode() + "\n")
        return
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _UNLIMITED)
    console.print(_table(found))
    console.print()
    for line in lines(found):
        console.print(Text(plain(line)), soft_wrap=True)


def _table(found: Estimate) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    for column in _COLUMNS:
        table.add_column(column, justify="left" if column in _TO_THE_LEFT else "right", no_wrap=True)
    for process in found.processes:
        sizes = map(size, (process.rss, process.pss, process.private))
        cells = (process.role, str(process.pid), *sizes, process.command[:_LONGEST_COMMAND])
        table.add_row(*[Text(plain(cell)) for cell in cells])
    return table


def lines(found: Estimate) -> Iterator[str]:
    """Make the lines under the table: what is used, what is equal, what could be won, and what that rests on."""
    workers = _counted(len(found.workers), "worker")
    everybody = f"{len(found.processes)} processes"
    yield f"used now:    {size(found.used)} by {everybody} (PSS; the sum of RSS is {size(found.rss)})"
    yield f"private:     {size(found.private)} in {workers}; the largest has {size(found.largest)} of it"
    if found.duplicate is not None:
        yield (
            f"duplicate:   {_share(found.duplicate)} of that need not exist: another worker has the same "
            f"({_counted(found.samples, 'page')} compared)"
        )
    if found.changing is not None:
        yield f"changing:    {_share(found.changing)} of it changed within {found.seconds:g} s"
    yield ""
    least, most = found.at_least, found.at_most
    yield f"with refork: {size(most.used)} to {size(least.used)}"
    yield f"  at least   {size(least.won)} won ({_part(least.won, found.used)}), counting only what is equal now"
    yield (
        f"  at most    {size(most.won)} won ({_part(most.won, found.used)}), if the workers do the same work, so that "
        "one worker's memory serves all"
    )
    yield ""
    for note in (*found.notes, "this is what there is now: look while the server does its usual work, not before"):
        yield f"note: {note}"


def _counted(number: int, thing: str) -> str:
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def _share(share: Share) -> str:
    return f"{100 * share.value:.1f}% (± {100 * share.margin:.1f})"


def _part(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f}%" if whole else "-"


@contextlib.contextmanager
def _progress() -> Iterator[Tell]:
    if not sys.stderr.isatty():
        yield lambda _what, _done, _total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=1)
        yield lambda what, done, total: progress.update(task, description=f"{what:22}", completed=done, total=total)
