"""Each quiescer with the real library, in a real server.

A worker uses the library, so that something is open or runs; it is promoted; and a worker of the next generation uses
the library again. Without the quiescer the audit would refuse, or the library would be broken after the fork.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.integration import peers
from tests.integration.server import until

if TYPE_CHECKING:
    from tests.integration.conftest import Serve
    from tests.integration.server import Server

APP = """
import os

HERE = os.path.dirname(os.path.abspath(__file__))

{library}

def app(environ, start_response):
    body = str(use()).encode()
    headers = [("Content-Length", str(len(body))), ("X-Worker-Pid", str(os.getpid()))]
    start_response("200 OK", headers)
    return [body]
"""


def need(*modules: str) -> None:
    """Skip the test where a library is not installed."""
    for module in modules:
        pytest.importorskip(module, reason=f"{module} is not installed: pip install --group quiescers")


def reforked(serve: Serve, library: str, *, quiesced: str, kind: str = "gthread", times: int = 2) -> Server:
    """Serve with a library and refork, twice: the second promotion is that of a worker whose mold had it at rest."""
    server = serve("-k", kind, app=APP.format(library=library), workers=1)
    for generation in range(1, times + 1):
        for _ in range(3):
            assert server.get().body == b"used", server.tail()
        server.succeed(server.refork())
        server.wait_log(f"quiesced {quiesced}", times=generation)
        server.wait_steady(generation=generation)
    assert server.get().body == b"used"
    return server


def without(server: Server, text: str) -> None:
    """Make sure that the log does not have a text."""
    assert text not in server.log(), server.tail()


def test_connections_of_redis_are_hung_up_and_made_anew(serve: Serve) -> None:
    """No connection is left to a mold, and each generation has its own."""
    need("redis")
    library = """
import redis
client = redis.Redis(port={port}, protocol=2)
def use():
    return "used" if client.ping() else "?"
"""
    with peers.listening(peers.Redis) as peer:
        server = reforked(serve, library.format(port=peer.port), quiesced="redis-py: disconnected 1 pool")
        until(lambda: len(peer.connected) == 1, what="one connection: that of the one worker")
        assert peer.accepted >= 3
        server.close()


def test_a_subscription_of_redis_is_hung_up_in_each_generation(serve: Serve) -> None:
    """A forked pool knows nothing of the connection that a subscription goes on with."""
    need("redis")
    library = """
import redis
subscription = redis.Redis(port={port}, protocol=2).pubsub()
def use():
    subscription.subscribe("news")
    return "used"
"""
    with peers.listening(peers.Redis) as peer:
        reforked(serve, library.format(port=peer.port), quiesced="redis-py: disconnected 1 ", times=3)


def test_connections_that_celery_sends_tasks_on_are_closed_and_opened_anew(serve: Serve) -> None:
    """A closed pool serves nobody, so Celery has to ask for another one."""
    need("celery")
    library = """
import celery
tasks = celery.Celery(broker="memory://")
@tasks.task
def task():
    pass
def use():
    task.delay()
    return "used"
"""
    reforked(serve, library, quiesced="kombu: closed 2 pools")


def test_a_pool_of_psycopg_is_closed_in_the_mold_and_open_in_the_workers(serve: Serve) -> None:
    """A closed pool cannot be opened again by itself; this one is, with its threads."""
    need("psycopg", "psycopg_pool")
    library = """
import psycopg_pool
pool = psycopg_pool.ConnectionPool(
    "host=127.0.0.1 port={port} sslmode=disable user=u dbname=d", kwargs={{"autocommit": True}}, min_size=2, open=True
)
def use():
    with pool.connection() as connection:
        connection.execute("SELECT 1")
    return "used"
"""
    with peers.listening(peers.Postgres) as peer:
        server = reforked(serve, library.format(port=peer.port), quiesced="psycopg pool: closed 1 pool", times=2)
        until(lambda: len(peer.connected) == 2, what="the connections of one pool")
        server.close()


def test_a_pool_that_is_not_opened_stays_closed(serve: Serve) -> None:
    """Only what was open is opened."""
    need("psycopg", "psycopg_pool")
    library = """
import psycopg_pool
pool = psycopg_pool.ConnectionPool("host=127.0.0.1 port=1", open=False)
def use():
    return "used" if pool.closed else "open"
"""
    server = serve(app=APP.format(library=library), workers=1)
    server.succeed(server.refork())
    assert server.get().body == b"used"


@pytest.mark.parametrize("engine", ["sqlite", "postgresql"])
def test_connections_of_django_are_closed(serve: Serve, engine: str) -> None:
    """In the main thread, where the sync worker has them; and those of other threads end with these."""
    need("django", *(["psycopg"] if engine == "postgresql" else []))
    library = """
import django
from django.conf import settings
DATABASES = {{
    "sqlite": {{"ENGINE": "django.db.backends.sqlite3", "NAME": os.path.join(HERE, "db")}},
    "postgresql": {{
        "ENGINE": "django.db.backends.postgresql", "NAME": "d", "USER": "u", "HOST": "127.0.0.1", "PORT": "{port}",
        "OPTIONS": {{"sslmode": "disable"}}, "CONN_MAX_AGE": None,
    }},
}}
settings.configure(USE_TZ=True, TIME_ZONE="UTC", DATABASES={{"default": DATABASES["{engine}"]}})
django.setup()
from django.db import connection
def use():
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE IF NOT EXISTS t (n int)")
    return "used"
