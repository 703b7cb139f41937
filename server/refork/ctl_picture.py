"""What ``reforkctl top`` shows: the saved memory first, then who has it, then what can be done about it.

Pure: a status and what the person has chosen in, something that rich can print out. What a server says about itself
loses its control characters here, as in ``refork.ctl_table``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from rich.console import Group
from rich.table import Table
from rich.text import Text

from refork import api
from refork.ctl_table import gain_line, rollout_line
from refork.ctl_words import duration, plain, size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import RenderableType

UNICODE, ASCII = ("█", "▒", "·"), ("#", "=", ".")
"""The letters of bars: private, shared, saved. They differ in shape, so that colour is not needed to tell them."""

_STEPS = {
    api.RolloutKind.REFORK: (
        api.Phase.SURGE,
        api.Phase.DRAINING,
        api.Phase.SEALING,
        api.Phase.CANARY,
        api.Phase.ROLLING,
        api.Phase.RETIRING,
    ),
    api.RolloutKind.REBASE: (api.Phase.LOADING, api.Phase.CANARY, api.Phase.ROLLING, api.Phase.RETIRING),
}
_BAR = "PRIVATE, SHARED"
_NARROWEST_BAR = 10
_SECONDS_OF_RATE = 10.0
_SECONDS_OF_A_MESSAGE = 5.0
_HELP = "r refork   s sort   q quit"


class Sort(StrEnum):
    """What the workers are sorted by; each but the first with the largest on top."""

    SLOT = "slot"
    PRIVATE = "private"
    PSS = "PSS"
    REQUESTS = "requests"
    AGE = "age"

    def next(self) -> Sort:
        """Return the one that the key goes on to."""
        order = list(Sort)
        return order[(order.index(self) + 1) % len(order)]


@dataclass(frozen=True, slots=True)
class Screen:
    """What it is drawn on; a height of 0 is paper: as long as it takes, and without keys."""

    width: int
    height: int = 0
    letters: tuple[str, str, str] = UNICODE


@dataclass(slots=True)
class View:
    """What is on the screen: the last status, and what the person has chosen and been told."""

    sort: Sort = Sort.SLOT
    asking: bool = False
    message: str = ""
    lost: str = ""
    status: api.Status | None = None
    seen: list[tuple[float, int]] = field(default_factory=list)
    told: float = 0.0

    def tell(self, message: str) -> None:
        """Show a message for some seconds, by the server's clock: what was true then is not true for ever."""
        self.message = message
        self.told = 0.0 if self.status is None else self.status.age

    def take(self, status: api.Status) -> None:
        """Show this from now on."""
        if not self.told <= status.age <= self.told + _SECONDS_OF_A_MESSAGE:
            self.message = ""
        total = sum(slot.requests for slot in status.served)
        if self.seen and (total < self.seen[-1][1] or status.age < self.seen[-1][0]):
            self.seen.clear()  # it has started anew
        self.seen = [look for look in self.seen if look[0] > status.age - _SECONDS_OF_RATE] + [(status.age, total)]
        self.status, self.lost = status, ""

    @property
    def rate(self) -> float | None:
        """Requests a second, over the last few of them."""
        (first, before), (last, after) = (self.seen[0], self.seen[-1]) if self.seen else ((0.0, 0), (0.0, 0))
        return (after - before) / (last - first) if last > first else None


def picture(view: View, screen: Screen) -> RenderableType:
    """Draw everything: the headline, the sum, what goes on, the processes, what can be done."""
    status = view.status
    if status is None:
        return Text("no status yet")
    above: list[RenderableType] = [
        *_headline(status, screen),
        Text(""),
        *(_line(fact) for fact in _facts(view, status)),
        _steps(status),
        Text(""),
    ]
    below: list[RenderableType] = [_news(view), _footer(view)] if screen.height else []
    # Every one of these is one line high. In a low window they make room for the table: a header and two rows of it.
    above = above[: max(1, screen.height - len(below) - 3)] if screen.height else above
    room = max(1, screen.height - len(above) - len(below) - 1) if screen.height else None
    return Group(*above, _table(status, screen, sort=view.sort, rows=room), *below)


