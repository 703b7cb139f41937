"""The API server, spoken to in raw objects.

Configuration, authentication and TLS are those of the official client, and every request goes through its transport;
its models are left aside, because deserialising pods into them is slow. Every request has a time-out of its own (the
client's default is five minutes), patches are merge patches (the client would send a list as JSON patch), and every
request of anybody is counted, kopf's watches included.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import aiohttp
import msgspec
from kubernetes.aio import client, config

from refork_operator.names import sentence
from refork_operator.quantity import parse_retry_after

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from types import SimpleNamespace

    from refork_operator.metrics import Metrics
    from refork_operator.settings import Settings

SECONDS = 10.0
PAGE = 500
_FAILED = 400
_NOT_FOUND, _CONFLICT = 404, 409
_RETRIED = frozenset({429, 500, 502, 503, 504})
_ATTEMPTS = 5
_LONGEST_PAUSE = 10.0
_MERGE = "application/merge-patch+json"

type Body = dict[str, Any]


class ClusterError(Exception):
    """The API server did not do what was asked. ``status`` is 0 when it did not answer at all."""

    def __init__(self, status: int, message: str, *, retry_after: float = 0.0) -> None:
        super().__init__(f"{status}: {message}" if status else message)
        self.status = status
        self.retry_after = retry_after

    @property
    def gone(self) -> bool:
        """Whether the object is not there, or is another one of the same name; a conflict alone says neither."""
        return self.status == _NOT_FOUND or (self.status == _CONFLICT and "UID in precondition" in str(self))


class Cluster:
    """One connection to one API server."""

    def __init__(self, configuration: Any, *, metrics: Metrics) -> None:
        self._configuration = configuration
        self._metrics = metrics
        self.on_list: Callable[[str], None] = lambda _: None
        """Called with the name of a resource that kopf has listed."""
        self._watches: set[str] = set()
        configuration.trace_configs = [self._trace()]
        self._api = client.ApiClient(configuration)
        self._sessions: list[aiohttp.ClientSession] = []

    @property
    def server(self) -> str:
        """The URL of the API server."""
        return str(self._configuration.host).rstrip("/")

    def session(self) -> aiohttp.ClientSession:
        """Make a session that authenticates itself: for kopf's watches, which have no time limit."""
        rest = client.rest.RESTClientObject(self._configuration)
        session: aiohttp.ClientSession = rest._create_pool_manager()  # noqa: SLF001 - made to be overridden, so stable
        self._sessions.append(session)
        return session

    async def close(self) -> None:
        """Close every connection."""
        await self._api.close()
        for session in self._sessions:
            await session.close()

    async def get(self, path: str, **query: str | int) -> Body:
        """Read one object or a list."""
        return await self._patiently("GET", path + (f"?{urlencode(query)}" if query else ""))

    async def items(self, path: str, **query: str) -> AsyncIterator[Body]:
        """Read a list in pages."""
        more = ""
        while True:
            pages = {"continue": more} if more else {}
            page = await self.get(path, limit=PAGE, **query, **pages)
            for item in page.get("items") or ():
                yield item
            more = (page.get("metadata") or {}).get("continue") or ""
            if not more:
                return

    async def create(self, path: str, body: Body) -> Body:
        """Create an object."""
        return await self._request("POST", path, body=body)

    async def replace(self, path: str, body: Body, *, seconds: float = SECONDS) -> Body:
        """Replace an object, if it is still the version that ``body`` was read as."""
        return await self._request("PUT", path, body=body, seconds=seconds)

    async def read(self, path: str, *, seconds: float) -> Body:
        """Read an object in one attempt."""
        return await self._request("GET", path, seconds=seconds)

    async def merge(self, path: str, body: Body) -> Body:
        """Merge some fields into an object. Doing it twice does no harm, so it is retried."""
        return await self._patiently("PATCH", path, body=body)

    async def _patiently(self, method: str, path: str, *, body: Body | None = None) -> Body:
        """Ask again after trouble that passes."""
        for attempt in range(_ATTEMPTS):
            try:
                return await self._request(method, path, body=body)
            except ClusterError as error:
                if error.status and error.status not in _RETRIED:
                    raise
                if attempt == _ATTEMPTS - 1:
                    raise
                await asyncio.sleep(min(max(error.retry_after, 0.2 * 2**attempt), _LONGEST_PAUSE))
        raise AssertionError("unreachable")

    async def _request(self, method: str, path: str, *, body: Body | None = None, seconds: float = SECONDS) -> Body:
        headers = {"Accept": "application/json", "Content-Type": _MERGE if method == "PATCH" else "application/json"}
        timeout = aiohttp.ClientTimeout(total=seconds)
        try:
            async with asyncio.timeout(seconds):
                answer = await self._api.rest_client.request(
                    method, self.server + path, headers=headers, body=body, _request_timeout=timeout
                )
                content = await answer.read()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise ClusterError(0, f"no answer from the API server: {error!r}") from error
        if answer.status >= _FAILED:
            raise _error(answer.status, content, retry_after=answer.headers.get("Retry-After", ""))
        try:
            return msgspec.json.decode(content, type=dict) if content else {}
        except msgspec.MsgspecError as error:
            raise ClusterError(0, f"the API server answers nonsense: {error}") from error

    def _trace(self) -> aiohttp.TraceConfig:
        trace = aiohttp.TraceConfig()
        trace.on_request_start.append(self._starts)
        trace.on_request_end.append(self._ends)
        trace.on_request_exception.append(self._breaks)
        return trace

    async def _starts(self, _: object, __: SimpleNamespace, params: aiohttp.TraceRequestStartParams) -> None:
        """Show who we are: tokens in a cluster are renewed while we run, so each request gets the present one."""
        token = await self._configuration.get_api_key_with_prefix("BearerToken", alias="authorization")
        if token:
            params.headers["Authorization"] = token
        if _verb(params) == "watch":
            restarts = self._metrics.watch_restarts.labels(_resource(params))
            if params.url.path in self._watches:
                restarts.inc()
            self._watches.add(params.url.path)

    async def _ends(
        self, session: aiohttp.ClientSession, _: SimpleNamespace, params: aiohttp.TraceRequestEndParams
    ) -> None:
        verb, status = _verb(params), params.response.status
        self._metrics.api_requests.labels(verb, status).inc()
        if status >= _FAILED:
            self._metrics.api_errors.labels(verb, status).inc()
        elif verb == "get" and session in self._sessions and "continue" not in params.url.query:
            self.on_list(_resource(params))

    async def _breaks(self, _: object, __: SimpleNamespace, params: aiohttp.TraceRequestExceptionParams) -> None:
        verb = _verb(params)
        self._metrics.api_requests.labels(verb, "none").inc()
        self._metrics.api_errors.labels(verb, "none").inc()