"""
    with peers.listening(peers.Postgres) as peer:
        text = library.format(port=peer.port, engine=engine)
        server = reforked(serve, text, quiesced="Django: closed 1 connection", kind="sync")
        server.close()


def test_engines_of_sqlalchemy_are_disposed_of(serve: Serve) -> None:
    """Also one that is made at the first request, in a function."""
    need("sqlalchemy")
    library = """
import functools
import sqlalchemy
early = sqlalchemy.create_engine("sqlite:///" + os.path.join(HERE, "early.db"))
@functools.cache
def late():
    return sqlalchemy.create_engine("sqlite:///" + os.path.join(HERE, "late.db"))
def use():
    for engine in (early, late()):
        with engine.begin() as connection:
            connection.execute(sqlalchemy.text("CREATE TABLE IF NOT EXISTS t (n int)"))
    return "used"
"""
    reforked(serve, library, quiesced="SQLAlchemy: disposed of the connections of 2 engines")


@pytest.mark.parametrize(
    ("module", "text", "told"),
    [
        ("requests", "session = requests.Session()\nask = session.get", "urllib3: closed 1 connection"),
        ("urllib3", "pool = urllib3.PoolManager()\nask = lambda url: pool.request('GET', url)", "urllib3: closed 1"),
        ("urllib3", "pool = urllib3.HTTPConnectionPool('127.0.0.1', {port})\nask = pool.urlopen", "urllib3: closed 1"),
        ("httpx", "client = httpx.Client()\nask = client.get", "httpx: closed 1 connection"),
    ],
)
def test_kept_connections_of_http_clients_are_closed(serve: Serve, module: str, text: str, told: str) -> None:
    """The clients go on to be used."""
    need(module)
    use = """
import {module}
{text}
def use():
    {call}
    return "used"
"""
    with peers.listening(peers.Http) as peer:
        call = "ask('GET', '/')" if "urlopen" in text else f"ask('http://127.0.0.1:{peer.port}/')"
        library = use.format(module=module, text=text.format(port=peer.port), call=call)
        server = reforked(serve, library, quiesced=told)
        server.close()


def test_sentry_sends_what_is_waiting_and_ends_its_threads(serve: Serve) -> None:
    """And says what there is to say in the next generation too."""
    need("sentry_sdk")
    library = """
import sentry_sdk
sentry_sdk.init("http://key@127.0.0.1:{port}/1", default_integrations=False, auto_enabling_integrations=False)
def use():
    with sentry_sdk.isolation_scope() as scope:
        scope.start_session(session_mode="request")
        sentry_sdk.capture_message("hello")
        scope.end_session()
    return "used"
"""
    with peers.listening(peers.Http) as peer:
        server = reforked(serve, library.format(port=peer.port), quiesced="Sentry: sent what was waiting, ended")
        until(lambda: peer.accepted >= 3, what="a connection of each generation")
        server.close()


def test_opentelemetry_exports_what_is_waiting_and_begins_anew_in_each_worker(serve: Serve) -> None:
    """Every span is exported exactly once, by the worker that made it, although each fork could have doubled it."""
    need("opentelemetry.sdk")
    library = """
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

class Lines(SpanExporter):
    def export(self, spans):
        with open(os.path.join(HERE, "spans"), "a") as file:
            file.writelines(f"{span.name}\\n" for span in spans)
        return SpanExportResult.SUCCESS

provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(Lines(), schedule_delay_millis=100))
tracer = provider.get_tracer("test")
metrics = MeterProvider([PeriodicExportingMetricReader(ConsoleMetricExporter(out=open(os.devnull, "w")))])
counter = metrics.get_meter("test").create_counter("uses")
numbers = iter(range(1000))

def use():
    counter.add(1)
    with tracer.start_as_current_span(f"span-{next(numbers)}"):
        return "used"
"""
    server = reforked(serve, library, quiesced="OpenTelemetry: exported")
    spans = server.directory / "spans"
    expected = sorted(f"span-{number}" for number in range(7))
    until(lambda: len(spans.read_text().split()) >= len(expected), what="all spans")
    assert sorted(spans.read_text().split()) == expected


def test_executors_go_on_with_new_threads(serve: Serve) -> None:
    """One of the application's, and asyncio's own."""
    library = """
import asyncio
from concurrent.futures import ThreadPoolExecutor
executor = ThreadPoolExecutor(4)
def use():
    first = list(executor.map(str.upper, ["u", "s", "e"]))
    assert asyncio.run(asyncio.to_thread(str.lower, "USE")) == "use"
    return "".join(first).lower() + "d"
"""
    reforked(serve, library, quiesced="executors: ended the threads of 1 pool of 1", kind="sync")


def test_what_is_logged_through_a_queue_is_written_once(serve: Serve) -> None:
    """By the worker, by the mold, and by the workers after it."""
    library = """