def _line(words: str, *, style: str = "") -> Text:
    return Text(plain(words), style=style, overflow="ellipsis", no_wrap=True)


def _headline(status: api.Status, screen: Screen) -> Iterator[Text]:
    totals, letters = status.totals, screen.letters
    if totals is None or not totals.rss:
        yield Text("nothing is measured yet", style="bold")
        return
    share = 100 * totals.saved / totals.rss
    yield Text.assemble(
        (f"{size(totals.saved)} saved by sharing", "bold green"),
        f"   {size(totals.pss)} in use, where {size(totals.rss)} would be without sharing: {share:.0f}% less",
        overflow="ellipsis",
        no_wrap=True,
    )
    once = max(0, totals.pss - totals.uss)
    parts = ((totals.uss, letters[0], "red"), (once, letters[1], "blue"), (totals.saved, letters[2], "green"))
    yield _bar(parts, whole=totals.rss, width=screen.width)
    yield Text.assemble(
        (letters[0], "red"), f" private {size(totals.uss)}   ",
        (letters[1], "blue"), f" shared, held once {size(once)}   ",
        (letters[2], "green"), f" saved {size(totals.saved)}",
        overflow="ellipsis", no_wrap=True,
    )  # fmt: skip


def _facts(view: View, status: api.Status) -> Iterator[str]:
    rate = "-" if view.rate is None else f"{view.rate:.0f}"
    yield (
        f"{status.app}   {status.worker_class}   ready {status.ready}/{status.wanted}   "
        f"generation {status.generation}   sealing {status.sealing}   {rate} requests/s   up {duration(status.age)}"
    )
    yield gain_line(status) + (f"; not now: {status.refusal}" if status.refusal else "")


def _steps(status: api.Status) -> Text:
    rollout = status.rollout or status.last_rollout
    if rollout is None:
        return Text(f"{status.phase}; no refork yet")
    if rollout.outcome is not None:
        ended = rollout.started_at + rollout.seconds
        ago = duration(max(0.0, status.started_at + status.age - ended))
        style = "red" if rollout.outcome is api.Outcome.FAILED else ""
        return _line(f"{status.phase}; last: {rollout_line(rollout)}, {ago} ago", style=style)
    done = {step.phase: step.seconds for step in rollout.steps}
    names = dict.fromkeys([*_STEPS.get(rollout.kind, ()), *done, rollout.phase])
    text = _line(f"{rollout.kind} to generation {rollout.generation}: ")
    for name in names:
        if name == rollout.phase:
            text.append(f"[{name}] ", style="bold reverse")
        elif name in done:
            text.append(f"{name} {done[name]:.2f} s  ", style="blue")
        else:
            text.append(f"{name}  ", style="dim")
    return text


def _table(status: api.Status, screen: Screen, *, sort: Sort, rows: int | None) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold", pad_edge=False)
    shown = [column for column in _COLUMNS if screen.width >= column.from_width]
    for column in shown:
        table.add_column(column.name, justify=column.justify, no_wrap=True, min_width=column.width)
    width = screen.width - sum(column.width + 1 for column in shown)
    if width >= _NARROWEST_BAR:
        table.add_column(_BAR if width >= len(_BAR) else "", no_wrap=True)
    lines = list(_lines(status, sort=sort))
    most = max((line.memory.rss for line in lines if line.memory is not None), default=0)
    fitting = lines if rows is None or len(lines) <= rows else lines[: rows - 1]
    for line in fitting:
        bar = [_memory_bar(line.memory, screen, whole=most, width=width)] if width >= _NARROWEST_BAR else []
        table.add_row(*[Text(plain(column.cell(line))) for column in shown], *bar)
    if len(fitting) < len(lines):
        table.add_row(Text(f"+{len(lines) - len(fitting)} more"))
    return table


