# ruff: noqa: D101 - what a setting is for is said in its desc, which python -OO leaves alone
"""What refork can be told, in gunicorn's own form: importing this module makes the settings known to gunicorn.

So they work wherever gunicorn's do: on the command line, in the configuration file, in ``GUNICORN_CMD_ARGS``. Each
class is data and a text that teaches; the texts are what ``--help`` and docs/SETTINGS.md show. A validator either
returns the value that the server works with or says, in a sentence, what would have been right.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, ClassVar

from gunicorn.config import validate_bool, validate_callable

from refork.address import AddressError, TcpAddress, parse, parse_unix
from refork.cluster import SUBJECT

if TYPE_CHECKING:
    from collections.abc import Callable

    class Setting:
        """gunicorn's class, which has no types; its metaclass registers what is derived from it."""

else:
    from gunicorn.config import Setting

SECTION = "Refork"
HOOKS_SECTION = "Refork Hooks"

_HOW_TO_SCHEDULE = "write the number of requests, like 1000, or one for each generation, like 50,100,1000; 0 for never"

_HOW_TO_WRITE_AN_AMOUNT = "write bytes, like 200M or 1.5G, or a share of the memory limit, like 20%; 0 for never"
_AMOUNT = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?)(%|[KMGTkmgt]?)(?:(?<=[KMGTkmgt])i?B?)?", re.ASCII)
_WHOLE = 100


_POLICIES = ("refuse", "warn", "allow")
_ALLOWED = frozenset({"thread", "module", "address"})


# --- validators -------------------------------------------------------------------------------------------------------


def parse_schedule(value: object) -> tuple[int, ...]:
    """Read request counts, one per generation, from a text, an int or a list; empty for never.

    Raises:
        ValueError: it is no schedule; says how to write one.
    """
    if isinstance(value, str):
        parts: list[object] = [part.strip() for part in value.split(",")]
    elif isinstance(value, (list, tuple)):
        parts = list(value)
    else:
        parts = [value]
    counts = tuple(_request_count(part, of=value) for part in parts)
    if counts == (0,):
        return ()
    if 0 in counts:
        raise ValueError(f"{value!r} is no schedule, 0 stands alone: {_HOW_TO_SCHEDULE}")
    return counts


def _request_count(part: object, *, of: object) -> int:
    if isinstance(part, int) and not isinstance(part, bool) and part >= 0:
        return part
    if isinstance(part, str) and part.isascii() and part.isdigit() and len(part) < len("9" * 19):
        return int(part)
    raise ValueError(f"{of!r} is no schedule: {_HOW_TO_SCHEDULE}")


def parse_amount(value: object) -> tuple[int, float]:
    """Read an amount of memory: bytes like ``200M``, and a share of the limit like ``20%``; the other one is 0.

    Raises:
        ValueError: it is neither; says how to write one.
    """
    text = str(value).strip() if isinstance(value, (str, int)) and not isinstance(value, bool) else ""
    found = _AMOUNT.fullmatch(text)
    if found is None or (found[2] == "%" and not float(found[1]) <= _WHOLE):
        raise ValueError(f"{value!r} is no amount of memory: {_HOW_TO_WRITE_AN_AMOUNT}")
    if found[2] == "%":
        return 0, float(found[1]) / _WHOLE
    return int(float(found[1]) * 1024 ** " KMGT".index(found[2].upper() or " ")), 0.0


def _amount(value: object) -> str:
    parse_amount(value)
    return str(value).strip()


def _whole(*, at_least: int) -> Callable[[object], int]:
    def validate(value: object) -> int:
        try:
            number = int(value, 10) if isinstance(value, str) else value
        except ValueError:
            number = None
        if not isinstance(number, int) or isinstance(number, bool) or number < at_least:
            raise ValueError(f"{value!r}: write a whole number, {at_least} or more")
        return number

    return validate


