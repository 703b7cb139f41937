"""``refork``: from a command line to a running server, or to one clear line about why not.

The configuration is read in three places: here, by a running monitor on HUP, and by each mold in its fresh interpreter.
So reading it never exits and never prints: it raises. Only ``main`` speaks to the person at the terminal. The monitor
never loads the application; ``--check-config`` and ``--print-config`` do, because that is what they are for.
"""

from __future__ import annotations

from refork.platform_check import require

require()  # before the imports that could only fail, on a machine that is not for refork

# ruff: noqa: E402
import os
import signal

if os.getpid() == 1:  # process 1 has no default actions (pid_namespaces(7)): until there is a handler, SIGTERM is lost
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))

import importlib
import sys
import traceback
from importlib.machinery import SourceFileLoader, SourcelessFileLoader
from itertools import pairwise
from types import ModuleType
from typing import TYPE_CHECKING, Any

from gunicorn import util
from gunicorn.app.base import Application
from gunicorn.app.wsgiapp import WSGIApplication
from gunicorn.errors import ConfigError

from refork.bind import BindError
from refork.configuration import ReforkConfig, validated
from refork.errors import ConfigurationError, UsageError, describe
from refork.prerequisites import verify
from refork.refusals import check, settle

if TYPE_CHECKING:
    from collections.abc import Sequence

USAGE = "%(prog)s [OPTIONS] [APP_MODULE]"
_CONFIG_MODULE = "__config__"


class ReforkApplication(WSGIApplication):  # type: ignore[misc]
    """The application as it is configured; loading it is left to molds.

    Attributes:
        cfg: the configuration, checked.
        argv: the words it was made from; with ``start_directory`` they make it again.
        start_directory: where the words are to be read: relative paths in them start there.
    """

    app_uri: str | None

    def __init__(self) -> None:
        self.argv = sys.argv[1:]
        self.start_directory = os.getcwd()
        super().__init__(USAGE, prog="refork")

    def load_default_config(self) -> None:
        """Begin with every setting at its default."""
        self.cfg = ReforkConfig(self.usage, prog=self.prog)

    def do_load_config(self) -> None:
        """Read the configuration and make sure that it can be served.

        Raises:
            ConfigurationError: it cannot.
        """
        try:
            self.load_default_config()
            self.load_config()
            if hasattr(self.cfg, "validate"):
                self.cfg.validate()
            settle(self.cfg)
            check(self.cfg)
            verify(self.cfg)
        except ConfigurationError:
            raise
        except Exception as error:
            raise ConfigurationError(describe(error)) from error

    def load_config(self) -> None:
        """Read command line, environment and file; find out what the application is and where its modules are."""
        Application.load_config(self)  # past WSGIApplication, which asks for the application in fewer words
        if self.app_uri is None and self.cfg.wsgi_app is not None:
            self.app_uri = self.cfg.wsgi_app
            self.cfg.set("default_proc_name", self.app_uri)
        if self.app_uri is None:
            raise UsageError(
                "no application: name it, like `refork MODULE:CALLABLE`, or set wsgi_app in the configuration file"
            )
        for path in (self.cfg.pythonpath or "").split(","):
            absolute = os.path.abspath(path)
            if path and absolute not in sys.path:
                sys.path.insert(0, absolute)

    def load_config_from_module_name_or_filename(self, location: str) -> dict[str, Any]:
        """Set what a configuration file, or a module as ``python:NAME``, says; names that are no settings are its own.

        Raises:
            ConfigurationError: it cannot be read, it fails, or a value is wrong.
        """
        if location.startswith("python:"):
            values = self.get_config_from_module_name(location.removeprefix("python:"))
        else:
            location = location.removeprefix("file:")
            values = self.get_config_from_filename(location)
        for name, value in values.items():
            if name in self.cfg.settings:
                try:
                    validated(self.cfg.settings[name], value)
                except ConfigurationError as error:
                    raise ConfigurationError(f"{location}: {error}") from error
        return values

    def get_config_from_filename(self, filename: str) -> dict[str, Any]:
        """Run a configuration file, from its source: a bytecode cache takes an edit within the same second for none."""
        if not os.path.exists(filename):
            raise ConfigurationError(f"configuration file {filename!r} does not exist: check --config")
        module = ModuleType(_CONFIG_MODULE)
        module.__file__ = filename
        sys.modules[_CONFIG_MODULE] = module
        try:
            if filename.endswith(".pyc"):
                code: Any = SourcelessFileLoader(_CONFIG_MODULE, filename).get_code(_CONFIG_MODULE)
            else:
                loader = SourceFileLoader(_CONFIG_MODULE, filename)
                code = loader.source_to_code(loader.get_data(filename), filename)
            exec(code, vars(module))  # noqa: S102 - a configuration file is a program
        except (Exception, SystemExit) as error:
            hint = "" if has_python_name(filename) else "; it is read as Python, whatever its name"
            raise ConfigurationError(f"configuration file {filename!r}: {describe(error)}{hint}") from error
        return vars(module)

    def get_config_from_module_name(self, module_name: str) -> dict[str, Any]:
        """Import a module for its settings, afresh if it was imported before."""
        known = sys.modules.get(module_name)
        try:
            return vars(importlib.import_module(module_name) if known is None else importlib.reload(known))
        except (Exception, SystemExit) as error:
            raise ConfigurationError(f"configuration module {module_name!r}: {describe(error)}") from error

    def rehearse(self) -> None:
        """Load the worker class and the application, to see whether a mold could.

        Raises:
            ConfigurationError: it could not.
        """
        os.environ.update(self.cfg.env)
        _ = self.cfg.worker_class
        try:
            self.wsgi()
        except (Exception, SystemExit) as error:
            hint = "; check its name, --chdir and --pythonpath" if self._is_missing(error) else ""
            raise ConfigurationError(f"application {self.app_uri!r} does not load: {describe(error)}{hint}") from error

    def _is_missing(self, error: BaseException) -> bool:
        """Tell the module that is not there from one that it imports."""
        module = str(self.app_uri).partition(":")[0]
        return isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}.")


