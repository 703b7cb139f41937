"""Log lines for people at night and for machines: ``message key=value …`` as text, or one JSON object a line."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

LOGGER = "refork_operator"


class Log:
    """Writes what happened with its facts: ``log.info("refork started", pod="shop/web-1")``."""

    def __init__(self) -> None:
        self._logger = logging.getLogger(LOGGER)

    def debug(self, message: str, **facts: object) -> None:
        """Write what only a developer wants to know."""
        self._write(logging.DEBUG, message, facts)

    def info(self, message: str, **facts: object) -> None:
        """Write what is as it should be."""
        self._write(logging.INFO, message, facts)

    def warning(self, message: str, **facts: object) -> None:
        """Write what somebody should look at."""
        self._write(logging.WARNING, message, facts)

    def error(self, message: str, **facts: object) -> None:
        """Write what should not have happened."""
        self._write(logging.ERROR, message, facts)

    def _write(self, level: int, message: str, facts: dict[str, object]) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(level, "%s", message, extra={"facts": facts})


class _Formatter(logging.Formatter):
    def facts(self, record: logging.LogRecord) -> dict[str, Any]:
        found: dict[str, Any] = getattr(record, "facts", {})
        if record.exc_info:
            found = {**found, "error": repr(record.exc_info[1])}
        return found


class _Json(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": at, "level": record.levelname, "logger": record.name, "message": record.getMessage()}
        return json.dumps(line | self.facts(record), default=str)


class _Text(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        facts = " ".join(f"{key}={_quoted(value)}" for key, value in self.facts(record).items())
        return f"{at} {record.levelname.lower():7} {record.getMessage()} {facts}".rstrip()


def _quoted(value: object) -> str:
    text = str(value)
    return json.dumps(text) if " " in text or '"' in text or not text else text


def configure(*, level: str, form: str) -> None:
    """Send our lines, and the warnings of the libraries, to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if form == "json" else _Text())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger(LOGGER).setLevel(level)
