"""``reforkctl``: look at a running server and tell it what to do.

It is run by people and by scripts, also inside containers that have little: so it starts fast (the web framework and
the table library are not imported unless needed), it says what is wrong in one line on standard error, and its exit
code tells whether it was refused (1), used wrongly (2), or found nobody to talk to (3).
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from typing import TYPE_CHECKING, NoReturn

import msgspec

from refork import __version__, api
from refork.address import AddressError, parse_unix
from refork.ctl_client import SECONDS_TO_BE_FOUND, Client, Found, RefusedError, UnreachableError, find_servers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from refork.address import UnixAddress

OK, REFUSED, USAGE, UNREACHABLE = 0, 1, 2, 3
INTERRUPTED = 130
_CODES: dict[type[Exception], int] = {RefusedError: REFUSED, AddressError: USAGE, UnreachableError: UNREACHABLE}

ENVIRONMENT = "REFORK_CONTROL"
SECONDS_TO_WAIT = 300.0
SECONDS_BETWEEN_LOOKS = 0.1

_LONGEST_NUMBER = 9

_WORDS = """\
a worker serves requests in a slot; a mold has the application loaded and only forks workers.
a refork makes a warm worker the mold of the next generation and renews all workers from it;
a rebase does so from a freshly loaded application (new code, new configuration).
RSS counts shared pages in full, PSS divides them by their users, USS is what a process shares with nobody.
"""

_EPILOG = f"""\
words:
{"".join(f"  {line}" for line in _WORDS.splitlines(keepends=True))}
examples:
  reforkctl status                     who serves, and what it costs
  reforkctl refork --wait              renew all workers from the warmest one, and watch
  reforkctl refork --slot 3 --wait     ... from the one in slot 3
  reforkctl rebase --wait              serve new code without dropping a request
  reforkctl workers 12                 serve with twelve workers from now on
  reforkctl --socket unix:@refork/812 status --json

which server:
  --socket ADDR, or the environment variable {ENVIRONMENT}, as in the server's setting: unix:@NAME or unix:/PATH.
  Without them, the one server that runs in this network namespace. Only root and the server's user may command.

exit codes:
  0 done   1 refused, or the rollout failed   2 wrong usage, or several servers   3 no server can be reached
