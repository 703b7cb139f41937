"""reforkctl top, in a terminal of its own: what it shows, what its keys do, and how it leaves the terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from refork import api
from refork.ctl_picture import ASCII, Screen, Sort, View, picture
from tests.integration.server import state_of, until
from tests.integration.steered import MIB, PATIENCE, Running, environment, launch, make_status, memory
from tests.integration.test_ctl import CTL, assert_one_line, run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ENTERS, LEAVES = b"\x1b[?1049h", b"\x1b[?1049l"
HIDES, SHOWS = b"\x1b[?25l", b"\x1b[?25h"
STYLES = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass
class Terminal:
    """A terminal with reforkctl top in it."""

    process: subprocess.Popen[bytes]
    master: int
    slave: int
    before: list[Any]
    output: bytes = b""
    read: int = field(default=0)

    def wait_for(self, words: str) -> None:
        """Return when these words have been drawn since the last call."""
        deadline = time.monotonic() + PATIENCE
        while True:
            plain = STYLES.sub(b"", self.output[self.read :]).decode(errors="replace")
            if words in plain:
                self.read = len(self.output)
                return
            ready, _, _ = select.select([self.master], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"waited in vain for {words!r}; there is {plain[-3000:]!r}"
            self.output += os.read(self.master, 65536)

    def press(self, keys: str) -> None:
        """Type."""
        os.write(self.master, keys.encode())

    def drain(self) -> None:
        """Read what is there already."""
        while select.select([self.master], [], [], 0)[0]:
            self.output += os.read(self.master, 65536)

    def end(self) -> int:
        """Read what it writes until it has ended: a terminal that nobody reads stops who writes to it."""
        deadline = time.monotonic() + PATIENCE
        while self.process.poll() is None and time.monotonic() < deadline:
            if select.select([self.master], [], [], 0.05)[0]:
                self.output += os.read(self.master, 65536)
        self.drain()
        return self.process.wait(0)

    @property
    def is_as_before(self) -> bool:
        """Whether the line discipline, the screen and the cursor are what they were."""
        self.drain()
        return (
            termios.tcgetattr(self.slave) == self.before
            and self.output.rfind(LEAVES) > self.output.rfind(ENTERS)
            and self.output.rfind(SHOWS) > self.output.rfind(HIDES)
        )


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    """A server that takes commands and does nothing."""
    running = launch(tmp_path / "log")
    yield running
    if running.process.poll() is None:
        running.stop()


@pytest.fixture
def terminal(server: Running) -> Iterator[Terminal]:
    """Run it in a terminal of 120 columns and 40 lines."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 40, 120, 0, 0))
    before = termios.tcgetattr(slave)
    with subprocess.Popen(
        [*CTL, "top", "--interval", "0.1", "--socket", server.control],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=environment(TERM="xterm-256color", COLUMNS="", LINES=""),
    ) as process:
        yield Terminal(process, master, slave, before)
        if process.poll() is None:
            process.kill()
    os.close(master)
    os.close(slave)


def test_it_shows_what_is_saved_first(terminal: Terminal) -> None:
    """Then the sums, the server, and a line for each process."""
    terminal.wait_for("sorted by slot")
    text = STYLES.sub(b"", terminal.output).decode()
    assert text.lstrip().startswith("340.0 MiB saved by sharing   300.0 MiB in use, where 640.0 MiB would be without")
    for words in ("demo:app   sync   ready 2/2   generation 1", "monitor", "mold", "worker 0", "worker 1", "r refork"):
        assert words in text


@pytest.mark.parametrize("key", ["q", "Q", "\x04"])
def test_q_ends_it_and_restores_the_terminal(terminal: Terminal, key: str) -> None:
    """The screen is the shell's again, keys are echoed again."""
    terminal.wait_for("sorted by slot")
    assert termios.tcgetattr(terminal.slave) != terminal.before
    terminal.press(key)
    assert terminal.end() == 0
    assert terminal.is_as_before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
def test_every_signal_that_ends_it_restores_the_terminal(terminal: Terminal, number: signal.Signals) -> None:
    """The exit code tells which it was, as a shell would."""
    terminal.wait_for("sorted by slot")
    terminal.process.send_signal(number)
    assert terminal.end() == 128 + number
    assert terminal.is_as_before