async def connect(settings: Settings, *, metrics: Metrics) -> Cluster:
    """Find the cluster: the kubeconfig that was named, else the pod's own ServiceAccount."""
    configuration = client.Configuration()
    try:
        if settings.kubeconfig:
            await config.load_kube_config(
                config_file=settings.kubeconfig,
                context=settings.context or None,
                client_configuration=configuration,
            )
        else:
            config.load_incluster_config(client_configuration=configuration)
    except (config.ConfigException, OSError) as error:
        raise ClusterError(0, f"{error}; give --kubeconfig FILE, or run in a pod") from error
    except Exception as error:  # the client trips over a file that is none in many ways
        raise ClusterError(0, f"{settings.kubeconfig} is no kubeconfig: {sentence(str(error))}") from error
    return Cluster(configuration, metrics=metrics)


type _Request = aiohttp.TraceRequestStartParams | aiohttp.TraceRequestEndParams | aiohttp.TraceRequestExceptionParams


def _verb(request: _Request) -> str:
    return "watch" if "watch" in request.url.query else request.method.lower()


def _resource(request: _Request) -> str:
    return request.url.path.rpartition("/")[2]


def _error(status: int, content: bytes, *, retry_after: str) -> ClusterError:
    try:
        message = str(msgspec.json.decode(content, type=dict).get("message", ""))
    except msgspec.MsgspecError:
        message = content[:200].decode(errors="replace")
    return ClusterError(status, message, retry_after=parse_retry_after(retry_after))