"""


class AmbiguousError(Exception):
    """Several servers run, and none was named."""

    def __init__(self, found: Sequence[Found]) -> None:
        super().__init__(f"{len(found)} servers are running: choose one with --socket")
        self.found = found


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage around it."""

    def error(self, message: str) -> NoReturn:
        """Leave with the exit code for wrong usage."""
        self.exit(USAGE, f"reforkctl: {message} (try: reforkctl --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the result is the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        code = _run(arguments)
        sys.stdout.flush()
    except (RefusedError, AddressError, UnreachableError) as error:
        return _complain(str(error), code=_CODES[type(error)])
    except AmbiguousError as error:
        return _complain(str(error), *map(_describe, error.found), code=USAGE)
    except KeyboardInterrupt:
        return _complain("interrupted; what the server has accepted goes on", code=INTERRUPTED)
    except BrokenPipeError:
        # Who read us has stopped (`reforkctl status | head`). Python would flush once more at exit, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    return code


def _run(arguments: argparse.Namespace) -> int:
    client = Client(_address(getattr(arguments, "socket", None) or os.environ.get(ENVIRONMENT)))
    match arguments.command:
        case "status":
            return _status(client, as_json=arguments.json)
        case "refork":
            return _roll(client, "refork", api.ReforkCommand(slot=arguments.slot), arguments=arguments)
        case "rebase":
            return _roll(client, "rebase", api.RebaseCommand(), arguments=arguments)
        case _:
            _say(client.command("workers", api.WorkersCommand(count=arguments.count)).message)
            return OK


def _status(client: Client, *, as_json: bool) -> int:
    if as_json:
        sys.stdout.write(msgspec.json.format(client.raw_status(), indent=2).decode() + "\n")
        return OK
    status = client.status()
    from refork.ctl_table import show  # noqa: PLC0415  (the table library takes longer to import than all the rest)

    show(status)
    return OK


def _roll(client: Client, name: str, command: msgspec.Struct, *, arguments: argparse.Namespace) -> int:
    accepted = client.command(name, command)
    _say(accepted.message)
    if not (arguments.wait and accepted.operation):
        return OK
    return _follow(client, accepted.operation, seconds=arguments.timeout)


def _follow(client: Client, operation: str, *, seconds: float) -> int:
    """Tell each step of a rollout as it begins, until the rollout has ended."""
    deadline = time.monotonic() + seconds
    told = 0
    while True:
        rollout = client.operation(operation)
        phases = [step.phase for step in rollout.steps]
        if rollout.outcome is None:
            phases.append(rollout.phase)
        for phase in phases[told:]:
            _say(f"  {phase}")
        told = max(told, len(phases))
        if rollout.outcome is not None:
            return _conclude(rollout)
        if time.monotonic() >= deadline:
            sentence = f"{operation} is still {rollout.phase} after {seconds:g} s and goes on; see: reforkctl status"
            return _complain(sentence, code=REFUSED)
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _conclude(rollout: api.RolloutStatus) -> int:
    steps = ", ".join(f"{step.phase} {step.seconds:.2f}" for step in rollout.steps)
    if rollout.outcome is api.Outcome.SUCCEEDED:
        told = f" ({steps})" if steps else ""
        _say(f"{rollout.kind} succeeded: generation {rollout.generation} serves, after {rollout.seconds:.2f} s{told}")
        return OK
    reason = rollout.reason or "the server's log says why"
    return _complain(f"{rollout.kind} failed while {rollout.phase}: {reason}", code=REFUSED)


def _address(named: str | None) -> UnixAddress:
    if named:
        return parse_unix(named)
    found = find_servers()
    if not found:
        raise UnreachableError(
            "no server is running in this network namespace: start one with `refork APP`, run reforkctl in its "
            f"container, or name its control socket with --socket or {ENVIRONMENT}"
        )
    if len(found) > 1:
        raise AmbiguousError(found)
    return found[0].address


def _describe(found: Found) -> str:
    try:
        app = Client(found.address, timeout=SECONDS_TO_BE_FOUND).status().app
    except (UnreachableError, RefusedError):
        app = "?"
    return f"--socket {found.address} pid={found.pid} app={app}"


def _say(line: str) -> None:
    sys.stdout.write(_harmless(line) + "\n")
    sys.stdout.flush()  # who waits wants to see each step when it happens, also through a pipe


def _complain(sentence: str, *details: str, code: int) -> int:
    sys.stderr.write(f"reforkctl: {_harmless(sentence)}\n")
    sys.stderr.writelines(f"  {_harmless(detail)}\n" for detail in details)
    return code


def _harmless(text: str) -> str:
    """Take the power from control characters: what a server says is shown to a terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _parser() -> argparse.ArgumentParser:
    shared = _Parser(add_help=False)
    shared.add_argument(
        "--socket",
        metavar="ADDR",
        default=argparse.SUPPRESS,
        help="control socket of the server: unix:@NAME, unix:/PATH",
    )
    waiting = _Parser(add_help=False)
    waiting.add_argument("--wait", action="store_true", help="show each step, and return when the rollout has ended")
    waiting.add_argument(
        "--timeout", type=_seconds, default=SECONDS_TO_WAIT, metavar="SECONDS",
        help="with --wait: give up watching after so long; the rollout itself goes on (default: %(default)g)",
    )  # fmt: skip

    parser = _Parser(
        prog="reforkctl",
        description="Look at a running refork server, and tell it what to do.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[shared],
    )
    parser.add_argument("--version", action="version", version=f"reforkctl {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    status = commands.add_parser("status", parents=[shared], help="show all processes and what they cost")
    status.add_argument("--json", action="store_true", help="print what the server says, as JSON")
    refork = commands.add_parser("refork", parents=[shared, waiting], help="renew all workers from a warm one")
    refork.add_argument(
        "--slot", type=_slot, metavar="N", help="promote the worker in this slot (default: the warmest)"
    )
    commands.add_parser("rebase", parents=[shared, waiting], help="renew all workers from a freshly loaded application")
    workers = commands.add_parser("workers", parents=[shared], help="change the number of workers")
    workers.add_argument("count", type=_count, metavar="N", help="how many there should be")
    return parser


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds >= 0):
        raise argparse.ArgumentTypeError(f"not a duration in seconds: {text!r}")
    return seconds


def _slot(text: str) -> int:
    return _number(text, least=0)


def _count(text: str) -> int:
    return _number(text, least=1)


def _number(text: str, *, least: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= _LONGEST_NUMBER and least <= int(text) <= api.MOST):
        raise argparse.ArgumentTypeError(f"not a number from {least} to {api.MOST}: {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
