"""Whether a worker is safe to fork from: what a real server finds, refuses, waits for, and tells."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from refork import api
from tests.integration import peers
from tests.integration.server import GATES, SOURCES, WSGI, Server, until

if TYPE_CHECKING:
    from tests.integration.conftest import Serve

EXAMPLES = Path(__file__).parents[2] / "examples"

MEDDLE = WSGI.replace("kept = []", "kept = []\n\ndef do(code):\n    exec(code, globals())\n    return 'done'\n", 1)
"""The application of the harness, with one more verb: ``do`` runs statements."""


def do(server: Server, code: str) -> str:
    """Run statements in the one worker."""
    answer = server.get(f"/eval/{quote(f'do({code!r})')}")
    assert answer.body == b"done", server.tail()
    return answer.body.decode()


def refused(server: Server) -> str:
    """Ask for a refork that is not safe; return why, once the old generation serves in full again."""
    reason = server.fail(server.refork(slot=0))
    server.wait_steady(generation=0)
    return reason


# --- what is found ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (
            "threading.Thread(target=threading.Event().wait, name='meddler', daemon=True).start()",
            (
                "thread 'meddler' of threading is running: end it in before_promote and start it in after_worker_fork, "
                "or set fork_safety_allow = ['thread:meddler'] if that does no harm"
            ),
        ),
        ("import select; kept.append(select.epoll())", "an eventpoll descriptor is open (fd "),
        ("kept.append(os.eventfd(0))", "an eventfd descriptor is open (fd "),
        ("import asyncio; kept.append(asyncio.new_event_loop())", "an eventpoll descriptor is open (fd "),
        ("r, w = os.pipe(); os.close(w); kept.append(r)", "a pipe to another process is open (fd "),
        (
            "import sqlite3; c = sqlite3.connect('data.db'); c.execute('create table t (n int)'); kept.append(c)",
            "data.db is open (fd ",
        ),
        (
            "import multiprocessing; kept.append(multiprocessing.get_context('fork').Pool(1))",
            "1 process of multiprocessing is alive (ForkPoolWorker-1)",
        ),
        (
            (
                "import logging; h = logging.StreamHandler(); kept.append(h)\n"
                "t = threading.Thread(target=h.acquire); t.start(); t.join()"
            ),
            "the lock of the logging handler <StreamHandler",
        ),
        (
            "from refork import fork_safety; fork_safety.mark_unsafe('the dongle is open')",
            "the application marked itself unsafe to fork from (the dongle is open)",
        ),
    ],
)
def test_what_a_fork_would_lose_or_double_is_refused_in_a_sentence(serve: Serve, code: str, told: str) -> None:
    """What it is, where it is, what to do; and the old generation goes on."""
    server = serve(app=MEDDLE, workers=1)
    do(server, code)
    reason = refused(server)
    assert reason.startswith("worker[0] is not safe to fork from: ")
    assert told in reason
    assert server.status().molds[0].generation == 0


@pytest.mark.parametrize("opened", ["select.epoll()", "os.fdopen(os.dup(pipe[0]))"], ids=["epoll", "pipe"])
def test_what_only_waits_for_the_garbage_collector_is_no_finding(serve: Serve, opened: str) -> None:
    """Nobody can use it any more, and nobody can close it but the collector."""
    server = serve(app=MEDDLE, workers=1)
    do(server, f"import gc, select; gc.disable(); pipe = os.pipe(); ring = [{opened}]; ring.append(ring); del ring")
    do(server, "os.close(pipe[0]); os.close(pipe[1])")
    server.succeed(server.refork())


def test_an_open_connection_is_named_by_its_peer(serve: Serve) -> None:
    """With what probably listens there, going by the port."""
    server = serve(app=MEDDLE, workers=1)
    with peers.listening(peers.Redis) as peer:
        do(server, f"kept.append(socket.create_connection(('127.0.0.1', {peer.port})))")
        assert f"a connection to 127.0.0.1:{peer.port} is open (fd " in refused(server)


def test_what_harms_nobody_is_not_found(serve: Serve) -> None:
    """Files, datagrams, listeners, pairs and pipes with both ends here, databases that are only read, ended threads."""
    server = serve(app=MEDDLE, workers=1)
    do(server, "import sqlite3; sqlite3.connect('data.db').execute('create table t (n int)').connection.close()")
    do(server, "c = sqlite3.connect('file:data.db?mode=ro', uri=True); c.execute('select * from t'); kept.append(c)")
    do(server, "kept += [open(os.devnull, 'w'), open('a.log', 'a'), *socket.socketpair(), *os.pipe()]")
    do(server, "u = socket.socket(type=socket.SOCK_DGRAM); u.connect(('127.0.0.1', 9)); kept.append(u)")
    do(server, "kept.append(socket.create_server(('127.0.0.1', 0)))")
    do(server, "import concurrent.futures; e = concurrent.futures.ThreadPoolExecutor(2); e.submit(int).result()")
    server.succeed(server.refork())
    assert "is forked from although" not in server.log()


def test_numpy_and_its_threads_are_promoted(serve: Serve) -> None:
    """OpenBLAS has threads from its import on, and ends them by itself before a fork."""
    pytest.importorskip("numpy")
    server = serve(app=f"import numpy\n{MEDDLE}", workers=1, environment={"OPENBLAS_NUM_THREADS": "2"})
    do(server, "import numpy; a = numpy.ones((600, 600)); a @ a")
    server.succeed(server.refork())
    do(server, "a @ a")
    server.succeed(server.refork())


@pytest.mark.parametrize(
    ("example", "words"),
    [
        ("django_app/app.py", ["app:application"]),
        ("django_app/app.py", ["-k", "gthread", "app:application"]),
        ("flask_app/app.py", ["app:app"]),
        ("flask_app/app.py", ["-k", "gthread", "app:app"]),
        ("fastapi_app/app.py", ["-k", "asgi", "app:app"]),
        ("fastapi_app/app.py", ["-k", "uvicorn_worker.UvicornWorker", "app:app"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_the_examples_are_safe(tmp_path: Path, example: str, words: list[str]) -> None:
    """Not one finding, not even at the second look."""
    path = EXAMPLES / example
    if not path.exists():
        pytest.skip(f"there is no {example}")
    pytest.importorskip(example.partition("_")[0])
    if any("uvicorn" in word for word in words):
        pytest.importorskip("uvicorn_worker")
    small = {"SHOP_PRODUCTS": "2000", "INDEX_WORDS": "2000", "MODEL_SIZE": "2000"}
    server = Server(tmp_path, environment=small)
    server.start("-w", "1", "--chdir", str(path.parent), "--drain-seconds", "0.2", "--canary-seconds", "0", *words)
    try:
        server.wait_steady(workers=1)
        for _ in range(5):
            assert server.get().status == 200
        result = server.ctl("doctor")
        assert result.stdout.endswith("nothing was found: it is safe to fork from\n"), result.stdout
        server.get()
        server.succeed(server.refork())
        assert "although" not in server.log()
    finally:
        server.close()


# --- policy -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "code"),
    [
        ("thread:meddler-*", "threading.Thread(target=gate, args=('x',), name='meddler-1').start()"),
        ("module:app", "threading.Thread(target=gate, args=('x',), name='any').start()"),
    ],
)
def test_a_thread_that_is_allowed_may_be_there(serve: Serve, entry: str, code: str) -> None:
    """By its name, or by the module of what it runs; the interpreter's own warning is what was asked for."""
    server = serve("--fork-safety-allow", entry, app=MEDDLE, workers=1, environment={"PYTHONWARNINGS": "ignore"})
    do(server, code)
    server.succeed(server.refork())
    server.open("x")