def test_stopped_it_lends_the_terminal_to_the_shell(terminal: Terminal) -> None:
    """Ctrl-Z restores it, fg takes it again."""
    terminal.wait_for("sorted by slot")
    terminal.process.send_signal(signal.SIGTSTP)
    until(lambda: state_of(terminal.process.pid) == "T", what="it to stop")
    assert terminal.is_as_before
    terminal.read = len(terminal.output)
    terminal.process.send_signal(signal.SIGCONT)
    terminal.wait_for("sorted by slot")
    assert terminal.output.rfind(ENTERS) > terminal.output.rfind(LEAVES)
    terminal.press("q")
    assert terminal.end() == 0
    assert terminal.is_as_before


def test_r_asks_before_it_reforks(terminal: Terminal, server: Running) -> None:
    """Anything but y is no; y is sent like any other command."""
    terminal.wait_for("sorted by slot")
    for answer in ("n", "x", "\x1b"):
        terminal.press("r")
        terminal.wait_for("refork now? [y/n]")
        terminal.press(answer)
        terminal.wait_for("no refork")
    assert "command=refork" not in server.log_text()
    terminal.press("r")
    terminal.wait_for("refork now? [y/n]")
    terminal.press("y")
    terminal.wait_for("refork to generation 2 begins")
    assert "command=refork" in server.log_text()
    terminal.press("q")
    assert terminal.end() == 0


def test_keys_that_send_several_letters_are_no_letters(terminal: Terminal, server: Running) -> None:
    """F2 does not quit, F3 then Alt-y does not refork: they are keys without a meaning, and so no answer but no."""
    terminal.wait_for("sorted by slot")
    terminal.press("\x1bOQ")
    terminal.press("\x1b[1;2Q")
    terminal.press("\x1bOR")
    terminal.press("\x1by")
    terminal.press("r")
    terminal.wait_for("refork now? [y/n]")
    terminal.press("\x1by")
    terminal.wait_for("no refork")
    assert "command=refork" not in server.log_text()
    terminal.press("q")
    assert terminal.end() == 0


def test_s_goes_through_what_to_sort_by(terminal: Terminal) -> None:
    """And comes back to the slots."""
    for order in (*Sort, Sort.SLOT):
        terminal.wait_for(f"sorted by {order}")
        terminal.press("s")
    terminal.press("q")
    assert terminal.end() == 0


def test_it_outlives_the_server(terminal: Terminal, server: Running, tmp_path: Path) -> None:
    """It keeps what it knows, says that nobody answers, and goes on when somebody does."""
    terminal.wait_for("sorted by slot")
    server.stop()
    terminal.wait_for("trying again")
    again = launch(tmp_path / "log again", "--control", server.control)
    try:
        terminal.press("ry")
        terminal.wait_for("refork to generation 2 begins")
        terminal.press("q")
        assert terminal.end() == 0
        assert terminal.is_as_before
    finally:
        again.stop()


def test_it_fits_the_window(terminal: Terminal) -> None:
    """When the window gets smaller, it is drawn anew: fewer processes, the same keys."""
    terminal.wait_for("sorted by slot")
    fcntl.ioctl(terminal.slave, termios.TIOCSWINSZ, struct.pack("4H", 11, 70, 0, 0))
    terminal.process.send_signal(signal.SIGWINCH)
    terminal.wait_for("+3 more")
    terminal.wait_for("r refork")  # the keys stay in sight
    terminal.press("q")
    assert terminal.end() == 0


def test_without_a_terminal_it_is_drawn_once(server: Running) -> None:
    """A script, or a pipe, gets one picture without any control sequence."""
    result = run("top", "--socket", server.control)
    assert (result.returncode, result.stderr) == (0, "")
    assert "\x1b" not in result.stdout
    assert result.stdout.startswith("340.0 MiB saved by sharing")
    assert "worker 1" in result.stdout
    assert "quit" not in result.stdout


def test_without_a_server_it_says_so() -> None:
    """Before it touches the terminal."""
    assert_one_line(run("top", "--socket", "unix:@nobody-is-here"), code=3, says="no server listens")
    assert run("top", "--interval", "0.01").returncode == 2


def draw(status: api.Status | None, *, width: int = 120, height: int = 40, **choices: Any) -> list[str]:
    """Draw a status without a terminal."""
    view = View(**choices)
    if status is not None:
        view.take(status)
    return paint(view, width=width, height=height)


