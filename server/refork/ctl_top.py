"""``reforkctl top``: the live page, for those who have a terminal and no browser.

It asks the same client as every other command, draws the answer, and waits for a key or for the next look. Nothing that
it changes about the terminal outlives it: the alternate screen, the cursor and the line discipline are put back
whatever ends it, also while it is stopped in the background (SIGTSTP), when the terminal is the shell's again.

Without a terminal the picture (``refork.ctl_picture``) is drawn once.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import sys
import termios
import time
import tty
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live

from refork import api
from refork.ctl_client import SECONDS_TO_BE_FOUND, Client, RefusedError, UnreachableError
from refork.ctl_picture import ASCII, UNICODE, Screen, View, picture

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

OK = 0
_WIDTH_WITHOUT_TERMINAL = 120
_MOST_KEYS = 64

_ESCAPE = "\x1b"
_SEQUENCE = re.compile(rf"{_ESCAPE}(?:\[[0-?]*[ -/]*[@-~]?|O.?|.)?", re.DOTALL)
"""What arrows and function keys send (ECMA-48, 5.4), and Alt with a key: its letters are not what somebody pressed."""


def watch(client: Client, *, seconds: float) -> int:
    """Draw until told to stop; without a terminal, draw once."""
    view = View()
    view.take(client.status())
    if not (sys.stdin.isatty() and sys.stdout.isatty()) or Console().is_dumb_terminal:
        console = Console(highlight=False, width=max(_WIDTH_WITHOUT_TERMINAL, _columns()))
        console.print(picture(view, Screen(console.width, letters=_letters(console))))
        return OK
    # Who waits for a key wants an answer, or none, soon.
    return _Watch(Client(client.address, timeout=SECONDS_TO_BE_FOUND), view, seconds=seconds).run()


def _columns() -> int:
    columns = os.environ.get("COLUMNS", "")
    return int(columns) if columns.isascii() and columns.isdigit() else 0


def _letters(console: Console) -> tuple[str, str, str]:
    return UNICODE if console.encoding.lower().startswith("utf") else ASCII


# --- the terminal -----------------------------------------------------------------------------------------------------


class _Quit(Exception):
    """The person has seen enough."""


class _Watch:
    """One session at a terminal."""

    def __init__(self, client: Client, view: View, *, seconds: float) -> None:
        self._client = client
        self._view = view
        self._seconds = seconds
        self._console = Console(highlight=False)
        self._signal = 0

    def run(self) -> int:
        """Go on until the person, or a signal, says so; the result is the exit code."""
        with self._signals():
            while True:
                with _raw(), self._live() as live:
                    self._draw(live)
                    self._until_signal(live)
                if self._signal == signal.SIGTSTP:
                    os.kill(os.getpid(), signal.SIGSTOP)  # until SIGCONT
                    self._signal = 0
                    continue
                return 128 + self._signal if self._signal else OK

    def _live(self) -> Live:
        return Live(console=self._console, screen=True, auto_refresh=False)

    def _until_signal(self, live: Live) -> None:
        due = time.monotonic() + self._seconds
        while not self._signal:
            keys = self._keys(within=max(0.0, due - time.monotonic()))
            try:
                for key in keys:
                    self._obey(key)
            except _Quit:
                return
            if time.monotonic() >= due:
                self._look()
                due = time.monotonic() + self._seconds
            self._draw(live)

    def _keys(self, *, within: float) -> str:
        """Wait for keys; empty when none came in time. The end of the input is the end of the session."""
        ready, _, _ = select.select([sys.stdin, self._alarm], [], [], within)
        if self._alarm in ready:
            os.read(self._alarm, 64)
        if sys.stdin not in ready:
            return ""
        read = os.read(sys.stdin.fileno(), _MOST_KEYS).decode(errors="replace")
        return _SEQUENCE.sub(_ESCAPE, read) or "q"

    def _obey(self, key: str) -> None:
        view = self._view
        if view.asking:
            view.asking = False
            if key in "yY":
                self._refork()
            else:
                view.tell("no refork")
        elif key in "qQ\x03\x04":
            raise _Quit
        elif key in "rR":
            view.asking = True
        elif key in "sS":
            view.sort = view.sort.next()

    def _refork(self) -> None:
        try:
            self._view.tell(self._client.command("refork", api.ReforkCommand()).message)
        except (RefusedError, UnreachableError) as error:
            self._view.tell(f"refused: {error}")
        self._look()

    def _look(self) -> None:
        try:
            self._view.take(self._client.status())
        except (RefusedError, UnreachableError) as error:
            self._view.lost = str(error)

    def _draw(self, live: Live) -> None:
        width, height = self._console.size
        live.update(picture(self._view, Screen(width, height, letters=_letters(self._console))), refresh=True)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Let signals end the loop instead of the process; a change of the window's size only wakes it."""
        self._alarm, wakes = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        ending = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP)
        before = {number: signal.signal(number, self._caught) for number in ending}
        before[signal.SIGWINCH] = signal.signal(signal.SIGWINCH, lambda _number, _frame: None)
        wakeup = signal.set_wakeup_fd(wakes)
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(self._alarm)
            os.close(wakes)

    def _caught(self, number: int, _: FrameType | None) -> None:
        self._signal = number


@contextlib.contextmanager
def _raw() -> Iterator[None]:
    """Get keys one by one and unechoed."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        yield
    finally:
        # A terminal that is gone (SIGHUP) cannot be put back, and needs not be.
        with contextlib.suppress(termios.error):
            termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