def test_a_connection_that_is_allowed_may_be_open(serve: Serve) -> None:
    """By its address."""
    with peers.listening(peers.Redis) as peer:
        allowed = ("--fork-safety-allow", f"address:127.0.0.1:{peer.port}")
        server = serve(*allowed, app=MEDDLE, workers=1)
        do(server, f"kept.append(socket.create_connection(('127.0.0.1', {peer.port})))")
        server.succeed(server.refork())
        server.close()


@pytest.mark.parametrize("policy", ["warn", "allow"])
def test_warn_and_allow_promote_what_refuse_does_not(serve: Serve, policy: str) -> None:
    """One says so in the log."""
    server = serve("--fork-safety", policy, app=MEDDLE, workers=1)
    do(server, "kept.append(os.eventfd(0))")
    server.succeed(server.refork())
    assert ("worker[0] is forked from although an eventfd" in server.log()) is (policy == "warn")


def test_what_is_begun_at_import_is_warned_of(serve: Serve) -> None:
    """Nothing can be refused there: it is the only mold there is."""
    app = f"import os\nopened = os.eventfd(0)\n{MEDDLE}"
    server = serve(app=app, workers=1)
    server.wait_log("mold gen=0 is forked from although an eventfd descriptor is open")


def test_what_the_server_was_started_with_is_not_found(tmp_path: Path) -> None:
    """A supervisor may give it pipes and sockets, the journal for one: they are nobody's fault."""
    reading, writing = os.pipe()
    server = Server(tmp_path)
    server.write("app.py", WSGI)
    try:
        server.start("-w", "1", "--canary-seconds", "0", "app:app", pass_fds=(writing,))
        os.close(writing)
        server.wait_steady(workers=1)
        server.succeed(server.refork())
    finally:
        server.close()
        os.close(reading)


