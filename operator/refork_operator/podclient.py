"""The control endpoint of a pod, as its client: nothing that a pod answers may cost more than that pod.

Answers are cut off at a size and after a time; redirects, compression and cookies are not taken. What goes wrong comes
back as one word that is counted and shown (``Trouble``) and a sentence for people.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING

import aiohttp
import msgspec

from refork import api
from refork_operator import samples
from refork_operator.names import Trouble, sentence
from refork_operator.quantity import parse_retry_after

if TYPE_CHECKING:
    from collections.abc import Mapping

_HEADERS = {"User-Agent": "refork-operator", "Accept": "application/json"}
_STATUS_PATH, _REFORK_PATH, _OPERATIONS_PATH = "/v1/status", "/v1/refork", "/v1/operations/"
_CHUNK = 64 * 1024
_FIRST_BYTES = 1000
_UNAUTHORIZED = frozenset({401, 403})


class PodError(Exception):
    """The pod did not answer as it should."""

    def __init__(self, trouble: Trouble, message: str) -> None:
        super().__init__(f"{trouble}: {message}")
        self.trouble = trouble
        self.message = message


class RefusedError(Exception):
    """The server will not refork: the sentence is its own. ``later`` is when asking again makes sense."""

    def __init__(self, status: int, message: str, *, retry_after: float = 0.0) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where one pod answers, and what to show it. ``tls`` is None for plain HTTP."""

    host: str
    port: int
    token: str = ""
    tls: ssl.SSLContext | None = None
    server_name: str = ""

    @property
    def url(self) -> str:
        """The beginning of every address."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls is not None else 'http'}://{host}:{self.port}"


class PodClient:
    """Asks and tells pods."""

    def __init__(self, *, seconds: float, limit: int) -> None:
        self._seconds = seconds
        self._limit = limit
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close what is open."""
        if self._session is not None:
            await self._session.close()

    async def status(self, endpoint: Endpoint, *, at: float, limit: int | None) -> samples.Observation:
        """Ask how the server is. Raises PodError."""
        status, _, body = await self._exchange("GET", endpoint, _STATUS_PATH)
        _must_be_ok(status, body)
        try:
            return samples.read(body, at=at, limit=limit)
        except samples.NonsenseError as error:
            raise PodError(Trouble.NONSENSE, _short(error)) from error

    async def refork(self, endpoint: Endpoint, *, request_id: str, reason: str) -> str:
        """Command a refork; return the operation.

        Raises RefusedError, or PodError when it is not known what happened.
        """
        body = msgspec.json.encode(api.ReforkCommand(request_id=request_id, reason=reason))
        status, headers, answer = await self._exchange("POST", endpoint, _REFORK_PATH, body=body)
        if status == 202:  # noqa: PLR2004 - Accepted
            try:
                return msgspec.json.decode(answer, type=api.Accepted).operation
            except samples.UNREADABLE as error:
                raise PodError(Trouble.NONSENSE, _short(error)) from error
        if status >= 500:  # noqa: PLR2004 - the server's own trouble
            raise PodError(Trouble.HTTP_ERROR, f"{status}: {_sentence(answer)}")
        if status in _UNAUTHORIZED:
            raise PodError(Trouble.UNAUTHORIZED, f"{status}: {_sentence(answer)}")
        after = parse_retry_after(headers.get("Retry-After", ""))
        raise RefusedError(status, _sentence(answer), retry_after=after)

    async def operation(self, endpoint: Endpoint, operation: str) -> api.OperationStatus | None:
        """Ask how a refork goes; None when the server knows of none (it is another server). Raises PodError."""
        status, _, body = await self._exchange("GET", endpoint, _OPERATIONS_PATH + operation)
        if status == 404:  # noqa: PLR2004 - Not Found
            return None
        _must_be_ok(status, body)
        try:
            return samples.read_operation(body)
        except samples.NonsenseError as error:
            raise PodError(Trouble.NONSENSE, _short(error)) from error

    async def _exchange(
        self, method: str, endpoint: Endpoint, path: str, *, body: bytes | None = None
    ) -> tuple[int, Mapping[str, str], bytes]:
        headers = dict(_HEADERS)
        if endpoint.token:
            headers["Authorization"] = f"Bearer {endpoint.token}"
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            async with (
                asyncio.timeout(self._seconds),
                self._ready().request(
                    method,
                    endpoint.url + path,
                    headers=headers,
                    data=body,
                    allow_redirects=False,
                    ssl=endpoint.tls if endpoint.tls is not None else False,
                    server_hostname=endpoint.server_name or None,
                ) as answer,
            ):
                return answer.status, answer.headers, await self._read(answer)
        except TimeoutError as error:
            raise PodError(Trouble.TIMED_OUT, f"no answer within {self._seconds:g} s") from error
        except aiohttp.ClientConnectorError as error:
            raise PodError(Trouble.UNREACHABLE, _short(error)) from error
        except (aiohttp.ClientError, OSError) as error:
            raise PodError(Trouble.NONSENSE, _short(error)) from error
        except ValueError as error:  # a header or an address that the library cannot even represent
            raise PodError(Trouble.NONSENSE, _short(error)) from error

    async def _read(self, answer: aiohttp.ClientResponse) -> bytes:
        parts, size = [], 0
        async for part in answer.content.iter_chunked(_CHUNK):
            size += len(part)
            if size > self._limit:
                answer.close()
                raise PodError(Trouble.TOO_LARGE, f"the answer has more than {self._limit} bytes")
            parts.append(part)
        return b"".join(parts)

    def _ready(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, force_close=True),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None),
                auto_decompress=False,
                trust_env=False,
            )
        return self._session


def tls_context(authority: str = "") -> ssl.SSLContext:
    """Make the TLS settings for pods whose certificates this authority signed."""
    return ssl.create_default_context(cadata=authority or None)


def _must_be_ok(status: int, body: bytes) -> None:
    if status in _UNAUTHORIZED:
        raise PodError(Trouble.UNAUTHORIZED, f"{status}: {_sentence(body)}")
    if status != 200:  # noqa: PLR2004 - OK
        raise PodError(Trouble.HTTP_ERROR, f"{status}: {_sentence(body)}")


def _sentence(body: bytes) -> str:
    try:
        text = msgspec.json.decode(body, type=api.Refused).error
    except samples.UNREADABLE:
        text = body[:_FIRST_BYTES].decode(errors="replace")
    return sentence(text)


def _short(error: Exception) -> str:
    return sentence(str(error)) or type(error).__name__
