"""What gunicorn offers and refork does not, and which settings do not go together.

A setting that would be ignored is worse than one that is refused: somebody relies on it. So what is set away from
gunicorn's default and means nothing here is refused at start, each with a sentence that says so and what to do instead.
A name that the installed gunicorn does not know (yet, or any more) is simply not there to be set.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gunicorn.workers import SUPPORTED_WORKERS

from refork.errors import ConfigurationError
from refork.scoreboard import ROWS

if TYPE_CHECKING:
    from collections.abc import Iterator

_RELOADING = (
    "refork does not watch files. Send the monitor HUP, or run `reforkctl rebase`, when the code has changed; while "
    "developing, `gunicorn --reload` serves the same application"
)
_DIRTY = (
    "refork has no dirty workers. Load what is big in the application itself: workers share it; or run the dirty "
    "arbiter's work in a process of its own"
)
_CONTROL = (
    "refork does not have gunicorn's control socket. Use `reforkctl`, and --control-bind for where it finds the server"
)

REFUSED = {
    "reload": _RELOADING,
    "reload_engine": _RELOADING,
    "reload_extra_files": _RELOADING,
    "spew": (
        "refork does not trace every line that runs. Call `gunicorn.debug.spew()` in the after_worker_fork hook if you "
        "want it in the workers"
    ),
    "dirty_apps": _DIRTY,
    "dirty_workers": _DIRTY,
    "dirty_timeout": _DIRTY,
    "dirty_threads": _DIRTY,
    "dirty_graceful_timeout": _DIRTY,
    "on_dirty_starting": _DIRTY,
    "dirty_post_fork": _DIRTY,
    "dirty_worker_init": _DIRTY,
    "dirty_worker_exit": _DIRTY,
    "control_socket": _CONTROL,
    "control_socket_mode": f"{_CONTROL}; only root and the user who runs the server may use it, whatever the mode",
    "enable_backlog_metric": (
        "refork does not send the length of the listen queue to statsd. `ss -lt` shows it (Recv-Q), and --metrics-bind "
        "serves refork's own metrics"
    ),
}
"""Setting by setting, what to do instead."""

_WSGI_CLASSES = frozenset({*SUPPORTED_WORKERS} - {"asgi"})
_LONGER = 30
_OF_CONTROL_TCP = (
    "control_token_file",
    "control_service_accounts",
    "control_jwks",
    "control_issuer",
    "control_certfile",
    "control_keyfile",
    "control_client_ca",
    "control_plaintext",
)

MOST_WORKERS = ROWS // 4
"""While a rollout is under way there may be several processes for a slot, each with a row."""


def is_set(cfg: Any, name: str) -> bool:
    """Whether a setting of gunicorn's differs from its default."""
    setting = cfg.settings.get(name)
    return setting is not None and setting.get() != type(setting)().get()


def settle(cfg: Any) -> None:
    """Fit our own defaults to what is set for gunicorn, so that a configuration made for it serves as it is."""
    if not is_set(cfg, "promote_timeout") and cfg.promote_timeout <= cfg.graceful_timeout:
        cfg.set("promote_timeout", cfg.graceful_timeout + _LONGER)
    if not is_set(cfg, "drain_seconds") and cfg.drain_seconds > cfg.graceful_timeout:
        cfg.set("drain_seconds", cfg.graceful_timeout)


def check(cfg: Any) -> None:
    """Make sure that refork can do what the configuration says.

    Raises:
        ConfigurationError: it cannot; all reasons, one a line.
    """
    reasons = [*_refused(cfg), *_contradictions(cfg)]
    if reasons:
        raise ConfigurationError("\n".join(reasons))


def _refused(cfg: Any) -> Iterator[str]:
    named: dict[str, list[str]] = {}
    for name, sentence in REFUSED.items():
        if is_set(cfg, name):
            named.setdefault(sentence, []).append(_words(cfg, name))
    for sentence, names in named.items():
        yield f"{', '.join(names)}: {sentence}"


def _words(cfg: Any, name: str) -> str:
    """Name a setting as it is written on the command line, or in the file if it has its place only there."""
    flags = cfg.settings[name].cli
    return str(flags[-1]) if flags else name


def _contradictions(cfg: Any) -> Iterator[str]:
    yield from _about_durations(cfg)
    yield from _about_workers(cfg)
    yield from _about_control(cfg)
    try:
        _ = cfg.env
    except RuntimeError as error:
        yield f"--env: {error}; write NAME=VALUE"
    try:
        _ = cfg.address
    except (RuntimeError, ValueError) as error:
        yield f"--bind: {error}; write HOST:PORT, :PORT, unix:PATH or fd://FD"


def _about_durations(cfg: Any) -> Iterator[str]:
    graceful = cfg.graceful_timeout
    if cfg.promote_timeout <= graceful:
        yield (
            f"--promote-timeout ({cfg.promote_timeout:g} s) must exceed --graceful-timeout ({graceful} s), the time "
            f"that requests under way may take: {graceful + _LONGER} would do"
        )
    if cfg.drain_seconds > graceful:
        yield (
            f"--drain-seconds ({cfg.drain_seconds:g} s) cannot exceed --graceful-timeout ({graceful} s), when a "
            "draining worker is killed: lower the one or raise the other"
        )


def _about_control(cfg: Any) -> Iterator[str]:
    if cfg.control_tcp:
        from refork.door import door_of, objections  # noqa: PLC0415 - only who has such a door needs it

        door = door_of(cfg)
        assert door is not None
        yield from objections(door)
        return
    for name in _OF_CONTROL_TCP:
        if is_set(cfg, name):
            yield f"{_words(cfg, name)} is for commands over TCP: set --control-tcp too, or leave it away"


def _about_workers(cfg: Any) -> Iterator[str]:
    if not 1 <= cfg.workers <= MOST_WORKERS:
        yield f"--workers {cfg.workers}: refork serves with 1 to {MOST_WORKERS} workers"
    name = cfg.settings["worker_class"].get()
    if isinstance(name, str) and not {".", ":"} & {*name} and name not in SUPPORTED_WORKERS:
        known = ", ".join(sorted(SUPPORTED_WORKERS))
        yield f"--worker-class {name!r}: there is no such worker class; use one of {known}, or MODULE.CLASS"
    if cfg.lifespan_keep and cfg.worker_class_str in _WSGI_CLASSES:
        yield (
            f"--lifespan-keep is for ASGI applications, and worker class {cfg.worker_class_str!r} serves WSGI: use "
            "--worker-class asgi, or leave it away"
        )