import logging, logging.handlers, queue
waiting = queue.Queue()
handler = logging.FileHandler(os.path.join(HERE, "lines"))
listener = logging.handlers.QueueListener(waiting, handler)
listener.start()
log = logging.getLogger("app")
log.propagate = False
log.addHandler(logging.handlers.QueueHandler(waiting))
numbers = iter(range(1000))
from refork import fork_safety
@fork_safety.after_mold_fork
def say():
    log.warning("mold")
def use():
    log.warning("line-%d", next(numbers))
    return "used"
"""
    server = reforked(serve, library, quiesced="logging: stopped 1 listener", times=1)
    lines = server.directory / "lines"
    expected = sorted(["mold", *(f"line-{number}" for number in range(4))])
    until(lambda: len(lines.read_text().split()) >= len(expected), what="all lines")
    assert sorted(lines.read_text().split()) == expected


def test_a_quiescer_that_fails_leaves_it_to_the_audit(serve: Serve) -> None:
    """It is logged, and what is left is found."""
    library = """
import logging.handlers, queue
class Broken(logging.handlers.QueueListener):
    def stop(self):
        raise RuntimeError("no")
listener = Broken(queue.Queue())
def use():
    if listener._thread is None:
        listener.start()
    return "used"
"""
    server = serve(app=APP.format(library=library), workers=1, traces=True)
    assert server.get().body == b"used"
    assert "of logging.handlers is running" in server.fail(server.refork())
    server.wait_log("quiescing logging failed")
    server.wait_steady(generation=0)


ASYNC_APP = """
import asyncio, os
{library}

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        for _ in range(2):
            step = (await receive())["type"]
            await send({{"type": step + ".complete"}})
        return
    body = await use()
    headers = [(b"content-length", str(len(body)).encode()), (b"x-worker-pid", str(os.getpid()).encode())]
    await send({{"type": "http.response.start", "status": 200, "headers": headers}})
    await send({{"type": "http.response.body", "body": body}})
"""


def reforked_twice(server: Server) -> None:
    """As above, for ASGI."""
    for generation in (1, 2):
        assert server.get().body == b"used", server.tail()
        server.succeed(server.refork())
        server.wait_steady(generation=generation)
    assert server.get().body == b"used", server.tail()


@pytest.mark.parametrize("kind", ["asgi", "uvicorn_worker.UvicornWorker"])
def test_what_clients_of_asyncio_keep_is_let_go_of(serve: Serve, kind: str) -> None:
    """Their event loop has ended, and with it every way of closing it properly."""
    need("httpx", "redis", *([] if kind == "asgi" else ["uvicorn_worker"]))
    library = """
import httpx, redis.asyncio
client = httpx.AsyncClient()
cache = redis.asyncio.Redis(port={redis}, protocol=2)
async def use():
    await client.get("http://127.0.0.1:{http}/")
    return b"used" if await cache.ping() else b"?"
"""
    with peers.listening(peers.Http) as http, peers.listening(peers.Redis) as cache:
        app = ASYNC_APP.format(library=library.format(http=http.port, redis=cache.port))
        server = serve("-k", kind, app=app, workers=1)
        server.threaded = True  # libuv's threads, where there is uvloop: they begin anew in a forked process
        reforked_twice(server)
        server.wait_log("quiesced redis-py: disconnected 1 pool", times=2)
        server.wait_log("quiesced httpx: closed 1 connection", times=2)
        server.close()


@pytest.mark.parametrize("kind", ["asgi", "uvicorn_worker.UvicornWorker"])
def test_workers_end_cleanly_where_libuv_had_threads(serve: Serve, kind: str) -> None:
    """One that never resolves a name would wait for threads that only its mold had, and crash."""
    need("uvloop", *([] if kind == "asgi" else ["uvicorn_worker"]))
    library = """
import atexit
resolved = []
@atexit.register
def note():
    open("left-" + str(os.getpid()), "w").close()
async def use():
    if not resolved:
        resolved.append(await asyncio.get_running_loop().getaddrinfo("localhost", 80))
    return b"used"
"""
    server = serve("-k", kind, app=ASYNC_APP.format(library=library), workers=1)
    server.threaded = True
    reforked_twice(server)
    pid = server.get().pid
    server.close()
    assert "SIGSEGV" not in server.log(), server.tail()
    assert (server.directory / f"left-{pid}").exists()


def test_sentry_does_not_begin_again_in_the_mold(serve: Serve) -> None:
    """Not by what is logged there, which Sentry may be told to collect."""
    need("sentry_sdk")
    library = """
import logging, sentry_sdk
sentry_sdk.init("http://key@127.0.0.1:{port}/1", enable_logs=True, auto_enabling_integrations=False)
def use():
    logging.getLogger("gunicorn.error").warning("used")
    return "used" if sentry_sdk.get_client().is_active() else "silent"
"""
    with peers.listening(peers.Http) as peer:
        reforked(serve, library.format(port=peer.port), quiesced="Sentry: sent what was waiting, ended").close()
