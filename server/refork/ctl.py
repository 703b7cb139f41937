"""``reforkctl``: look at a running server and tell it what to do.

It is run by people and by scripts, also inside containers that have little: so it starts fast (the web framework and
the table library are not imported unless needed), it says what is wrong in one line on standard error, and its exit
code tells whether it was refused (1), used wrongly (2), or found nobody to talk to (3).
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from refork import __version__, api
from refork.address import AddressError, parse_unix
from refork.arguments import USAGE, Parser, number, pid, seconds, seconds_from
from refork.ctl_client import SECONDS_TO_BE_FOUND, Client, Found, RefusedError, UnreachableError, find_servers
from refork.ctl_remote import SCHEMES, Remote, parse_url
from refork.ctl_words import plain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from refork.address import UnixAddress

OK, REFUSED, UNREACHABLE = 0, 1, 3
INTERRUPTED = 130
_CODES: dict[type[Exception], int] = {RefusedError: REFUSED, AddressError: USAGE, UnreachableError: UNREACHABLE}

_CHANGING_NOTHING = frozenset({"status", "top", "estimate"})

ENVIRONMENT = "REFORK_CONTROL"
SECONDS_TO_WAIT = 300.0
SECONDS_BETWEEN_LOOKS = 0.1
SECONDS_BETWEEN_SCREENS = 1.0
SHORTEST_INTERVAL = 0.1

PAGES_TO_READ = 40_000
MOST_PAGES_TO_READ = 1_000_000
SECONDS_TO_LOOK = 2.0

_REMOTE = (
    ("--url", "URL", "the server instead, over TCP: https://HOST:PORT"),
    ("--token-file", "FILE", "with --url: the token to show is in this file"),
    ("--ca", "FILE", "with --url: trust this authority (PEM) instead of the system's"),
    ("--cert", "FILE", "with --url: show this certificate (PEM)"),
    ("--key", "FILE", "with --cert: its key, if it is in another file"),
)

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
  reforkctl top                        ... live, with a key to refork
  reforkctl refork --wait              renew all workers from the warmest one, and watch
  reforkctl refork --slot 3 --wait     ... from the one in slot 3
  reforkctl rebase --wait              serve new code without dropping a request
  reforkctl doctor                     is a worker safe to fork from? promotes one on trial
  reforkctl workers 12                 serve with twelve workers from now on
  reforkctl --socket unix:@refork/812 status --json
  reforkctl estimate --pid 4711        what refork could win for the gunicorn, uvicorn, uWSGI ... of that pid

which server:
  --socket ADDR, or the environment variable {ENVIRONMENT}, as in the server's setting: unix:@NAME or unix:/PATH.
  Without them, the one server that runs in this network namespace. Only root and the server's user may command.
  --url https://HOST:PORT (or {ENVIRONMENT} with an URL) is a server that has --control-tcp; --token-file, --ca, --cert
  and --key show who you are and whom you trust.

exit codes:
  0 done   1 refused, failed, or found by doctor   2 wrong usage, or several servers   3 no server can be reached
  130 interrupted by Ctrl-C
"""


class AmbiguousError(Exception):
    """Several servers run, and none was named."""

    def __init__(self, found: Sequence[Found]) -> None:
        super().__init__(f"{len(found)} servers are running: choose one with --socket")
        self.found = found


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
        goes_on = "" if arguments.command in _CHANGING_NOTHING else "; what the server has accepted goes on"
        return _complain(f"interrupted{goes_on}", code=INTERRUPTED)
    except BrokenPipeError:
        # Who read us has stopped (`reforkctl status | head`). Python would flush once more at exit, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    return code


