"""An API server small enough to read and real enough to catch what a mock would not.

It keeps resource versions, conflicts and generations, compacts its history (410), streams watches with bookmarks and
selectors, has status subresources, checks custom resources against their CRD, authenticates tokens and enforces roles.
It can be told to misbehave: to break watches, to answer slowly, to refuse with 429 or 503. Everything it was asked is
written down. It runs in a thread of its own, so that a test, an operator process and kubectl can use it side by side.
"""

from __future__ import annotations

import asyncio
import base64
import copy
import fnmatch
import itertools
import json
import ssl
import threading
import time
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import trustme
from aiohttp import web

from tests.fakes import schema

if TYPE_CHECKING:
    from collections.abc import Callable

Object = dict[str, Any]
ADMIN = "admin-token"


@dataclass(frozen=True)
class Kind:
    """One kind of resource."""

    group: str
    version: str
    plural: str
    kind: str
    short: tuple[str, ...] = ()
    status: bool = True

    @property
    def root(self) -> str:
        return f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version


BUILT_IN = (
    Kind("", "v1", "pods", "Pod", ("po",)),
    Kind("", "v1", "secrets", "Secret", status=False),
    Kind("", "v1", "events", "Event", ("ev",), status=False),
    Kind("", "v1", "namespaces", "Namespace", ("ns",)),
    Kind("apps", "v1", "deployments", "Deployment", ("deploy",)),
    Kind("apps", "v1", "replicasets", "ReplicaSet", ("rs",)),
    Kind("apps", "v1", "statefulsets", "StatefulSet", ("sts",)),
    Kind("apps", "v1", "daemonsets", "DaemonSet", ("ds",)),
    Kind("coordination.k8s.io", "v1", "leases", "Lease", status=False),
    Kind("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", ("crd",)),
)


@dataclass(frozen=True)
class Request:
    """One request that came in."""

    at: float
    verb: str
    resource: str
    path: str
    who: str
    status: int
    body: Any = None


@dataclass
class Change:
    """One entry of the history."""

    version: int
    kind: str
    plural: str
    before: Object | None
    object: Object


@dataclass
class Faults:
    """How to misbehave."""

    seconds: float = 0.0
    status: int = 0
    times: int = 0
    only: Callable[[str, str], bool] = lambda verb, resource: True


@dataclass
class Account:
    """Somebody with a token, and the rules that bind them; None for an administrator."""

    name: str
    rules: list[Object] | None = None
    namespaces: dict[str, list[Object]] = field(default_factory=dict)