# --- what the application says ----------------------------------------------------------------------------------------

SAYING = f"""
{GATES}
import threading
from refork import fork_safety

said = []

@fork_safety.before_promote
def before():
    said.append("before_promote")

@fork_safety.after_mold_fork
def mold():
    said.append("after_mold_fork")

@fork_safety.after_worker_fork
def worker():
    said.append("after_worker_fork")

def guarded():
    with fork_safety.critical_section("the index"):
        gate("section")

def app(environ, start_response):
    if environ["PATH_INFO"] == "/guard":
        threading.Thread(target=guarded).start()
    body = " ".join(said).encode()
    start_response("200 OK", [("Content-Length", str(len(body))), ("X-Worker-Pid", str(os.getpid()))])
    return [body]
"""


def test_functions_registered_in_the_application_are_called_where_they_belong(serve: Serve) -> None:
    """Without a configuration file; in this order."""
    server = serve(app=SAYING, workers=1)
    assert server.get().body == b"after_worker_fork"
    server.succeed(server.refork())
    assert server.get().body == b"after_worker_fork before_promote after_mold_fork after_worker_fork"


def test_a_function_that_raises_refuses_the_promotion(serve: Serve) -> None:
    """Whatever the policy: nobody knows what it left undone."""
    app = SAYING.replace('said.append("before_promote")', "raise OSError('no')")
    server = serve("--fork-safety", "allow", app=app, workers=1, traces=True)
    assert "the hook before_promote failed: OSError('no')" in refused(server)


def test_a_promotion_waits_for_a_critical_section(serve: Serve) -> None:
    """The spare serves meanwhile."""
    server = serve(app=SAYING, workers=1)
    server.get("/guard")
    server.reached("section")
    operation = server.refork()
    server.wait_log(r"pid=\d+ waits for critical sections: the index")
    assert server.get().status == 200
    server.open("section")
    server.succeed(operation)


def test_a_critical_section_that_lasts_too_long_is_named(serve: Serve) -> None:
    """Before the monitor loses its patience, so that there is a reason to tell."""
    app = SAYING
    server = serve("--graceful-timeout", "1", "--promote-timeout", "5", app=app, workers=1)
    server.get("/guard")
    server.reached("section")
    assert "the critical section 'the index' was not left in time" in refused(server)
    server.open("section")