def _run(arguments: argparse.Namespace) -> int:
    if arguments.command == "estimate":
        return _estimate(arguments)
    client = Client(_server(arguments))
    match arguments.command:
        case "status":
            return _status(client, as_json=arguments.json)
        case "top":
            from refork.ctl_top import watch  # noqa: PLC0415  (see _status)

            return watch(client, seconds=arguments.interval)
        case "refork":
            refork = api.ReforkCommand(slot=arguments.slot, reason=arguments.reason)
            return _roll(client, "refork", refork, arguments=arguments)
        case "doctor":
            doctor = api.DoctorCommand(slot=arguments.slot, reason=arguments.reason)
            return _examine(client, doctor, seconds=arguments.timeout)
        case "rebase":
            return _roll(client, "rebase", api.RebaseCommand(reason=arguments.reason), arguments=arguments)
        case _:
            workers = api.WorkersCommand(count=arguments.count, reason=arguments.reason)
            _say(client.command("workers", workers).message)
            return OK


def _status(client: Client, *, as_json: bool) -> int:
    if as_json:
        sys.stdout.write(msgspec.json.format(client.raw_status(), indent=2).decode() + "\n")
        return OK
    status = client.status()
    from refork.ctl_table import show  # noqa: PLC0415  (the table library takes longer to import than all the rest)

    show(status)
    return OK


def _estimate(arguments: argparse.Namespace) -> int:
    from refork import ctl_estimate, estimate_proc  # noqa: PLC0415  (see _status)

    try:
        ctl_estimate.run(arguments.pid, pages=arguments.pages, seconds=arguments.seconds, as_json=arguments.json)
    except estimate_proc.GoneError as error:
        return _complain(str(error), code=UNREACHABLE)
    except estimate_proc.EstimateError as error:
        return _complain(str(error), code=REFUSED)
    return OK


def _roll(client: Client, name: str, command: msgspec.Struct, *, arguments: argparse.Namespace) -> int:
    accepted = client.command(name, command)
    _say(accepted.message)
    if not (arguments.wait and accepted.operation):
        return OK
    return _follow(client, accepted.operation, seconds=arguments.timeout)


def _examine(client: Client, command: api.DoctorCommand, *, seconds: float) -> int:
    """Have a worker tried, and tell what was found."""
    accepted = client.command("doctor", command)
    code = _follow(client, accepted.operation, seconds=seconds)
    if code != OK:
        return code
    findings = client.operation(accepted.operation).findings
    for finding in findings:
        _say(f"- {finding}")
    _say(f"{len(findings)} found" if findings else "nothing was found: it is safe to fork from")
    return REFUSED if findings else OK


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
            still = f"{rollout.kind} {operation} is still in its step {rollout.phase} after {seconds:g} s"
            return _complain(f"{still}, and goes on; see: reforkctl status", code=REFUSED)
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _conclude(rollout: api.OperationStatus) -> int:
    steps = ", ".join(f"{step.phase} {step.seconds:.2f}" for step in rollout.steps)
    if rollout.outcome is api.Outcome.SUCCEEDED:
        told = f" ({steps})" if steps else ""
        if rollout.kind is api.OperationKind.TRIAL:
            _say(f"a worker was tried and replaced, after {rollout.seconds:.2f} s{told}")
            return OK
        _say(f"{rollout.kind} succeeded: generation {rollout.generation} serves, after {rollout.seconds:.2f} s{told}")
        return OK
    reason = rollout.reason or "the server's log says why"
    return _complain(f"{rollout.kind} failed while {rollout.phase}: {reason}", code=REFUSED)


def _server(arguments: argparse.Namespace) -> UnixAddress | Remote:
    """Find out which server is meant, and how it is reached."""
    socket, url = getattr(arguments, "socket", ""), getattr(arguments, "url", "")
    if socket and url:
        raise AddressError("--socket and --url name two servers: choose one")
    named = url or socket or os.environ.get(ENVIRONMENT, "")
    shown = {name: getattr(arguments, name, "") for name in ("token_file", "ca", "cert", "key")}
    if url or named.startswith(SCHEMES):
        return parse_url(named, **shown)
    for name, value in shown.items():
        if value:
            raise AddressError(f"--{name.replace('_', '-')} is for a server with an URL: name it with --url")
    return parse_unix(named) if named else _only_one()


def _only_one() -> UnixAddress:
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
    sys.stdout.write(plain(line) + "\n")
    sys.stdout.flush()  # who waits wants to see each step when it happens, also through a pipe


