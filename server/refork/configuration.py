"""gunicorn's configuration with our settings in it, and a command line that teaches.

What is different from gunicorn's own: ``--help`` is sorted by who offers what, and everything that is wrong with a
command line, a value or a class to be loaded becomes one exception with one sentence instead of an exit or a traceback,
because the same configuration is read again by a running monitor, on HUP, and by every mold.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any, NoReturn

import gunicorn
from gunicorn.config import Config

import refork
from refork import settings
from refork.errors import ConfigurationError, UsageError, describe
from refork.refusals import REFUSED

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ENVIRONMENT = "GUNICORN_CMD_ARGS"

_DESCRIPTION = """\
Serve a Python web application (WSGI or ASGI) with workers that share memory.

refork takes gunicorn's place: the same words, the same configuration file, the
same worker classes. Workers are forked from a warm process with a sealed heap,
the mold; once a worker is warmer than that, it becomes the mold of the next
generation, and all workers are replaced without failing a request.

examples:
  refork app:application                 the callable `application` of module app
  refork -w 8 -k gthread -b :8000 app    8 workers with threads, port 8000
  refork -k asgi app:app                 an ASGI application
  refork -c gunicorn.conf.py app         a configuration file made for gunicorn
  refork --refork-after 50,1000 app      refork when warm, and again when warmer
  refork --check-config app              is all well? (exit code 0 or 1)
  reforkctl status                       the memory of the running server
"""

_EPILOG = f"""\
Options may also stand in the environment variable {ENVIRONMENT}, and in the
configuration file by the names that --print-config shows. The command line wins
over the environment, which wins over the file.

signals to the monitor:
  HUP   new configuration and code, without downtime
  URG   refork
  TERM  stop once the requests under way are answered; INT and QUIT: stop now
  TTIN  one worker more; TTOU: one worker less
  USR1  reopen the log files

exit codes:
  0  stopped as told; with --check-config: it would serve
  1  the configuration cannot be served: standard error says why
  2  the command line is wrong
  3  the workers could not boot
  4  the application could not be loaded
"""


class ReforkConfig(Config):  # type: ignore[misc]
    """gunicorn's configuration; what is wrong with it is a ``ConfigurationError``."""

    def parser(self) -> Parser:
        """Return the parser of the command line and of the environment."""
        return Parser(self)

    def get_cmd_args_from_env(self) -> list[str]:
        """Return the words of the environment variable."""
        try:
            return list(super().get_cmd_args_from_env())
        except ValueError as error:
            raise UsageError(f"{ENVIRONMENT}: {error}; quote it as in a shell") from error

    @property
    def worker_class(self) -> Any:
        """The class that ``worker_class`` names, loaded."""
        return self._loaded("worker class", "worker_class", lambda: super(ReforkConfig, self).worker_class)

    @property
    def logger_class(self) -> Any:
        """The class that ``logger_class`` names, loaded."""
        return self._loaded("logger class", "logger_class", lambda: super(ReforkConfig, self).logger_class)

    def open_log(self) -> Any:
        """Make gunicorn's logger and open what it writes to.

        Raises:
            ConfigurationError: it cannot be opened.
        """
        logger_class = self.logger_class
        try:
            return logger_class(self)
        except Exception as error:
            # What gunicorn finds by itself is a RuntimeError whose message says that it is an error.
            said = str(error) if isinstance(error, RuntimeError) else describe(error)
            reason = said.removeprefix("Error: ")
            raise ConfigurationError(f"cannot open the logs: {reason}; check the logging settings") from error

    def _loaded(self, noun: str, name: str, load: Callable[[], Any]) -> Any:
        try:
            return load()
        except Exception as error:
            # gunicorn wraps what was raised in an exception with a traceback for its message.
            cause = error.__context__ or error
            hint = f"check --{name.replace('_', '-')}"
            if isinstance(cause, ModuleNotFoundError):
                hint = f"install {_package(cause.name or '')}, or {hint}"
            value = self.settings[name].get()
            raise ConfigurationError(f"{noun} {value!r} cannot be loaded: {describe(cause)}; {hint}") from error


def _package(module: str) -> str:
    """Name what is to be installed for a module."""
    top = module.partition(".")[0]
    return "refork[uvicorn]" if top in {"uvicorn", "uvicorn_worker"} else top


def validated(setting: Any, value: object) -> None:
    """Set a setting.

    Raises:
        ConfigurationError: the value does not do; says which setting it is and why.
    """
    try:
        setting.set(value)
    except Exception as error:
        reason = str(error) or type(error).__name__
        shown = "" if repr(value) in reason else f"{value!r}: "
        raise ConfigurationError(f"{setting.name}: {shown}{' '.join(reason.split())}") from error


class Parser(argparse.ArgumentParser):
    """Reads words. A value that its setting does not take is refused here, where the words are known."""

    def __init__(self, cfg: ReforkConfig) -> None:
        super().__init__(
            prog=cfg.prog,
            usage=cfg.usage,
            description=_DESCRIPTION,
            epilog=_EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self._settings = cfg.settings
        self._source = ""
        python = ".".join(str(part) for part in sys.version_info[:3])
        self.add_argument(
            *("-v", "--version"),
            action="version",
            version=f"refork {refork.__version__} (gunicorn {gunicorn.__version__}, Python {python})",
            help="show the versions of refork, gunicorn and Python, and exit",
        )
        self.add_argument("args", nargs="*", help=argparse.SUPPRESS)
        self._add_settings()

    def _add_settings(self) -> None:
        """Add what every setting has for a command line: ours first, gunicorn's by its sections behind."""
        sections: dict[str, list[Any]] = {settings.SECTION: []}
        for setting in sorted(self._settings.values(), key=lambda setting: setting.order):
            sections.setdefault(setting.section, []).append(setting)
        for section, members in sections.items():
            ours = section == settings.SECTION
            group = self.add_argument_group("options of refork" if ours else f"options of gunicorn: {section}")
            for setting in members:
                setting.add_option(_Silent(group) if setting.name in REFUSED else group)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Read the command line, or the words of the environment if there are ``args``."""
        self._source = "" if args is None else f"{ENVIRONMENT}: "
        found = super().parse_args(args, namespace)
        for name, value in vars(found).items():
            setting = self._settings.get(name)
            if setting is None or value is None:
                continue
            try:
                validated(setting.copy(), value)
            except ConfigurationError as error:
                self.error(f"argument {'/'.join(setting.cli)}: {str(error).removeprefix(f'{name}: ')}")
        return found

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the words."""
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message:
            words = unknown.split()
            word = next((word for word in words if word.startswith("-")), words[0])
            message = f"unknown option {word}{self._suggestion(word)}"
        raise UsageError(f"{self._source}{message}; see {self.prog} --help")

    def _suggestion(self, unknown: str) -> str:
        import difflib  # noqa: PLC0415 - only for those who mistype

        flags = [flag for setting in self._settings.values() for flag in setting.cli or ()]
        close = difflib.get_close_matches(unknown.partition("=")[0], flags, n=1, cutoff=0.75)
        return f", did you mean {close[0]}?" if close else ""


class _Silent:
    """Adds options that can be read, so that they can be refused with a reason, but are not shown."""

    def __init__(self, group: Any) -> None:
        self._group = group

    def add_argument(self, *args: Any, **kwargs: Any) -> None:
        self._group.add_argument(*args, **kwargs | {"help": argparse.SUPPRESS})