class ApiServer:
    """Start it, read ``url``, talk to it over HTTP or by the methods here, which are safe from any thread."""

    def __init__(self) -> None:
        self.kinds: dict[tuple[str, str], Kind] = {(kind.group, kind.plural): kind for kind in BUILT_IN}
        self.schemas: dict[str, Any] = {}
        self.objects: dict[str, dict[tuple[str, str], Object]] = {kind.plural: {} for kind in BUILT_IN}
        self.history: list[Change] = []
        self.requests: list[Request] = []
        self.accounts: dict[str, Account] = {ADMIN: Account("admin")}
        self.faults = Faults()
        self.bookmark_seconds = 0.5
        self.compacted = 0
        self.url = ""
        self.authority = trustme.CA()
        self._versions = itertools.count(1)
        self._watches: set[asyncio.Queue[Change | None]] = set()
        self._thread: threading.Thread | None = None
        self._loop = asyncio.new_event_loop()
        self._stop: asyncio.Event | None = None
        self._started = threading.Event()

    # --- from tests ---------------------------------------------------------------------------------------------------

    def start(self) -> ApiServer:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._started.wait(10)
        return self

    def stop(self) -> None:
        assert self._stop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        assert self._thread is not None
        self._thread.join(10)

    def install(self, crd: Object) -> None:
        """Install a CustomResourceDefinition."""
        self._call(lambda: self._install(crd))

    def create(self, plural: str, raw: Object) -> Object:
        return self._call(lambda: self._create(self._kind(plural), copy.deepcopy(raw)))

    def get(self, plural: str, name: str, namespace: str = "default") -> Object:
        return self._call(lambda: copy.deepcopy(self.objects[plural][namespace, name]))

    def list(self, plural: str) -> list[Object]:
        return self._call(lambda: copy.deepcopy(list(self.objects.get(plural, {}).values())))

    def patch(
        self, plural: str, name: str, changes: Object, namespace: str = "default", *, status: bool = False
    ) -> Object:
        def act() -> Object:
            kind = self._kind(plural)
            known = self.objects[plural][namespace, name]
            return self._update(kind, known, merge(copy.deepcopy(known), changes), status=status)

        return self._call(act)

    def annotate(
        self, plural: str, name: str, value: str | None, namespace: str = "default", *, key: str = ""
    ) -> Object:
        return self.patch(
            plural, name, {"metadata": {"annotations": {key or "refork.dev/requestedAt": value}}}, namespace
        )

    def delete(self, plural: str, name: str, namespace: str = "default") -> None:
        self._call(lambda: self._delete(self._kind(plural), self.objects[plural][namespace, name]))

    def forget(self, plural: str, name: str, namespace: str = "default") -> None:
        """Remove an object as if it had gone while nobody watched: with no event, and a compacted history."""

        def act() -> None:
            del self.objects[plural][namespace, name]
            next(self._versions)
            self._compact()

        self._call(act)

    def break_watches(self) -> None:
        """Drop every watch connection in the middle."""
        self._call(lambda: [queue.put_nowait(None) for queue in self._watches] and None)

    def compact(self) -> None:
        """Forget the history: whoever resumes an older watch gets a 410."""
        self._call(self._compact)

    def misbehave(self, **faults: Any) -> None:
        self._call(lambda: setattr(self, "faults", Faults(**faults)))

    def count(self, **where: Any) -> int:
        """Count requests by their fields; texts may have wildcards."""
        return len(self.asked(**where))

    def asked(self, **where: Any) -> list[Request]:
        def fits(request: Request) -> bool:
            return all(
                fnmatch.fnmatch(getattr(request, k), v) if isinstance(v, str) else getattr(request, k) == v
                for k, v in where.items()
            )

        return [request for request in list(self.requests) if fits(request)]

    def kubeconfig(self, token: str = ADMIN) -> Object:
        authority = self.authority.cert_pem.bytes()
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "fake",
            "clusters": [
                {
                    "name": "fake",
                    "cluster": {"server": self.url, "certificate-authority-data": base64.b64encode(authority).decode()},
                }
            ],
            "users": [{"name": "user", "user": {"token": token}}],
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "user", "namespace": "default"}}],
        }

    def _call[Result](self, act: Callable[[], Result]) -> Result:
        async def run() -> Result:
            return act()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(10)

    # --- storage ------------------------------------------------------------------------------------------------------

    def _kind(self, plural: str) -> Kind:
        return next(kind for kind in self.kinds.values() if kind.plural == plural)

    def _install(self, crd: Object) -> None:
        spec = crd["spec"]
        version = spec["versions"][0]
        names = spec["names"]
        kind = Kind(spec["group"], version["name"], names["plural"], names["kind"], tuple(names.get("shortNames", ())))
        self.kinds[kind.group, kind.plural] = kind
        self.objects.setdefault(kind.plural, {})
        self.schemas[kind.plural] = version["schema"]["openAPIV3Schema"]

    def _create(self, kind: Kind, raw: Object) -> Object:
        meta = raw.setdefault("metadata", {})
        meta.setdefault("namespace", "default")
        if "name" not in meta and "generateName" in meta:
            meta["name"] = meta["generateName"] + uuid.uuid4().hex[:5]
        key = (meta["namespace"], meta["name"])
        if key in self.objects[kind.plural]:
            raise _Status(409, "AlreadyExists", f"{kind.plural} {meta['name']!r} already exists")
        raw["apiVersion"], raw["kind"] = kind.api_version, kind.kind
        self._admit(kind, raw)
        meta.setdefault("uid", str(uuid.uuid4()))
        meta.setdefault("creationTimestamp", datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))
        meta["generation"] = 1
        return self._store(kind, raw, change="ADDED", before=None)

    def _update(self, kind: Kind, known: Object, wanted: Object, *, status: bool) -> Object:
        meta, old = wanted.setdefault("metadata", {}), known["metadata"]
        if meta.get("uid", old["uid"]) != old["uid"]:
            raise _Status(409, "Conflict", f"Precondition failed: UID in precondition: {meta['uid']}")
        if meta.get("resourceVersion", old["resourceVersion"]) != old["resourceVersion"]:
            raise _Status(
                409, "Conflict", "the object has been modified; please apply your changes to the latest version"
            )
        if kind.status:
            if status:
                wanted = {**copy.deepcopy(known), "status": wanted.get("status")}
                meta = wanted["metadata"]
            elif "status" in known:
                wanted["status"] = known["status"]
            elif kind.plural in self.schemas:
                wanted.pop("status", None)
        for name in ("uid", "creationTimestamp", "namespace", "name"):
            meta[name] = old[name]
        self._admit(kind, wanted)
        if wanted == known:
            return known
        if wanted.get("spec") != known.get("spec"):
            meta["generation"] = old.get("generation", 1) + 1
        return self._store(kind, wanted, change="MODIFIED", before=known)

    def _admit(self, kind: Kind, raw: Object) -> None:
        if kind.plural in self.schemas:
            faults = schema.admit(raw, self.schemas[kind.plural])
            if faults:
                raise _Status(
                    422, "Invalid", f"{kind.kind} {raw['metadata']['name']!r} is invalid: {'; '.join(faults)}"
                )

    def _delete(self, kind: Kind, known: Object) -> Object:
        self.objects[kind.plural].pop((known["metadata"]["namespace"], known["metadata"]["name"]))
        gone = copy.deepcopy(known)
        gone["metadata"]["resourceVersion"] = str(next(self._versions))
        self._publish(Change(int(gone["metadata"]["resourceVersion"]), "DELETED", kind.plural, known, gone))
        return gone

    def _store(self, kind: Kind, raw: Object, *, change: str, before: Object | None) -> Object:
        version = next(self._versions)
        raw["metadata"]["resourceVersion"] = str(version)
        self.objects[kind.plural][raw["metadata"]["namespace"], raw["metadata"]["name"]] = raw
        self._publish(Change(version, change, kind.plural, before, raw))
        return raw

    def _publish(self, change: Change) -> None:
        self.history.append(change)
        for queue in self._watches:
            queue.put_nowait(change)

    def _compact(self) -> None:
        self.compacted = next(self._versions)
        self.history.clear()

    # --- HTTP ---------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        app = web.Application(client_max_size=4 << 20)
        app.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0.2)
        await runner.setup()
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.authority.issue_cert("127.0.0.1").configure_cert(tls)
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
        self.url = f"https://127.0.0.1:{runner.addresses[0][1]}"
        self._started.set()
        await self._stop.wait()
        for queue in self._watches:
            queue.put_nowait(None)
        await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        try:
            return await self._answer(request)
        except _Status as error:
            headers = {"Retry-After": "1"} if error.code == 429 else {}
            return web.json_response(error.body, status=error.code, headers=headers)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        found = self._discovery(request.path)
        if found is not None:
            return web.json_response(found)
        kind, namespace, name, subresource = self._route(request.path)
        watching = request.query.get("watch") in ("true", "1")
        verb = _verb(request.method, named=name is not None, watching=watching)
        resource = kind.plural + (f"/{subresource}" if subresource else "")
        who = self._authenticate(request)
        body = await self._body(request)
        status = 500
        try:
            await self._maybe_misbehave(verb, resource)
            self._authorise(who, verb, kind, resource, namespace, name)
            status = 200
            if watching:
                self.requests.append(Request(time.monotonic(), verb, resource, request.path, who.name, status))
                return await self._watch(request, kind, namespace)
            return self._act(request, kind, namespace, name, subresource, body)
        except _Status as error:
            status = error.code
            raise
        finally:
            if not watching or status != 200:
                self.requests.append(Request(time.monotonic(), verb, resource, request.path, who.name, status, body))

    def _act(  # noqa: PLR0917 - the parts of an address
        self, request: web.Request, kind: Kind, namespace: str | None, name: str | None, subresource: str, body: Any
    ) -> web.Response:
        stored = self.objects[kind.plural]
        if name is None:
            if request.method == "POST":
                body.setdefault("metadata", {}).setdefault("namespace", namespace or "default")
                return web.json_response(self._create(kind, body), status=201)
            return self._list(request, kind, namespace)
        known = stored.get((namespace or "default", name))
        if known is None:
            raise _Status(404, "NotFound", f'{kind.plural} "{name}" not found')
        if request.method == "GET":
            return web.json_response(known)
        if request.method == "DELETE":
            return web.json_response(self._delete(kind, known))
        if request.method == "PUT":
            return web.json_response(self._update(kind, known, body, status=subresource == "status"))
        wanted = self._patched(request, known, body)
        return web.json_response(self._update(kind, known, wanted, status=subresource == "status"))

    def _patched(self, request: web.Request, known: Object, body: Any) -> Object:
        media = request.content_type
        if media == "application/json-patch+json":
            if not isinstance(body, list):
                raise _Status(400, "BadRequest", "a JSON patch is a list")
            return _json_patch(copy.deepcopy(known), body)
        if media not in ("application/merge-patch+json", "application/strategic-merge-patch+json"):
            raise _Status(415, "UnsupportedMediaType", f"no patch: {media}")
        if not isinstance(body, dict):
            raise _Status(400, "BadRequest", "a merge patch is an object")
        return merge(copy.deepcopy(known), body)

    def _list(self, request: web.Request, kind: Kind, namespace: str | None) -> web.Response:
        wanted = _selector(request)
        items = [
            raw
            for (where, _), raw in sorted(self.objects[kind.plural].items())
            if namespace in (None, where) and wanted(raw)
        ]
        start, limit = int(request.query.get("continue") or 0), int(request.query.get("limit") or 0)
        meta: Object = {"resourceVersion": str(next(self._versions))}
        if limit and len(items) > start + limit:
            meta["continue"] = str(start + limit)
        page = items[start : start + limit] if limit else items
        return web.json_response(
            {"kind": f"{kind.kind}List", "apiVersion": kind.api_version, "metadata": meta, "items": page}
        )

    async def _watch(self, request: web.Request, kind: Kind, namespace: str | None) -> web.StreamResponse:
        since = int(request.query.get("resourceVersion") or 0)
        wanted = _selector(request)
        seconds = float(request.query.get("timeoutSeconds") or 3600)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        if since and since < self.compacted:
            await _send(response, "ERROR", _Status(410, "Expired", "too old resource version").body)
            return response
        queue: asyncio.Queue[Change | None] = asyncio.Queue()
        for change in self.history:
            if change.version > since:
                queue.put_nowait(change)
        self._watches.add(queue)
        deadline = time.monotonic() + seconds
        try:
            while time.monotonic() < deadline:
                try:
                    change = await asyncio.wait_for(queue.get(), self.bookmark_seconds)
                except TimeoutError:
                    version = {"resourceVersion": str(next(self._versions))}
                    mark = {"kind": kind.kind, "apiVersion": kind.api_version, "metadata": version}
                    await _send(response, "BOOKMARK", mark)
                    continue
                if change is None:
                    if request.transport is not None:
                        request.transport.abort()
                    break
                seen = _seen(change, kind, namespace, wanted)
                if seen is not None:
                    await _send(response, seen, change.object)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._watches.discard(queue)
        return response

    # --- who may do what ----------------------------------------------------------------------------------------------

    def _authenticate(self, request: web.Request) -> Account:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ").removeprefix("bearer ").strip()
        if token not in self.accounts:
            raise _Status(401, "Unauthorized", "Unauthorized")
        return self.accounts[token]

    def _authorise(  # noqa: PLR0917 - the parts of an address
        self, who: Account, verb: str, kind: Kind, resource: str, namespace: str | None, name: str | None
    ) -> None:
        if who.rules is None:
            return
        rules = [*who.rules, *(who.namespaces.get(namespace or "", []))]
        for rule in rules:
            groups, resources, verbs = rule["apiGroups"], rule["resources"], rule["verbs"]
            named = "resourceNames" not in rule or name in rule["resourceNames"]
            if kind.group in groups and resource in resources and verb in verbs and named:
                return
        what = f'resource "{resource}" in API group "{kind.group}"'
        message = f'{resource} is forbidden: User "{who.name}" cannot {verb} {what}'
        raise _Status(403, "Forbidden", message)

    async def _maybe_misbehave(self, verb: str, resource: str) -> None:
        faults = self.faults
        if not faults.only(verb, resource):
            return
        if faults.seconds:
            await asyncio.sleep(faults.seconds)
        if faults.status and faults.times > 0:
            faults.times -= 1
            raise _Status(faults.status, "TooManyRequests", "told to misbehave")

    # --- addresses ----------------------------------------------------------------------------------------------------

    async def _body(self, request: web.Request) -> Any:
        if not request.can_read_body:
            return None
        try:
            return json.loads(await request.read())
        except ValueError as error:
            raise _Status(400, "BadRequest", f"no JSON: {error}") from error

    def _route(self, path: str) -> tuple[Kind, str | None, str | None, str]:
        parts = path.strip("/").split("/")
        group = ""
        if parts[0] == "apis":
            group, parts = parts[1], parts[3:]
        else:
            parts = parts[2:]
        namespace = None
        if len(parts) > 2 and parts[0] == "namespaces":
            namespace, parts = parts[1], parts[2:]
        if not parts or (group, parts[0]) not in self.kinds:
            raise _Status(404, "NotFound", "the server could not find the requested resource")
        kind = self.kinds[group, parts[0]]
        return kind, namespace, parts[1] if len(parts) > 1 else None, parts[2] if len(parts) > 2 else ""

    def _discovery(self, path: str) -> Object | None:
        path = path.rstrip("/")
        if path == "/version":
            return {"major": "1", "minor": "32", "gitVersion": "v1.32.0"}
        if path == "/api":
            return {"kind": "APIVersions", "versions": ["v1"]}
        if path == "/apis":
            groups = sorted({(kind.group, kind.version) for kind in self.kinds.values() if kind.group})
            return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [_group(*group) for group in groups]}
        found = [kind for kind in self.kinds.values() if kind.root == path]
        if found:
            resources = [entry for kind in found for entry in _resources(kind)]
            version = found[0].api_version
            return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": resources}
        return None