TASKS = f"""
{GATES}
import asyncio
from refork import fork_safety

tasks = []

async def guarded():
    async with fork_safety.critical_section("the task"):
        await asyncio.to_thread(gate, "section")
    open(os.path.join(HERE, "left"), "w").close()

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        for _ in range(2):
            step = (await receive())["type"]
            await send({{"type": step + ".complete"}})
        return
    if scope["path"] == "/guard":
        tasks.append(asyncio.create_task(guarded()))
    await send({{"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]}})
    await send({{"type": "http.response.body", "body": b""}})
"""


@pytest.mark.parametrize("kind", ["asgi", "uvicorn_worker.UvicornWorker"])
def test_a_promotion_waits_for_a_critical_section_of_a_task(serve: Serve, kind: str) -> None:
    """The event loop goes on until the task has left it."""
    if "." in kind:
        pytest.importorskip("uvicorn_worker")
    server = serve("-k", kind, app=TASKS, workers=1)
    server.get("/guard")
    server.reached("section")
    operation = server.refork()
    server.wait_log("waits for critical sections: the task")
    server.open("section")
    server.succeed(operation)
    assert (server.directory / "left").exists()


def test_it_is_harmless_without_refork(tmp_path: Path) -> None:
    """Under gunicorn, and in a test, the functions are there and do nothing."""
    code = """
import sys
from refork import fork_safety
@fork_safety.before_promote
def function(): raise AssertionError
with fork_safety.critical_section("x"): pass
fork_safety.mark_unsafe("y")
assert not {"gunicorn", "msgspec", "uvicorn"} & set(sys.modules), sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": SOURCES}, timeout=30)


# --- after a fork -----------------------------------------------------------------------------------------------------


def test_no_two_workers_draw_the_same_numbers(serve: Serve) -> None:
    """Of Python, numpy, uuid, the kernel and OpenSSL; of one mold, and of the one after it."""
    numpy = pytest.importorskip("numpy") is not None
    draws = ["random.random()", "uuid.uuid4().int", "os.urandom(8).hex()", "ssl.RAND_bytes(8).hex()"]
    draws += ["numpy.random.random()"] if numpy else []
    app = "import random, uuid, ssl, numpy.random\nrandom.seed(1); numpy.random.seed(1); ssl.RAND_bytes(1)\n" + MEDDLE
    server = serve(app=app, workers=3, environment={"OPENBLAS_NUM_THREADS": "1"})
    expression = "str([" + ",".join(draws) + "])"

    def draw() -> dict[int, str]:
        drawn: dict[int, str] = {}

        def ask() -> bool:
            answer = server.get(f"/eval/{expression}")
            drawn.setdefault(answer.pid, answer.body.decode())
            return len(drawn) == 3

        until(ask, what="an answer of each worker")
        return drawn

    first = draw()
    server.succeed(server.refork())
    seen = [text.strip("[]").split(", ") for text in (*first.values(), *draw().values())]
    for each in zip(*seen, strict=True):
        assert len(set(each)) == 6, each


# --- the doctor -------------------------------------------------------------------------------------------------------


def test_the_doctor_tries_a_worker_and_tells_what_it_found(serve: Serve) -> None:
    """The worker is replaced, its generation stays, and the exit code says that something was found."""
    server = serve(app=MEDDLE, workers=2)
    before = server.status()
    pid = server.get("/eval/kept.append(os.eventfd(0))").pid
    server.wait_status(
        lambda status: any(w.requests for w in status.workers if w.pid == pid), what="its request counted"
    )
    result = server.ctl("doctor")
    assert result.returncode == 1
    assert "- an eventfd descriptor is open (fd " in result.stdout
    assert result.stdout.endswith("1 found\n")
    after = server.wait_steady(generation=0, workers=2)
    assert after.molds[0].pid == before.molds[0].pid
    assert pid not in {worker.pid for worker in after.workers}
    assert len({w.pid for w in before.workers} & {w.pid for w in after.workers}) == 1
    assert after.last_rollout is not None
    assert after.last_rollout.kind is api.RolloutKind.TRIAL


def test_the_doctor_finds_nothing_in_a_worker_that_is_safe(serve: Serve) -> None:
    """The exit code says so too; and a refork after it is to the next generation."""
    server = serve(app=MEDDLE, workers=1)
    result = server.ctl("doctor")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.endswith("nothing was found: it is safe to fork from\n")
    assert server.succeed(server.refork()).generation == 1


def test_the_doctor_finds_also_what_would_only_be_warned_of(serve: Serve) -> None:
    """The policy is about promotions; the list of what is allowed counts."""
    server = serve("--fork-safety", "allow", app=MEDDLE, workers=1)
    do(server, "kept.append(os.eventfd(0))")
    assert "an eventfd descriptor is open" in server.ctl("doctor").stdout


class Checked:
    """A project whose fork safety is checked without a server."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "app.py").write_text(MEDDLE)

    def check(self, *words: str, requests: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run the command."""
        if requests is not None:
            (self.directory / "urls.txt").write_text(requests)
            words = (*words, "--requests", "urls.txt")
        return subprocess.run(
            [sys.executable, "-m", "refork", "--check-fork-safety", *words, "app:app"],
            cwd=self.directory,
            env={**os.environ, "PYTHONPATH": SOURCES},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@pytest.fixture
def checked(tmp_path: Path) -> Checked:
    """Make one."""
    return Checked(tmp_path)


@pytest.mark.parametrize("kind", ["sync", "gthread"])
def test_the_check_passes_an_application_that_is_safe(checked: Checked, kind: str) -> None:
    """One request of its own, one worker, exit code 0."""
    result = checked.check("-k", kind)
    assert (result.returncode, result.stdout) == (0, "nothing was found: it is safe to fork from\n"), result.stderr


def test_the_check_tells_what_requests_have_left_behind(checked: Checked) -> None:
    """With whatever bind and number of workers are configured: nobody else is served."""
    (checked.directory / "gunicorn.conf.py").write_text("workers = 8\nbind = '127.0.0.1:1'\nrefork_after = 1\n")
    result = checked.check(requests='# the first line is a remark\n\n/\nPOST /thread {"a": 1}\n')
    assert result.returncode == 1, result.stderr
    assert result.stdout.startswith("- thread 'meddler' of threading is running: ")
    assert result.stdout.endswith("\n1 found\n")


def test_the_check_tells_of_requests_that_fail(checked: Checked) -> None:
    """They may not have opened what they were to open."""
    result = checked.check(requests="/error\n")
    assert result.returncode == 0, result.stderr
    assert "refork: warning: GET /error answered 500\n" in result.stderr


@pytest.mark.parametrize(
    ("app", "requests", "told"),
    [
        ("raise OSError('no')", "/", "the server has ended before"),
        (MEDDLE, "/crash\n", "GET /crash was not answered"),
    ],
)
def test_the_check_says_when_it_could_not_find_out(checked: Checked, app: str, requests: str, told: str) -> None:
    """That is neither safe nor unsafe: exit code 2."""
    (checked.directory / "app.py").write_text(app)
    result = checked.check(requests=requests)
    assert result.returncode == 2, result.stderr
    assert f"refork: error: the worker could not be tried: {told}" in result.stderr


@pytest.mark.parametrize("requests", ["GET\n", "DELETE nothing\n", "two words\n"])
def test_the_check_refuses_what_is_no_request(checked: Checked, requests: str) -> None:
    """With the number of the line."""
    result = checked.check(requests=f"/\n{requests}")
    assert result.returncode == 1
    assert "--requests urls.txt: line 2 is no request" in result.stderr