def _seconds(*, zero: bool) -> Callable[[object], float]:
    wanted = "0 or more" if zero else "more than 0"

    def validate(value: object) -> float:
        try:
            number = float(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else math.nan
        except (ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number) or number < 0 or (number == 0 and not zero):
            raise ValueError(f"{value!r}: write a number of seconds, {wanted}, like 2.5")
        return number

    return validate


def _share(value: object) -> float:
    try:
        return _seconds(zero=True)(value)
    except ValueError:
        raise ValueError(f"{value!r}: write a share, like 0.5 for half as much again; 0 for no bound") from None


def _control_address(value: object) -> str:
    if value in (None, "", "auto"):
        return ""
    if value == "none":
        return "none"
    if not isinstance(value, str):
        raise TypeError(f"{value!r}: write unix:@NAME, unix:/ABSOLUTE/PATH, or none")
    try:
        return str(parse_unix(value.strip()))
    except AddressError as error:
        raise ValueError(f"{error}, or none; for TCP there is --control-tcp") from error


def _tcp_address(value: object) -> str:
    if value in (None, "", "none"):
        return ""
    address = parse(value.strip()) if isinstance(value, str) else None
    if not isinstance(address, TcpAddress):
        raise ValueError(f"{value!r}: write HOST:PORT or :PORT, in quotes")  # noqa: TRY004 - it is a text, mostly
    return str(address)


def _path(value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise TypeError(f"{value!r}: write a text, in quotes")
    return value.strip()


def _subjects(value: object) -> tuple[str, ...]:
    """Read the names of service accounts, from a text or a list."""
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, (list, tuple)):
        raise TypeError(f"{value!r}: write system:serviceaccount:NAMESPACE:NAME")
    names = tuple(str(part).strip() for part in parts if str(part).strip())
    for name in names:
        if not SUBJECT.fullmatch(name):
            raise ValueError(f"{name!r} is no service account: write system:serviceaccount:NAMESPACE:NAME")
    return names


def _jwks(value: object) -> str:
    location = _path(value)
    if "://" in location and not location.startswith("https://"):
        raise ValueError(f"{location!r}: keys that come unencrypted prove nothing; write an https URL or a path")
    return location


def _metrics_address(value: object) -> str:
    if value in (None, "", "none"):
        return ""
    if not isinstance(value, str):
        raise TypeError(f"{value!r}: write HOST:PORT, :PORT or unix:/ABSOLUTE/PATH, in quotes")
    return str(parse(value.strip()))


def _fork_safety(value: object) -> str:
    if value not in _POLICIES:
        raise ValueError(f"{value!r}: write {', '.join(_POLICIES[:-1])} or {_POLICIES[-1]}")
    return str(value)


def _fork_safety_allow(value: object) -> list[str]:
    parts: list[object] = list(value) if isinstance(value, (list, tuple)) else [value] if value else []
    for part in parts:
        kind, _, name = part.partition(":") if isinstance(part, str) else ("", "", "")
        if kind not in _ALLOWED or not name:
            raise ValueError(f"{part!r}: write thread:NAME, module:NAME or address:HOST[:PORT]")
    return [str(part) for part in parts]


def _file_name(value: object) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    raise TypeError(f"{value!r}: write the name of a file")


def _no_hook(_: Any) -> None:
    """What a hook with one argument does unless it is set."""


def _no_server_hook(_server: Any, _outcome: Any) -> None:
    """What a hook with two arguments does unless it is set."""


# --- when to refork, and how to roll ----------------------------------------------------------------------------------


class ReforkAfter(Setting):
    name = "refork_after"
    section = SECTION
    cli = ("--refork-after",)
    meta = "REQUESTS[,REQUESTS...]"
    validator = parse_schedule
    default = "1000"
    desc = """\
        Refork by itself when the first worker has served so many requests: one number for each generation, 0 for never.

        A worker is worth forking from when it is warm: when its caches are filled, its lazy imports done, its templates
        compiled. The number of requests it has served stands for that. The default, `1000`, reforks once, when the
        first worker has served 1,000 requests, and not again. `50,100,1000` does so three times: at 50 requests in the
        generation that loaded the application, at 100 in the next, at 1,000 in the one after.

        The schedule starts over whenever the application is loaded afresh (a rebase). `0` leaves it to `reforkctl
        refork` and to `SIGURG`. In a configuration file it may also be an int or a list of them.

        A worker that ends itself before, by `max_requests`, never gets there: let the schedule be below it.
        """


class ReforkGain(Setting):
    name = "refork_gain"
    section = SECTION
    cli = ("--refork-gain",)
    meta = "SIZE|PERCENT"
    validator = _amount
    default = "0"
    desc = """\
        Refork by itself when that would win back so much memory: like 200M, or 20% of the memory limit; 0 for never.

        What a refork wins back is the memory that workers have written to since they were forked, less that of the
        largest, which all of them share afterwards. refork knows it at any time; the status and the metric
        `refork_gain_predicted_bytes` show it. A share is one of the limit of the control group (of the container), and
        is never reached where there is no limit.

        What a refork has won is compared with what it promised. One that won less than half doubles the time until the
        next (`refork_cooldown`); after three in a row there are no more, until the configuration is loaded anew or the
        server restarted, and the log, the status and the metric `refork_automatic_stopped` say so.
        """


class ReforkSustained(Setting):
    name = "refork_sustained"
    section = SECTION
    cli = ("--refork-sustained",)
    meta = "SECONDS"
    validator = _seconds(zero=True)
    type = float
    default = 60.0
    desc = """\
        What `refork_gain` asks for must be there to win for so many seconds.

        Memory that a worker takes for one large request and gives back is no reason to refork.
        """


class ReforkCooldown(Setting):
    name = "refork_cooldown"
    section = SECTION
    cli = ("--refork-cooldown",)
    meta = "SECONDS"
    validator = _seconds(zero=True)
    type = float
    default = 600.0
    desc = """\
        Between two reforks that memory is the reason for there are so many seconds at least.

        They count from the start of the last refork, whoever asked for it. The time is doubled for each one in a row
        that won less than half of what it promised.
        """


class ReforkSurge(Setting):
    name = "refork_surge"
    section = SECTION
    cli = ("--refork-surge",)
    meta = "INT"
    validator = _whole(at_least=1)
    type = int
    default = 1
    desc = """\
        So many replacement workers may be booting at once while a new generation rolls out.

        With `1`, slots change over one after the other, a tenth of a second apart, so that requests do not wait for the
        processor time it takes. More makes a rollout shorter, and needs memory and processor time for so many more
        workers meanwhile: little for a refork, whose workers share what they are forked from.
        """


class ReforkMaxUnavailable(Setting):
    name = "refork_max_unavailable"
    section = SECTION
    cli = ("--refork-max-unavailable",)
    meta = "INT"
    validator = _whole(at_least=0)
    type = int
    default = 0
    desc = """\
        So many slots may be without a ready worker during a rollout.

        With `0`, a worker is stopped only when its replacement is ready: capacity never falls below `workers`. Raise it
        where memory is so short that the old worker has to go before the new one can come.
        """


class SpawnTimeout(Setting):
    name = "spawn_timeout"
    section = SECTION
    cli = ("--spawn-timeout",)
    meta = "SECONDS"
    validator = _seconds(zero=False)
    type = float
    default = 60.0
    desc = """\
        A mold must have loaded the application, and a worker must be ready, so many seconds after its start.

        One that takes longer is killed and counts as failed: service goes on with what there is, and it is tried again
        later. Raise it for an application that takes longer to import.
        """


class PromoteTimeout(Setting):
    name = "promote_timeout"
    section = SECTION
    cli = ("--promote-timeout",)
    meta = "SECONDS"
    validator = _seconds(zero=False)
    type = float
    default = 60.0
    desc = """\
        A promoted worker must have finished its requests and sealed its heap after so many seconds.

        One that takes longer is killed, the refork has failed, and service goes on with the old generation. It must
        exceed `graceful_timeout`, the time that the requests under way may take. Where it is not set and would not, it
        is `graceful_timeout` and 30 seconds more.
        """


class CanarySeconds(Setting):
    name = "canary_seconds"
    section = SECTION
    cli = ("--canary-seconds",)
    meta = "SECONDS"
    validator = _seconds(zero=True)
    type = float
    default = 2.0
    desc = """\
        The first worker of a new generation serves for so many seconds before the others follow.

        If it ends within that time, the new generation is dropped, and the old one, whose mold and workers are all
        still there, goes on. `0` lets the others follow as soon as the first is ready.
        """


class DrainSeconds(Setting):
    name = "drain_seconds"
    section = SECTION
    cli = ("--drain-seconds",)
    meta = "SECONDS"
    validator = _seconds(zero=True)
    type = float
    default = 2.0
    desc = """\
        A worker that is told to stop leaves idle keep-alive connections open for so many seconds.

        A client may be sending its next request at the very moment in which the server closes the connection, and sees
        it fail. So for this time a draining worker still answers what arrives, with `Connection: close`, and closes
        only then. It cannot be longer than `graceful_timeout`. `0` closes idle connections at once. Behind a proxy that
        repeats such requests by itself, less is enough.
        """


class MaxGenerations(Setting):
    name = "max_generations"
    section = SECTION
    cli = ("--max-generations",)
    meta = "INT"
    validator = _whole(at_least=0)
    type = int
    default = 0
    desc = """\
        After so many reforks the next one loads the application afresh instead (a rebase); 0 for no limit.

        An object that has been sealed is never freed by later generations. It is shared, so it costs its memory once
        and not once a worker, but it adds up with each refork. A rebase starts from nothing.
        """


class MaxSealedGrowth(Setting):
    name = "max_sealed_growth"
    section = SECTION
    cli = ("--max-sealed-growth",)
    meta = "SHARE"
    validator = _share
    type = float
    default = 0.5
    desc = """\
        By how much of its first size the mold may have grown over generations before the next refork is a rebase.

        0.5 allows it to grow by half; 0 sets no bound. The growth since the first warm mold estimates what was sealed
        and is no longer used. An application whose caches go on filling grows as well: if it is rebased without need,
        raise the bound.
        """


class MaxWorkerAge(Setting):
    name = "max_worker_age"
    section = SECTION
    cli = ("--max-worker-age",)
    meta = "SECONDS"
    validator = _seconds(zero=True)
    type = float
    default = 0.0
    desc = """\
        How long a worker may live before it is replaced from the warm mold; 0 for no limit.

        The replacement is ready before the old worker is drained, and workers are replaced one after the other.
        """


class MaxWorkerMemory(Setting):
    name = "max_worker_memory"
    section = SECTION
    cli = ("--max-worker-memory",)
    meta = "AMOUNT"
    validator = _amount
    default = "0"
    desc = """\
        How much private memory (USS) a worker may have before it is replaced from the warm mold; 0 for no limit.

        Bytes, like `300M`, or a share of the memory limit of the container, like `20%`. What a worker shares with the
        mold does not count: its replacement would share it too.
        """


class Seal(Setting):
    name = "seal"
    section = SECTION
    cli = ("--no-seal",)
    validator = validate_bool
    action = "store_false"
    default = True
    desc = """\
        Do not seal the heap of molds: freeze it only, as `gc.freeze()` does.

        In the configuration file, `seal = False`. Sealing makes the objects of a mold immune to reference counting, so
        that the workers forked from it keep sharing the pages they only read. Without it most of what refork saves is
        lost. It is there to find out whether sealing has to do with a problem. What cannot be sealed (a free-threaded
        interpreter, one without the C extension) is frozen in any case, and the status says so.
        """


class LifespanKeep(Setting):
    name = "lifespan_keep"
    section = SECTION
    cli = ("--lifespan-keep",)
    validator = validate_bool
    action = "store_true"
    default = False
    desc = """\
        ASGI: keep what lifespan startup has loaded when its worker is promoted.

        By default lifespan shutdown runs when a worker is promoted, and startup runs again in every worker of the new
        generation, so what startup loads is not shared. With this, a model that startup has put into `app.state` is
        loaded once and shared by all. Mind what it means:

        - shutdown is not run at promotion, nor is startup run in the new workers;
        - what startup has opened is shared after the fork: a connection or a file position used by two processes
          breaks. Open them in `after_worker_fork` or at the first request instead;
        - tasks that startup has started do not run on in the new workers: their event loop has ended;
        - shutdown of the kept lifespan is never run, not even when the server stops.

        For the worker classes `asgi` and `uvicorn_worker.UvicornWorker`.
        """


# --- where to ask and to tell -----------------------------------------------------------------------------------------


class ForkSafety(Setting):
    name = "fork_safety"
    section = SECTION
    cli = ("--fork-safety",)
    meta = "POLICY"
    validator = _fork_safety
    default = "refuse"
    desc = """\
        What to do about a worker that is not safe to fork from: refuse, warn or allow.

        A worker that is to become a mold is looked at when it has stopped serving: are there threads left, open
        connections, other things that a fork would lose or double? With `refuse` it is not promoted, and the old
        generation goes on; the log, the status and `reforkctl doctor` say what was found and what to do about it.
        `warn` promotes it, and logs what was found. `allow` promotes it in silence.

        Refusing is the default because a database connection that two workers share corrupts data. See
        [FORK_SAFETY](FORK_SAFETY.md).
        """


class ForkSafetyAllow(Setting):
    name = "fork_safety_allow"
    section = SECTION
    cli = ("--fork-safety-allow",)
    meta = "ENTRY"
    action = "append"
    validator = _fork_safety_allow
    default: ClassVar[list[str]] = []
    desc = """\
        What a worker may have and be forked from nevertheless: thread:NAME, module:NAME or address:HOST[:PORT].

        `thread:NAME` allows threads of this name, with `*` and `?` as in a shell; `module:NAME` what this module, or a
        package, has started; `address:HOST` connections to a host, `address:HOST:PORT` to one port of it,
        `address:/PATH` to a unix socket. On the command line it may be given several times; in the configuration file
        it is a list: `fork_safety_allow = ["thread:heartbeat-*", "address:127.0.0.1:8125"]`.

        A thread that is allowed is not in the workers forked later, so it should be one that does no harm by its
        absence.
        """


class CheckForkSafety(Setting):
    name = "check_fork_safety"
    section = SECTION
    cli = ("--check-fork-safety",)
    validator = validate_bool
    action = "store_true"
    default = False
    desc = """\
        Serve a few requests, find out whether the worker is safe to fork from, and exit.

        For continuous integration: one worker is started on a private socket, answers the requests that `--requests`
        names, and is promoted on trial. What makes a fork unsafe is printed, one sentence each, with what to do about
        it. The exit code is 0 when nothing was found, 1 when something was, 2 when the worker could not be tried.
        """


class CheckRequests(Setting):
    name = "check_requests"
    section = SECTION
    cli = ("--requests",)
    meta = "FILE"
    validator = _file_name
    default = ""
    desc = """\
        The requests that `--check-fork-safety` serves: a file with one a line; unless it is set, one GET of /.

        A line is a path or an URL, `/products?page=2`; or a method, a path and, if there is one, a body: `POST /orders
        {"product": 1}`. Empty lines and those that begin with # are left out. Let them be requests that use what the
        application uses, its database above all: what was never opened cannot be found open.
        """


class ControlBind(Setting):
    name = "control_bind"
    section = SECTION
    cli = ("--control-bind",)
    meta = "ADDRESS"
    validator = _control_address
    default = ""
    desc = """\
        The unix socket where `reforkctl` finds the server: unix:@NAME, unix:/PATH or none.

        Unless it is set, it is the abstract name `@refork/PID`, with the pid of the monitor: it needs no writable file
        system, and `reforkctl` finds it by itself. Only root and the user who runs the server may command; the kernel
        vouches for who asks. `none` switches it off. For other machines there is `control_tcp`.
        """


class ControlTcp(Setting):
    name = "control_tcp"
    section = SECTION
    cli = ("--control-tcp",)
    meta = "HOST:PORT"
    validator = _tcp_address
    default = ""
    desc = """\
        Take commands over TCP too, at HOST:PORT or :PORT; off unless set.

        It is for the operator of a cluster, and for whoever is on another machine. Something has to tell who asks:
        `control_token_file`, `control_service_accounts` or `control_client_ca`. Without one of them the server does not
        start. Without TLS (`control_certfile`) it does not start either, unless the address is this machine's own or
        `control_plaintext` is set. The unix socket of `control_bind` is there besides. See [SECURITY](SECURITY.md).
        """


class ControlTokenFile(Setting):
    name = "control_token_file"
    section = SECTION
    cli = ("--control-token-file",)
    meta = "FILE"
    validator = _path
    default = ""
    desc = """\
        For `control_tcp`: a file with the tokens that may command, one a line, of 32 characters or more.

        It is read at each request, so what is written there counts at once. To change a token without a gap, write the
        new one and the old one, and take the old one out when nobody uses it any more. `openssl rand -hex 32` makes a
        good one. If the file cannot be read, nobody gets in by it.
        """


class ControlServiceAccounts(Setting):
    name = "control_service_accounts"
    section = SECTION
    cli = ("--control-service-accounts",)
    meta = "SUBJECT[,SUBJECT...]"
    validator = _subjects
    default = ()
    desc = """\
        For `control_tcp`: the Kubernetes service accounts that may command, as system:serviceaccount:NAMESPACE:NAME.

        Their tokens must be made for the audience `refork` (a projected volume, or `kubectl create token --audience
        refork`). They are verified here, with the keys that the cluster publishes. Needs `refork[kubernetes]`.
        """


class ControlJwks(Setting):
    name = "control_jwks"
    section = SECTION
    cli = ("--control-jwks",)
    meta = "FILE|URL"
    validator = _jwks
    default = ""
    desc = """\
        For `control_service_accounts`: the keys of the cluster, a file or an https URL.

        Unless it is set, they are fetched from the API server of the cluster that this is in (`/openid/v1/jwks`), with
        the token of the pod. They are kept for some minutes, and looked up again when a token names another key.
        """


class ControlIssuer(Setting):
    name = "control_issuer"
    section = SECTION
    cli = ("--control-issuer",)
    meta = "URL"
    validator = _path
    default = ""
    desc = """\
        For `control_service_accounts`: who issues their tokens.

        Unless it is set, it is the issuer of the pod's own token.
        """


class ControlCertfile(Setting):
    name = "control_certfile"
    section = SECTION
    cli = ("--control-certfile",)
    meta = "FILE"
    validator = _path
    default = ""
    desc = """\
        For `control_tcp`: speak TLS with this certificate (PEM, followed by those of its authorities).

        It is read again when it has changed.
        """


class ControlKeyfile(Setting):
    name = "control_keyfile"
    section = SECTION
    cli = ("--control-keyfile",)
    meta = "FILE"
    validator = _path
    default = ""
    desc = """\
        For `control_tcp`: the key of `control_certfile`; unset, it is in that file too.

        It is read again when it has changed. It cannot be encrypted: nobody is there to be asked for a password.
        """


class ControlClientCa(Setting):
    name = "control_client_ca"
    section = SECTION
    cli = ("--control-client-ca",)
    meta = "FILE"
    validator = _path
    default = ""
    desc = """\
        For `control_tcp`: clients must show a certificate of one of these authorities (mutual TLS).

        Whatever certificate one of them has issued will do, so let it be an authority for this alone. When tokens are
        configured as well, a client needs both.
        """


class ControlPlaintext(Setting):
    name = "control_plaintext"
    section = SECTION
    cli = ("--control-plaintext",)
    validator = validate_bool
    action = "store_true"
    default = False
    desc = """\
        For `control_tcp`: listen without TLS also where others can listen in.

        For a network that something else encrypts, like a service mesh. Tokens pass as they are: whoever reads one can
        use it.
        """


class MetricsBind(Setting):
    name = "metrics_bind"
    section = SECTION
    cli = ("--metrics-bind",)
    meta = "ADDRESS"
    validator = _metrics_address
    default = ""
    desc = """\
        Serve metrics for Prometheus, and probes, at HOST:PORT, :PORT or unix:/PATH; off unless set.

        It is read-only, and asks nobody who they are: bind it where your monitoring, and nobody else, can reach it.
        """


class ReforkMinInterval(Setting):
    name = "refork_min_interval"
    section = SECTION
    cli = ("--refork-min-interval",)
    meta = "SECONDS"
    validator = _seconds(zero=True)
    type = float
    default = 1.0
    desc = """\
        So many seconds must lie between two commands of the same kind (refork, rebase, workers); 0 for none.

        It keeps a script that has gone wrong from keeping the server busy with itself. A command that comes sooner is
        answered with 429 and `Retry-After`, which `reforkctl` obeys. Signals, the schedule and reforks by memory have
        their own pace and do not count.
        """


# --- hooks ------------------------------------------------------------------------------------------------------------


class BeforePromote(Setting):
    name = "before_promote"
    section = HOOKS_SECTION
    validator = validate_callable(1)
    default = staticmethod(_no_hook)
    desc = """\
        `before_promote(worker)`, in a worker that has stopped serving and is about to become a mold.

        The place to end what must not be forked: threads, connections, event loops. What is still there afterwards
        makes the promotion be refused. An exception here does so too.
        """


class AfterMoldFork(Setting):
    name = "after_mold_fork"
    section = HOOKS_SECTION
    validator = validate_callable(1)
    default = staticmethod(_no_hook)
    desc = """\
        `after_mold_fork(mold)`, in a promoted worker, before its heap is sealed.

        The place to warm up what all workers to come should share, and to drop caches that none of them needs.
        """


class AfterPromote(Setting):
    name = "after_promote"
    section = HOOKS_SECTION
    validator = validate_callable(1)
    default = staticmethod(_no_hook)
    desc = """\
        `after_promote(mold)`, in a promoted worker, once its heap is sealed and it is ready to fork.

        For what should happen only when nothing can go wrong any more, like telling somebody. What it writes to memory
        is still shared with the workers.
        """


class BeforeWorkerFork(Setting):
    name = "before_worker_fork"
    section = HOOKS_SECTION
    validator = validate_callable(1)
    default = staticmethod(_no_hook)
    desc = """\
        `before_worker_fork(mold)`, in the mold, before each fork of a worker.

        It runs next to gunicorn's `pre_fork`, which gets the worker to be. A worker cannot be forked if it raises.
        """


class AfterWorkerFork(Setting):
    name = "after_worker_fork"
    section = HOOKS_SECTION
    validator = validate_callable(1)
    default = staticmethod(_no_hook)
    desc = """\
        `after_worker_fork(worker)`, in each new worker, right after gunicorn's `post_fork`.

        The place to make what every process needs of its own: connections, threads, seeds of random numbers.
        """


class AfterRefork(Setting):
    name = "after_refork"
    section = HOOKS_SECTION
    validator = validate_callable(2)
    default = staticmethod(_no_server_hook)
    desc = """\
        `after_refork(server, outcome)`, in the monitor, when a refork or a rebase has ended.

        `outcome` is `"succeeded"` or `"failed"`. It runs in the monitor's event loop: while it runs, no worker is
        replaced and no signal handled, so it should be short.
        """