class _Status(Exception):
    """An answer that is a Status."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.body = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": reason,
            "code": code,
        }


def merge(target: Any, changes: Any) -> Any:
    """Merge as RFC 7386 says: null removes."""
    if not isinstance(changes, dict):
        return copy.deepcopy(changes)
    merged = target if isinstance(target, dict) else {}
    for name, value in changes.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge(merged.get(name), value)
    return merged


def _json_patch(target: Object, changes: list[Object]) -> Object:
    for change in changes:
        *parents, last = [part.replace("~1", "/").replace("~0", "~") for part in change["path"].split("/")[1:]]
        place: Any = target
        for part in parents:
            place = place[part]
        if change["op"] == "remove":
            place.pop(last)
        else:
            place[last] = change["value"]
    return target


def _selector(request: web.Request) -> Callable[[Object], bool]:
    labels = [part for part in request.query.get("labelSelector", "").split(",") if part]
    fields = dict(part.split("=", 1) for part in request.query.get("fieldSelector", "").split(",") if part)

    def wanted(raw: Object) -> bool:
        meta = raw["metadata"]
        found = meta.get("labels") or {}
        for part in labels:
            name, equal, value = part.replace("==", "=").partition("=")
            if (found.get(name) != value) if equal else (name not in found):
                return False
        facts = {"metadata.name": meta["name"], "metadata.namespace": meta["namespace"]}
        for name, value in (raw.get("involvedObject") or {}).items():
            facts[f"involvedObject.{name}"] = value
        return all(facts.get(name) == value for name, value in fields.items())

    return wanted


def _seen(change: Change, kind: Kind, namespace: str | None, wanted: Callable[[Object], bool]) -> str | None:
    """Tell as what a watch with a selector sees a change: an object that begins to match is added, and so on."""
    if change.plural != kind.plural or namespace not in (None, change.object["metadata"]["namespace"]):
        return None
    before = change.before is not None and wanted(change.before)
    after = change.kind != "DELETED" and wanted(change.object)
    if before and after:
        return "MODIFIED"
    if after:
        return "ADDED"
    return "DELETED" if before else None


async def _send(response: web.StreamResponse, kind: str, raw: Object) -> None:
    await response.write(json.dumps({"type": kind, "object": raw}).encode() + b"\n")


def _verb(method: str, *, named: bool, watching: bool) -> str:
    if method == "GET":
        return "watch" if watching else "get" if named else "list"
    return {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}.get(method, method.lower())


def _group(name: str, version: str) -> Object:
    preferred = {"groupVersion": f"{name}/{version}", "version": version}
    return {"name": name, "versions": [preferred], "preferredVersion": preferred}


def _resources(kind: Kind) -> list[Object]:
    entry = {
        "name": kind.plural,
        "singularName": kind.kind.lower(),
        "namespaced": kind.plural not in ("namespaces", "customresourcedefinitions"),
        "kind": kind.kind,
        "verbs": ["create", "delete", "get", "list", "patch", "update", "watch"],
        "shortNames": list(kind.short),
    }
    status = {
        "name": f"{kind.plural}/status",
        "namespaced": True,
        "kind": kind.kind,
        "verbs": ["get", "patch", "update"],
    }
    return [entry, {**status, "singularName": ""}] if kind.status else [entry]
