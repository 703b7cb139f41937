"""The public keys that a cluster signs its tokens with: from a file or from the API server, kept for a while.

Keys are fetched when somebody shows a token, never in the background. They are looked at again after some minutes, and
at once when a token names a key that is not known: that is how keys are changed. What anybody can make us do is
bounded: one fetch at a time, and some seconds between them. When the API server cannot be reached, what is known counts
for another hour, so that its outage is not ours; after that nobody is let in by it.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import h11
import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import jwt

    from refork.cluster import Source
    from refork.endpoint import Log

SECONDS_FRESH = 300.0
SECONDS_USABLE = 3600.0
SECONDS_BETWEEN_FETCHES = 10.0
SECONDS_TO_FETCH = 5.0
LARGEST_ANSWER = 1024 * 1024
MOST_KEYS = 64
SMALLEST_RSA_KEY = 2048


class KeysError(Exception):
    """There are no keys to be had; the sentence says why."""


class _Keys(msgspec.Struct, frozen=True):
    keys: list[dict[str, Any]]


class KeySet:
    """The keys of one source."""

    def __init__(self, source: Source, *, log: Log, clock: Callable[[], float] = time.monotonic) -> None:
        self._source = source
        self._log = log
        self._clock = clock
        self._keys: dict[str, jwt.PyJWK] = {}
        self._fetched = float("-inf")
        self._tried = float("-inf")
        self._failure = ""
        self._fetching = asyncio.Lock()

    async def find(self, kid: str) -> jwt.PyJWK | None:
        """Return the key of this name; None if the cluster has none.

        Raises:
            KeysError: it cannot be known.
        """
        if self._source.remote and kid in self._keys and self._clock() - self._fetched <= SECONDS_FRESH:
            return self._keys[kid]  # nobody whose key is known waits for a fetch that somebody else has caused
        async with self._fetching:
            if self._due(kid):
                await self._refresh()
            if self._clock() - self._fetched > SECONDS_USABLE:
                raise KeysError(self._failure or "the keys have not been fetched yet")
            return self._keys.get(kid)

    def _due(self, kid: str) -> bool:
        now = self._clock()
        if self._source.remote and now - self._tried < SECONDS_BETWEEN_FETCHES:
            return False
        # A file is read each time: that costs less than to wonder whether it has changed.
        return not self._source.remote or kid not in self._keys or now - self._fetched > SECONDS_FRESH

    async def _refresh(self) -> None:
        self._tried = self._clock()
        try:
            content = await self._fetch() if self._source.remote else _read(self._source.location)
            self._keys = parse(content)
        except (OSError, ValueError, TimeoutError, h11.ProtocolError, KeysError) as error:
            self._failure = f"keys cannot be had from {self._source.location}: {error or type(error).__name__}"
            if not self._source.remote:
                self._fetched = float("-inf")
            self._log.error("control jwks=%s keys=%d error=%r", self._source.location, len(self._keys), error)
            return
        if self._failure or self._fetched == float("-inf"):
            self._log.info("control jwks=%s keys=%d", self._source.location, len(self._keys))
        self._failure = ""
        self._fetched = self._clock()

    async def _fetch(self) -> bytes:
        headers = {"Accept": "application/jwk-set+json, application/json"}
        if self._source.token_file:
            headers["Authorization"] = f"Bearer {_read(self._source.token_file).decode().strip()}"
        context = ssl.create_default_context(cafile=self._source.ca_file or None)
        async with asyncio.timeout(SECONDS_TO_FETCH):
            return await _get(self._source.location, headers=headers, context=context)


async def _get(url: str, *, headers: Mapping[str, str], context: ssl.SSLContext) -> bytes:
    """Ask once, of this server and of no other: a redirect could lead the pod's token elsewhere."""
    parts = urlsplit(url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    said = {"Host": parts.netloc.rpartition("@")[2], "Connection": "close", **headers}
    asking = h11.Connection(h11.CLIENT)
    try:
        request = asking.send(h11.Request(method="GET", target=target, headers=list(said.items()))) or b""
    except h11.LocalProtocolError:
        raise KeysError("the address or the token is nothing that HTTP can carry") from None  # and nothing to repeat
    request += asking.send(h11.EndOfMessage()) or b""
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port or 443, ssl=context)
    try:
        writer.write(request)
        return await _answer(asking, reader)
    finally:
        writer.transport.abort()


async def _answer(asking: h11.Connection, reader: asyncio.StreamReader) -> bytes:
    content = bytearray()
    while True:
        match asking.next_event():
            case h11.NEED_DATA:
                asking.receive_data(await reader.read(LARGEST_ANSWER))
            case h11.Response(status_code=status) if status != HTTPStatus.OK:
                raise KeysError(f"the answer is {status}")
            case h11.Data(data=data):
                content += data
                if len(content) > LARGEST_ANSWER:
                    raise KeysError("the answer is too large")
            case h11.EndOfMessage():
                return bytes(content)


def parse(content: bytes) -> dict[str, jwt.PyJWK]:
    """Read a key set: the public keys in it that can verify signatures, by name.

    Raises:
        KeysError: there are none in it.
    """
    import jwt  # noqa: PLC0415  (it takes cryptography with it: not before somebody shows a token)

    try:
        found = msgspec.json.decode(content, type=_Keys).keys[:MOST_KEYS]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise KeysError(f"it is no key set: {error}") from error
    keys = {}
    for one in found:
        kid, kind, algorithm = one.get("kid"), one.get("kty"), one.get("alg", "")
        if not (isinstance(kid, str) and isinstance(kind, str) and isinstance(algorithm, str)):
            continue
        # A symmetric key in a published set would be no secret: only public keys count.
        if kind not in {"RSA", "EC"} or one.get("use", "sig") != "sig":
            continue
        try:
            key = jwt.PyJWK(one)
        except (jwt.PyJWTError, NotImplementedError):  # the latter for the algorithm "none"
            continue
        if key.key_type == "EC" or key.key.key_size >= SMALLEST_RSA_KEY:
            keys[kid] = key
    if not keys:
        raise KeysError("it has no public key that could verify a signature")
    return keys


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        content = file.read(LARGEST_ANSWER + 1)
    if len(content) > LARGEST_ANSWER:
        raise KeysError(f"{path} is too large")
    return content