def has_python_name(filename: str) -> bool:
    """Whether a configuration file is named as gunicorn wants it."""
    return filename.endswith((".py", ".pyc"))


def load_application(argv: Sequence[str], *, directory: str | None = None) -> ReforkApplication:
    """Read the configuration that these words stand for, as ``refork`` itself did, from the same directory.

    Raises:
        ConfigurationError: it cannot be served. The working directory is then what it was.
    """
    before = os.getcwd()
    if directory is not None:
        os.chdir(directory)
    sys.argv = ["refork", *argv]
    try:
        return ReforkApplication()
    except BaseException:
        os.chdir(before)
        raise


def main() -> None:
    """Be the command ``refork``."""
    app = None
    try:
        app = ReforkApplication()
        status = _run(app)
    except (ConfigError, BindError) as error:
        if _wants_tracebacks(app):
            traceback.print_exception(error)
        for line in str(error).splitlines():
            _say(f"error: {line}")
        status = getattr(error, "exit_status", 1)
    sys.exit(status)


def _run(app: ReforkApplication) -> int:
    cfg = app.cfg
    location = str(cfg.config).removeprefix("file:")
    if not location.startswith("python:") and not has_python_name(location):
        _say(f"warning: configuration file {location!r} is read as Python: name it *.py")
    if cfg.print_config:
        sys.stdout.write(f"{cfg}\n")
    if cfg.print_config or cfg.check_config:
        app.rehearse()
        return 0
    if cfg.check_fork_safety:
        from refork.doctor import examine  # noqa: PLC0415 - as below

        return examine(app)
    if cfg.daemon:
        util.daemonize(cfg.enable_stdio_inheritance)
    from refork.monitor import serve  # noqa: PLC0415 - only who serves needs it, and it imports this module

    return serve(app)


def _say(sentence: str) -> None:
    sys.stderr.write(f"refork: {sentence}\n")


def _wants_tracebacks(app: ReforkApplication | None) -> bool:
    if app is not None:
        return str(app.cfg.loglevel).lower() == "debug"
    words = sys.argv[1:]
    return "--log-level=debug" in words or ("--log-level", "debug") in pairwise(words)


if __name__ == "__main__":
    main()
