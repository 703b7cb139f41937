"""What can be wrong with what we were given, and how to say so in one line.

A person who has made a mistake wants the mistake and its fix, not forty lines of other people's stack frames. Whatever
is wrong with a command line, a configuration or an application ends up as one of these exceptions, or as the one line
that ``describe`` makes of it. The module is imported by every process, so it imports next to nothing.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import gunicorn
from gunicorn.errors import AppImportError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import CodeType

_SERVER = tuple(os.path.dirname(os.path.abspath(file)) + os.sep for file in (__file__, gunicorn.__file__))
_STANDARD_LIBRARY = os.path.dirname(os.__file__) + os.sep
_INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
_LONGEST_MESSAGE = 500


class ConfigurationError(ConfigError):  # type: ignore[misc]
    """The configuration cannot be served; the message says why and what to do, one sentence a line."""

    exit_status = 1


class UsageError(ConfigurationError):
    """The command line is wrong: with such words there is nothing to configure."""

    exit_status = 2


def describe(exc: BaseException) -> str:
    """Say in one line what an exception is, and which line of the user's code it comes from.

    Of all frames, the innermost one of neither the standard library nor an installed package is the user's; when there
    is none, the innermost one of an installed package is the best that can be told. Our own sentences need no frame.
    """
    message = _message(exc)
    if isinstance(exc, (ConfigError, AppImportError)):
        return message or type(exc).__name__
    kind = type(exc).__qualname__
    place = _place(exc)
    return f"{kind}: {message}".removesuffix(": ") + (f" ({place})" if place else "")


def _message(exc: BaseException) -> str:
    """Return what the exception says, without its line breaks and its length."""
    try:
        if isinstance(exc, SystemExit):
            text = f"it exited with {exc.code!r}"
        else:
            text = str(exc.msg or "") if isinstance(exc, SyntaxError) else str(exc)
    except Exception:  # noqa: BLE001 - an exception that cannot even be written down is still to be reported
        return "(its message could not be read)"
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_MESSAGE else line[: _LONGEST_MESSAGE - 1] + "…"


def _place(exc: BaseException) -> str:
    if isinstance(exc, SyntaxError) and exc.filename:
        return f"{_shown(exc.filename)}:{exc.lineno}"
    installed = ""
    for code, line in _frames(exc):
        name = os.path.abspath(code.co_filename)
        if name.startswith(_SERVER) or code.co_filename.startswith("<"):
            continue
        if any(part in name for part in _INSTALLED):
            installed = installed or f"{_shown(name)}:{line}"
        elif not name.startswith(_STANDARD_LIBRARY):
            return f"{_shown(name)}:{line}"
    return installed


def _frames(exc: BaseException) -> Iterator[tuple[CodeType, int]]:
    """Go through the frames that the exception has passed, innermost first."""
    passed = []
    step = exc.__traceback__
    while step is not None:
        passed.append((step.tb_frame.f_code, step.tb_lineno))
        step = step.tb_next
    return reversed(passed)


def _shown(path: str) -> str:
    """Write a path as a person in the working directory would."""
    try:
        here = os.getcwd() + os.sep
    except OSError:
        return path
    absolute = os.path.abspath(path)
    return absolute.removeprefix(here)