@dataclass(frozen=True, slots=True)
class _Line:
    """One process."""

    name: str
    generation: str
    state: str
    requests: str
    age: float
    gained: int | None
    memory: api.Memory | None

    def size(self, name: str) -> str:
        """Write one of its sizes."""
        return "-" if self.memory is None else size(getattr(self.memory, name))


@dataclass(frozen=True, slots=True)
class _Column:
    """A column, and from which width of the screen on it is shown."""

    name: str
    cell: Callable[[_Line], str]
    width: int
    from_width: int = 0
    justify: Literal["left", "right"] = "right"


_COLUMNS = (
    _Column("PROCESS", lambda line: line.name, 10, justify="left"),
    _Column("GEN", lambda line: line.generation, 4),
    _Column("STATE", lambda line: line.state, 8, justify="left"),
    _Column("REQUESTS", lambda line: line.requests, 9, from_width=75),
    _Column("AGE", lambda line: duration(line.age), 12, from_width=100),
    _Column("RSS", lambda line: line.size("rss"), 11, from_width=90),
    _Column("PSS", lambda line: line.size("pss"), 11, from_width=50),
    _Column("PRIVATE", lambda line: line.size("uss"), 11),
    _Column("GAINED", lambda line: "" if line.gained is None else size(line.gained), 11, from_width=65),
)


def _lines(status: api.Status, *, sort: Sort) -> Iterator[_Line]:
    yield _Line("monitor", "", "", "", status.age, None, status.monitor_memory)
    for mold in sorted(status.molds, key=lambda mold: mold.generation):
        yield _Line("mold", str(mold.generation), mold.state, "", mold.age, None, mold.memory)
    for worker in sorted(status.workers, key=_KEYS[sort]):
        name, generation, requests = f"worker {worker.slot}", str(worker.generation), str(worker.requests)
        yield _Line(name, generation, worker.state, requests, worker.age, worker.gained, worker.memory)


_KEYS: dict[Sort, Callable[[api.WorkerStatus], tuple[float, int, int]]] = {
    Sort.SLOT: lambda worker: (0, worker.slot, worker.generation),
    Sort.PRIVATE: lambda worker: (-(worker.memory.uss if worker.memory else 0), worker.slot, worker.generation),
    Sort.PSS: lambda worker: (-(worker.memory.pss if worker.memory else 0), worker.slot, worker.generation),
    Sort.REQUESTS: lambda worker: (-worker.requests, worker.slot, worker.generation),
    Sort.AGE: lambda worker: (-worker.age, worker.slot, worker.generation),
}


def _memory_bar(memory: api.Memory | None, screen: Screen, *, whole: int, width: int) -> Text:
    if memory is None:
        return Text("")
    private, shared, _ = screen.letters
    parts = ((memory.uss, private, "red"), (memory.rss - memory.uss, shared, "blue"))
    return _bar(parts, whole=whole, width=width)


def _bar(parts: tuple[tuple[int, str, str], ...], *, whole: int, width: int) -> Text:
    """Draw parts of a whole; each ends where the sum up to it ends, so that rounding never adds up."""
    ends = [0]
    for part, _, _ in parts:
        ends.append(ends[-1] + max(0, part))
    cells = [min(width, round(width * end / max(whole, 1))) for end in ends]
    text = Text(no_wrap=True, overflow="crop")
    for (start, end), (_, letter, style) in zip(pairwise(cells), parts, strict=True):
        text.append(letter * (end - start), style=style)
    return text


def _news(view: View) -> Text:
    """Say what has just happened; an empty line when nothing has."""
    if view.lost:
        return _line(f"{view.lost}; trying again", style="bold red")
    return _line(view.message, style="bold")


def _footer(view: View) -> Text:
    if view.asking:
        return _line("refork now? [y/n] ", style="bold reverse")
    return _line(f"{_HELP}   sorted by {view.sort}", style="dim")