def _complain(sentence: str, *details: str, code: int) -> int:
    sys.stderr.write(f"reforkctl: {plain(sentence)}\n")
    sys.stderr.writelines(f"  {plain(detail)}\n" for detail in details)
    return code


def _parser() -> argparse.ArgumentParser:
    shared = Parser(add_help=False)
    shared.add_argument(
        "--socket",
        metavar="ADDR",
        default=argparse.SUPPRESS,
        help="control socket of the server: unix:@NAME, unix:/PATH",
    )
    for flag, meta, meaning in _REMOTE:
        shared.add_argument(flag, metavar=meta, default=argparse.SUPPRESS, help=meaning)
    why = Parser(add_help=False)
    why.add_argument("--reason", type=_reason, default="", metavar="TEXT", help="why: goes to the server's log")
    waiting = Parser(add_help=False)
    waiting.add_argument("--wait", action="store_true", help="show each step, and return when the rollout has ended")
    waiting.add_argument(
        "--timeout", type=seconds, default=SECONDS_TO_WAIT, metavar="SECONDS",
        help="with --wait: give up watching after so long; the rollout itself goes on (default: %(default)g)",
    )  # fmt: skip

    parser = Parser(
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
    top = commands.add_parser("top", parents=[shared], help="watch it: the same, live; r reforks, s sorts, q quits")
    top.add_argument(
        "--interval", type=partial(seconds_from, SHORTEST_INTERVAL), default=SECONDS_BETWEEN_SCREENS, metavar="SECONDS",
        help="between two looks (default: %(default)g)",
    )  # fmt: skip
    refork = commands.add_parser("refork", parents=[shared, waiting, why], help="renew all workers from a warm one")
    refork.add_argument(
        "--slot", type=_slot, metavar="N", help="promote the worker in this slot (default: the warmest)"
    )
    commands.add_parser(
        "rebase", parents=[shared, waiting, why], help="renew all workers from a freshly loaded application"
    )
    doctor = commands.add_parser(
        "doctor", parents=[shared, why], help="promote a worker on trial, to see whether it is safe to fork from"
    )
    doctor.add_argument("--slot", type=_slot, metavar="N", help="try the worker in this slot (default: the warmest)")
    doctor.add_argument(
        "--timeout", type=seconds, default=SECONDS_TO_WAIT, metavar="SECONDS",
        help="give up watching after so long; the trial itself goes on (default: %(default)g)",
    )  # fmt: skip
    workers = commands.add_parser("workers", parents=[shared, why], help="change the number of workers")
    workers.add_argument("count", type=_count, metavar="N", help="how many there should be")
    _add_estimate(commands)
    return parser


def _add_estimate(commands: argparse._SubParsersAction[Parser]) -> None:
    estimate = commands.add_parser("estimate", help="tell what refork could win for any prefork server, by its pid")
    estimate.add_argument("--pid", type=pid, required=True, metavar="N", help="of the server's master process")
    estimate.add_argument("--json", action="store_true", help="print the estimate as JSON")
    estimate.add_argument(
        "--pages", type=_pages, default=PAGES_TO_READ, metavar="N",
        help="read so many pages at most (default: %(default)d)",
    )  # fmt: skip
    estimate.add_argument(
        "--seconds", type=seconds, default=SECONDS_TO_LOOK, metavar="SECONDS",
        help="between two looks at a page, to see what changes; 0 for one look (default: %(default)g)",
    )  # fmt: skip


def _reason(text: str) -> str:
    if len(text) > api.LONGEST_REASON or not text.isprintable():
        raise argparse.ArgumentTypeError(f"not a line of up to {api.LONGEST_REASON} characters")
    return text


def _slot(text: str) -> int:
    return number(text, least=0, most=api.MOST)


def _count(text: str) -> int:
    return number(text, least=1, most=api.MOST_WORKERS)


def _pages(text: str) -> int:
    return number(text, least=1, most=MOST_PAGES_TO_READ)


if __name__ == "__main__":
    sys.exit(main())
