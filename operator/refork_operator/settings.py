"""What the operator can be told, by flags and by environment variables of the same name. Pure."""

from __future__ import annotations

import argparse
import math
import os
import socket
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from refork_operator.lease import Timing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ENV_PREFIX = "REFORK_OPERATOR_"
TOKEN_FILE = "/var/run/secrets/refork.dev/token"  # noqa: S105 - a path

_WORDS = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off"), False),
}

_EPILOG = f"""
Every option can be given as an environment variable: --poll-timeout as {ENV_PREFIX}POLL_TIMEOUT.
Lists are separated by commas; switches are on with 1, true, yes or on, and off with 0, false, no or off. An empty
variable is as good as none. Flags win.

A first look, changing nothing:
  refork-operator --kubeconfig ~/.kube/config --dry-run --no-leader-elect --log-format text

What it serves on --listen: /metrics for Prometheus, /healthz (is it alive), /readyz (does it see the cluster).
Exit status: 0 after SIGTERM; 1 when the cluster cannot be reached, the Lease was lost or --listen is not to be had;
2 for a wrong option.
"""


@dataclass(frozen=True, slots=True)
class Settings:
    """How one operator process runs; durations in seconds."""

    kubeconfig: str = ""
    context: str = ""
    namespaces: tuple[str, ...] = ()
    pod_selector: str = ""
    dry_run: bool = False
    listen: str = "0.0.0.0:8080"
    token_file: str = TOKEN_FILE
    leader_elect: bool = True
    lease_name: str = "refork-operator"
    lease_namespace: str = ""
    identity: str = ""
    lease_duration: float = 10.0
    lease_renew_deadline: float = 7.0
    lease_retry: float = 2.0
    poll_concurrency: int = 64
    poll_timeout: float = 5.0
    body_limit: int = 1 << 20
    operation_timeout: float = 900.0
    settle: float = 3.0
    status_interval: float = 60.0
    log_level: str = "INFO"
    log_format: str = "json"

    @property
    def timing(self) -> Timing:
        """The times of the Lease."""
        return Timing(duration=self.lease_duration, renew=self.lease_renew_deadline, retry=self.lease_retry)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port to serve metrics and probes on."""
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]") or "0.0.0.0", int(port)  # noqa: S104 - likewise


def parse(argv: Sequence[str], *, env: Mapping[str, str]) -> Settings:
    """Read flags over environment over defaults. Exits with 2 and a sentence when one is wrong."""
    parser = _parser({name: value for name, value in env.items() if value})
    values = vars(parser.parse_args(argv))
    values["identity"] = values["identity"] or f"{env.get('POD_NAME') or socket.gethostname()}-{os.getpid()}"
    values["lease_namespace"] = values["lease_namespace"] or env.get("POD_NAMESPACE") or _own_namespace()
    values["kubeconfig"] = values["kubeconfig"] or env.get("KUBECONFIG", "")
    settings = Settings(**values)
    if not settings.lease_retry < settings.lease_renew_deadline < settings.lease_duration:
        parser.error("needed: --lease-retry < --lease-renew-deadline < --lease-duration")
    return settings


def _own_namespace() -> str:
    try:
        with open("/var/run/secrets/kubernetes.io/serviceaccount/namespace", encoding="ascii") as file:
            return file.read().strip() or "default"
    except OSError:
        return "default"


def _parser(env: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="refork-operator",
        description="Watches the memory of pods that refork serves, and reforks them when that pays: as ReforkPolicies"
        " say, or when somebody sets the annotation refork.dev/requestedAt.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _cluster_options(parser, env)
    _lease_options(parser, env)
    _polling_options(parser, env)
    _logging_options(parser, env)
    known = {field.name for field in fields(Settings)}
    assert {action.dest for action in parser._actions} - {"help"} == known  # noqa: SLF001 - our own parser
    return parser


def _cluster_options(parser: argparse.ArgumentParser, env: Mapping[str, str]) -> None:
    group = _Group(parser.add_argument_group("which cluster, which part of it"), env)
    group.text(
        "--kubeconfig", "file to reach the cluster with (default: $KUBECONFIG, else the pod's own ServiceAccount)"
    )
    group.text("--context", "context of the kubeconfig (default: its current one)")
    group.names("--namespaces", "only these namespaces, so that a Role suffices (default: all)")
    group.text("--pod-selector", "watch only pods with these labels, for large clusters (default: all pods)")
    group.switch("--dry-run", "decide and log, but send no command and write nothing but the Lease")


def _lease_options(parser: argparse.ArgumentParser, env: Mapping[str, str]) -> None:
    group = _Group(parser.add_argument_group("two replicas, one active"), env)
    group.switch("--leader-elect", "take a Lease before doing anything; --no-leader-elect for a single process")
    group.text("--lease-name", "name of the Lease")
    group.text("--lease-namespace", "its namespace (default: $POD_NAMESPACE, else the pod's own)")
    group.text("--identity", "name of this process in the Lease (default: $POD_NAME or host name, and pid)")
    group.number("--lease-duration", "seconds without a sign of life after which another takes over")
    group.number("--lease-renew-deadline", "seconds without a renewal after which the holder stops")
    group.number("--lease-retry", "seconds between two attempts to take or renew it")


def _polling_options(parser: argparse.ArgumentParser, env: Mapping[str, str]) -> None:
    group = _Group(parser.add_argument_group("asking and telling pods"), env)
    group.text("--token-file", "token to show to pods whose policy names no Secret: a projected ServiceAccount token")
    group.whole("--poll-concurrency", "pods asked at once")
    group.number("--poll-timeout", "seconds that a pod has for an answer")
    group.whole("--body-limit", "bytes that an answer may have")
    group.number("--operation-timeout", "seconds that a refork may take before it counts as failed")
    group.number("--settle", "seconds after a refork before its gain is measured")
    group.number("--status-interval", "seconds between two writes of a policy's figures, when only figures change")


def _logging_options(parser: argparse.ArgumentParser, env: Mapping[str, str]) -> None:
    group = _Group(parser.add_argument_group("being watched"), env)
    group.address("--listen", "where /metrics, /healthz and /readyz are")
    group.choice("--log-level", "how much to log", choices=("DEBUG", "INFO", "WARNING", "ERROR"))
    group.choice("--log-format", "one JSON object a line, or text for people", choices=("json", "text"))


class _Group:
    """Adds options whose defaults come from the environment, then from ``Settings``."""

    def __init__(self, group: argparse._ArgumentGroup, env: Mapping[str, str]) -> None:
        self._group = group
        self._env = env

    def text(self, flag: str, text: str) -> None:
        self._group.add_argument(flag, default=self._default(flag), help=_help(flag, text), metavar="TEXT")

    def number(self, flag: str, text: str) -> None:
        self._group.add_argument(flag, type=seconds, default=self._default(flag), help=_help(flag, text), metavar="S")

    def whole(self, flag: str, text: str) -> None:
        self._group.add_argument(flag, type=_count, default=self._default(flag), help=_help(flag, text), metavar="N")

    def names(self, flag: str, text: str) -> None:
        default = self._default(flag) or ()
        self._group.add_argument(flag, type=_names, default=default, help=_help(flag, text), metavar="A,B")

    def address(self, flag: str, text: str) -> None:
        default = self._default(flag)
        self._group.add_argument(flag, type=_address, default=default, help=_help(flag, text), metavar="HOST:PORT")

    def choice(self, flag: str, text: str, *, choices: tuple[str, ...]) -> None:
        def chosen(word: str) -> str:  # because argparse does not look whether a default is one of the choices
            found = {choice.lower(): choice for choice in choices}.get(word.lower())
            if found is None:
                raise argparse.ArgumentTypeError(f"{word!r}: one of {', '.join(choices)} is needed")
            return found

        default = self._default(flag)
        self._group.add_argument(flag, type=chosen, choices=choices, default=default, help=_help(flag, text))

    def switch(self, flag: str, text: str) -> None:
        action = argparse.BooleanOptionalAction
        made = self._group.add_argument(flag, action=action, default=self._default(flag), help=_help(flag, text))
        made.type = _on_or_off  # of the variable, which is text

    def _default(self, flag: str) -> object:
        """Return the default; argparse reads one that is text as if it were given."""
        return self._env.get(_variable(flag), getattr(Settings(), _name(flag)))


def _name(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def _variable(flag: str) -> str:
    return ENV_PREFIX + _name(flag).upper()


def _help(flag: str, text: str) -> str:
    default = getattr(Settings(), _name(flag))
    shown = "" if "default" in text or default in ("", (), False) else f" (default: {default})"
    return (text + shown).replace("%", "%%")


def seconds(text: str, *, below: float = 1e6) -> float:
    """Read an option; nobody waits for twelve days. Raises ArgumentTypeError."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < below:
        raise argparse.ArgumentTypeError(f"{text!r}: a number of seconds is needed, more than 0")
    return number


def _count(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 1 << 31:
        raise argparse.ArgumentTypeError(f"{text!r}: a whole number is needed, at least 1")
    return int(text)


def _address(text: str) -> str:
    _, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or int(port) >= 1 << 16:
        raise argparse.ArgumentTypeError(f"{text!r}: write HOST:PORT")
    return text


def _on_or_off(text: str) -> bool:
    if text.lower() not in _WORDS:
        raise argparse.ArgumentTypeError(f"{text!r}: one of {', '.join(_WORDS)} is needed")
    return _WORDS[text.lower()]


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in (part.strip() for part in text.split(",")) if name)
