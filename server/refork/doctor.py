"""``refork --check-fork-safety``: would a worker of this application be safe to fork from?

It is the real server that finds out, because nothing else would be like it: one worker on a private socket, the
requests of a file, then the trial that ``reforkctl doctor`` asks of a running server. It is made for continuous
integration: the exit code says whether anything was found.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import sys
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from refork import api, facts
from refork.errors import ConfigurationError, describe
from refork.monitor import Monitor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from refork.cli import ReforkApplication

SAFE, UNSAFE, NOT_TRIED = 0, 1, 2

_POLL = 0.02
_SECONDS_TO_ANSWER = 60.0
_READ_AT_ONCE = 64 * 1024
_SERVER_ERRORS = range(500, 600)


class _UnansweredError(Exception):
    """A request got no answer, so nobody knows what it would have left behind."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request to be served before the worker is tried."""

    method: str
    target: str
    host: str = "localhost"
    body: bytes = b""

    def encoded(self) -> bytes:
        """Write it as HTTP."""
        kind = "application/json" if self.body[:1] in {b"{", b"["} else "application/x-www-form-urlencoded"
        about_body = f"Content-Type: {kind}\r\nContent-Length: {len(self.body)}\r\n" if self.body else ""
        head = f"{self.method} {self.target} HTTP/1.1\r\nHost: {self.host}\r\n{about_body}Connection: close\r\n\r\n"
        return head.encode() + self.body


def parse_requests(lines: Iterable[str]) -> list[Request]:
    """Read requests, one a line.

    Raises:
        ConfigurationError: a line is none.
    """
    requests = []
    for number, line in enumerate(lines, start=1):
        words = line.strip()
        if not words or words.startswith("#"):
            continue
        method = "GET"
        if not words.startswith(("/", "http://", "https://")):
            method, _, words = words.partition(" ")
        target, _, body = words.strip().partition(" ")
        url = urlsplit(target)
        if not method.isalpha() or not url.path.startswith("/"):
            raise ConfigurationError(f"line {number} is no request: write a path, or METHOD PATH BODY")
        path = url.path + (f"?{url.query}" if url.query else "")
        requests.append(Request(method.upper(), path, url.netloc or "localhost", body.strip().encode()))
    return requests


def examine(app: ReforkApplication) -> int:
    """Serve, try, tell; return the exit status.

    Raises:
        ConfigurationError: the requests cannot be read.
    """
    requests = _requests(app.cfg.check_requests)
    with tempfile.TemporaryDirectory(prefix="refork-") as directory:
        address = os.path.join(directory, "socket")
        for name, value in _private(address).items():
            app.cfg.set(name, value)
        examiner = _Examiner(app, address, requests)
        examiner.run()
    return examiner.conclude()


def _requests(name: str) -> list[Request]:
    if not name:
        return [Request("GET", "/")]
    try:
        with open(name, encoding="utf-8") as file:
            return parse_requests(file)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"--requests: {describe(error)}") from error
    except ConfigurationError as error:
        raise ConfigurationError(f"--requests {name}: {error}") from error


def _private(address: str) -> dict[str, object]:
    """Return the settings of a server that nobody else is to meet, with one worker that is not replaced."""
    return {
        "bind": f"unix:{address}",
        "workers": 1,
        "control_bind": "none",
        "metrics_bind": "none",
        "refork_after": "0",
        "pidfile": None,
    }


class _Examiner(Monitor):
    """A monitor whose only guest is a client of its own."""

    def __init__(self, app: ReforkApplication, address: str, requests: list[Request]) -> None:
        super().__init__(app)
        self._address = address
        self._to_serve = requests
        self._findings: tuple[str, ...] | None = None
        self._untried = "the server has ended before: its log says why"

    def conclude(self) -> int:
        """Print what was found."""
        if self._findings is None:
            sys.stderr.write(f"refork: error: the worker could not be tried: {self._untried}\n")
            return NOT_TRIED
        for finding in self._findings:
            sys.stdout.write(f"- {finding}\n")
        number = len(self._findings)
        sys.stdout.write(f"{number} found\n" if number else "nothing was found: it is safe to fork from\n")
        return UNSAFE if number else SAFE

    async def _serve(self) -> int:
        examination = asyncio.create_task(self._examine(), name="examination")
        try:
            return await super()._serve()
        finally:
            examination.cancel()

    async def _examine(self) -> None:
        try:
            await self._until(lambda: self.generations.phase is api.Phase.STEADY)
            for request in self._to_serve:
                await self._have_answered(request)
            self._ask(facts.TrialRequested(api.Trigger.COMMAND, self.nursery.requests()))
            await self._until(lambda: self.generations.rollout is None)
            ended = self.generations.last_rollout
            if ended is not None and ended.outcome is api.Outcome.SUCCEEDED:
                self._findings = ended.findings
            elif ended is not None:
                self._untried = ended.reason
        except (api.Refusal, OSError, TimeoutError, _UnansweredError) as error:
            self._untried = str(error) or type(error).__name__
        finally:
            self._stop(graceful=True)

    async def _until(self, arrived: Callable[[], bool]) -> None:
        while not arrived():  # noqa: ASYNC110 - the state machine tells nobody
            await asyncio.sleep(_POLL)

    async def _have_answered(self, request: Request) -> None:
        async with asyncio.timeout(_SECONDS_TO_ANSWER):
            reader, writer = await asyncio.open_unix_connection(
                self._address, ssl=_trusting() if self.cfg.is_ssl else None, server_hostname=self._server_name()
            )
            writer.write(request.encoded())
            words = (await reader.readline()).split()
            while await reader.read(_READ_AT_ONCE):
                pass
            writer.close()
        if len(words) < 2 or not words[1].isdigit():  # noqa: PLR2004 - the protocol and the status
            raise _UnansweredError(f"{request.method} {request.target} was not answered")
        if int(words[1]) in _SERVER_ERRORS:
            sys.stderr.write(f"refork: warning: {request.method} {request.target} answered {int(words[1])}\n")

    def _server_name(self) -> str | None:
        return "localhost" if self.cfg.is_ssl else None


def _trusting() -> ssl.SSLContext:
    """Make a client that asks for no proof: there is nobody else on a private socket."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
