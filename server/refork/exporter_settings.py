"""What the exporter can be told, by flags and by environment variables of the same names. Pure."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING

from refork import __version__, address, arguments
from refork.address import AddressError, TcpAddress, UnixAddress

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

ENV_PREFIX = "REFORK_EXPORTER_"

SHORTEST_INTERVAL = 0.1
MOST_OF_A_CORE = 1.0

_LOOPBACK = TcpAddress("127.0.0.1", 9090)

_DESCRIPTION = """\
Tells Prometheus what the prefork server beside it (gunicorn, uvicorn, uWSGI ...) uses of memory: RSS, PSS, USS, what
its workers share and what they have copied; and estimates what refork would save. It reads /proc, and changes nothing.
"""

_EPILOG = f"""\
Every option can be given as an environment variable, like --cpu-share as {ENV_PREFIX}CPU_SHARE. Flags win.

in a pod: a second container beside the server's, with
  spec:
    shareProcessNamespace: true        # or the exporter sees nothing but itself
    securityContext:
      runAsUser: 1000                  # the kernel shows memory to the same user and group only
      runAsGroup: 1000
  no capability is needed, and no privilege.

on a machine:
  refork-exporter                      the largest prefork server there is
  refork-exporter --pid 4711           that of this master process
  curl http://127.0.0.1:9090/metrics   what Prometheus will read

what it serves on --bind:
  /metrics   for Prometheus; docs/EXPORTER.md explains each metric
  /healthz   200 while it answers
  /readyz    200 when a server was found and its workers were measured; 503 with the reason until then

exit codes:
  0 ended by SIGTERM or SIGINT   1 cannot listen   2 wrong usage
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How one exporter runs.

    Attributes:
        bind: where to answer. Loopback by default, since nobody is asked who they are; the port is the one that the
            charts give to refork's own metrics.
        pid: of the server's master; None to look for it.
        interval: seconds between two looks at a process, and between two looks around, at least.
        cpu_share: of one core: what looking and estimating may take together.
        estimate_interval: seconds between two estimates, at least; 0 for none.
    """

    bind: TcpAddress | UnixAddress = _LOOPBACK
    pid: int | None = None
    interval: float = 5.0
    cpu_share: float = 0.005
    estimate_interval: float = 300.0


def parse(words: Sequence[str], *, env: Mapping[str, str]) -> Settings:
    """Read flags over environment over defaults. Exits with 2 and a sentence when one is wrong."""
    given = [f"{flag}={value}" for flag in _flags() if (value := env.get(_variable(flag)))]
    return Settings(**vars(_parser().parse_args([*given, *words])))


def _parser() -> argparse.ArgumentParser:
    parser = arguments.Parser(
        prog="refork-exporter",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"refork-exporter {__version__}")

    def add(flag: str, kind: Callable[[str], object], metavar: str, meaning: str) -> None:
        default = getattr(Settings(), _name(flag))
        shown = "" if default is None else f" (default: {default})"
        parser.add_argument(flag, type=kind, default=default, metavar=metavar, help=meaning + shown)

    add("--bind", _address, "ADDR", "answer here: HOST:PORT, :PORT for every interface, or unix:/PATH")
    add("--pid", arguments.pid, "N", "watch the server whose master this is (default: look for the largest)")
    add(
        "--interval",
        partial(arguments.seconds_from, SHORTEST_INTERVAL),
        "SECONDS",
        "between two looks at a process, and at what processes there are; more if --cpu-share asks for it",
    )
    add("--cpu-share", _share, "SHARE", "of one core: all that looking may take, on average")
    add(
        "--estimate-interval",
        arguments.seconds,
        "SECONDS",
        "between two estimates, or more if --cpu-share asks for it; 0 for no estimates",
    )
    return parser


def _flags() -> list[str]:
    return [f"--{field.name.replace('_', '-')}" for field in fields(Settings)]


def _name(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def _variable(flag: str) -> str:
    return ENV_PREFIX + _name(flag).upper()


def _address(text: str) -> TcpAddress | UnixAddress:
    try:
        return address.parse(text)
    except AddressError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= MOST_OF_A_CORE:
        raise argparse.ArgumentTypeError(f"not a share of a core, more than 0 and up to 1: {text!r}")
    return share