def paint(view: View, *, width: int, height: int) -> list[str]:
    """Draw what there is to see."""
    console = Console(width=width, height=height, highlight=False)
    with console.capture() as capture:
        console.print(picture(view, Screen(width, height, letters=ASCII)))
    return capture.get().splitlines()


def workers(*private: int) -> tuple[api.WorkerStatus, ...]:
    """Make up a worker for each size, in MiB."""
    return tuple(
        api.WorkerStatus(slot=slot, generation=1, pid=slot, state=api.WorkerState.READY, age=slot, requests=9 - slot,
                         memory=memory(rss=100 + size, shared=100))
        for slot, size in enumerate(private)
    )  # fmt: skip


@pytest.mark.parametrize(
    ("order", "slots"), [(Sort.SLOT, "0123"), (Sort.PRIVATE, "2103"), (Sort.REQUESTS, "0123"), (Sort.AGE, "3210")]
)
def test_the_largest_is_on_top(order: Sort, slots: str) -> None:
    """Whatever it is sorted by, except by slot."""
    lines = draw(make_status(workers=workers(2, 3, 50, 1)), sort=order)
    assert "".join(line.split()[1] for line in lines if line.startswith("worker ")) == slots


def test_bars_add_up() -> None:
    """Private, shared and saved fill the line, in their proportions."""
    bar = draw(make_status(totals=api.Totals(rss=100 * MIB, pss=40 * MIB, uss=10 * MIB, saved=60 * MIB)), width=100)[1]
    assert bar == "#" * 10 + "=" * 30 + "." * 60


def test_steps_of_a_rollout_are_told_as_they_come() -> None:
    """Those that are done with their durations, the one that is on marked, the others to come."""
    rollout = api.RolloutStatus(
        id="r", kind=api.RolloutKind.REFORK, trigger=api.Trigger.COMMAND, generation=2, phase=api.Phase.SEALING,
        started_at=0.0, seconds=1.0, steps=(api.StepStatus(api.Phase.SURGE, 0.25),),
    )  # fmt: skip
    (line,) = [line for line in draw(make_status(rollout=rollout)) if line.startswith("refork to")]
    assert re.sub(" +", " ", line) == "refork to generation 2: surge 0.25 s draining [sealing] canary rolling retiring "


@pytest.mark.parametrize("height", [5, 16, 24])
def test_no_line_is_wider_than_the_screen(height: int) -> None:
    """Nor is anything shown that a terminal would obey."""
    status = make_status(app="\x1b[2J" + "long" * 90, workers=workers(*range(64)), refusal="no" * 200)
    lines = draw(status, width=60, height=height)
    assert max(map(len, lines)) <= 60
    assert "\x1b[2J" not in "".join(lines)
    assert any(line.startswith("+") and line.endswith("more") for line in map(str.strip, lines))
    assert len(lines) <= max(height, 7)


@pytest.mark.parametrize("width", [30, 60, 110])
def test_no_message_takes_the_place_of_the_keys(width: int) -> None:
    """It has a line of its own, above them; so has the server that does not answer."""
    view = View()
    view.take(make_status())
    view.tell("refused: " + "x" * 200)
    told, keys = paint(view, width=width, height=14)[-2:]
    assert told.startswith("refused: xxx")
    assert keys.startswith("r refork   s sort   q quit")
    view.lost = "unix:@refork/1 did not answer"
    told, keys = paint(view, width=width, height=14)[-2:]
    assert told.startswith("unix:@refork/1 did not answer"[: width - 1])
    assert keys.startswith("r refork   s sort   q quit")


def test_a_message_does_not_stay_for_ever() -> None:
    """A refork that has begun has ended some time: by then the line above says so."""
    view = View()
    view.take(make_status(age=100.0))
    view.tell("refork to generation 3 has begun")
    view.take(make_status(age=104.0))
    assert view.message == "refork to generation 3 has begun"
    view.take(make_status(age=106.0))
    assert not view.message
    view.tell("refused: no")
    view.take(make_status(age=1.0))  # it has started anew
    assert not view.message


def test_a_server_that_has_measured_nothing_is_drawn_too() -> None:
    """While it boots there are no figures."""
    status = make_status(monitor_memory=None, molds=(), workers=(), totals=None, last_rollout=None)
    assert draw(status)[0] == "nothing is measured yet"
    assert draw(None) == ["no status yet"]
