"""A drop-in for gunicorn: what is said in its words happens, in a real server."""

from __future__ import annotations

import http.client
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trustme

from tests.integration.server import (
    ASGI,
    PATIENCE,
    WSGI,
    Server,
    assert_no_failure,
    children,
    free_port,
    is_alive,
    until,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.conftest import Serve

KINDS = [("sync", WSGI), ("gthread", WSGI), ("asgi", ASGI), ("uvicorn_worker.UvicornWorker", ASGI)]
NOBODY = 65534

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can do this")


# --- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "app"), KINDS)
def test_an_application_is_served_by_each_worker_class(serve: Serve, kind: str, app: str) -> None:
    """WSGI and ASGI; keep-alive where gunicorn's class has it."""
    server = serve("-k", kind, app=app)
    connection = server.connect()
    first, second = (server.get(connection=connection) for _ in range(2))
    assert (first.status, first.body, second.body) == (200, b"hello", b"hello")
    assert (first.pid == second.pid) or kind == "sync"
    assert ("close" in first.headers.get("connection", "")) == (kind == "sync")
    connection.close()
    status = server.status()
    assert first.pid in {worker.pid for worker in status.workers}
    server.wait_status(lambda s: sum(w.requests for w in s.workers) == 2, what="two requests to be counted")


def test_words_come_from_the_file_the_environment_and_the_command_line(serve: Serve) -> None:
    """All three at once."""
    server = serve(
        *("--env", "FROM=words"),
        config="worker_class = 'gthread'\nthreads = 3\nworkers = 1\n",
        workers=None,
        environment={"GUNICORN_CMD_ARGS": "--workers 3"},
    )
    status = server.wait_steady(workers=3)
    assert status.worker_class == "gthread"
    assert server.get("/eval/os.environ['FROM']").body == b"words"


def test_the_application_starts_in_its_directory_with_its_variables(serve: Serve) -> None:
    """chdir and env; the process is found by its name."""
    server = serve("--chdir", "below", "--env", "COLOUR=blue", "--name", "shop", steady=False)
    assert server.wait() == 2  # there is no such directory yet
    (server.directory / "below").mkdir()
    server.write("below/app.py", WSGI.replace("hello", "from below"))
    server.start("--chdir", "below", "--env", "COLOUR=blue", "--name", "shop", "-w", "1", "app:app")
    status = server.wait_steady()
    assert server.get().body == b"from below"
    assert server.get("/eval/os.environ['COLOUR']").body == b"blue"
    assert server.get("/eval/os.path.basename(os.getcwd())").body == b"below"
    assert _title(server.monitor) == "refork:monitor[shop]"
    assert _title(status.molds[0].pid) == "refork:mold[gen=0]"
    assert _title(status.workers[0].pid) == "refork:worker[0] gen=0"


def _title(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")[0]


# --- addresses --------------------------------------------------------------------------------------------------------


def test_a_unix_socket_is_served_and_removed(serve: Serve) -> None:
    """Also across a refork, under load."""
    server = serve("--bind", "unix:web.sock", bind=False)
    path = server.directory / "web.sock"
    with server.load(connections=6, unix=str(path)) as load:
        server.succeed(server.refork())
        report = load.stop()
    assert_no_failure(report)
    server.stop()
    assert not path.exists()


def test_several_addresses_are_served_by_all_generations(serve: Serve) -> None:
    """gunicorn's worker listens on each."""
    other = free_port()
    server = serve("--bind", f"127.0.0.1:{other}", "--bind", "unix:web.sock")
    for _ in range(2):
        assert server.get().status == server.get(port=other).status == 200
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(server.directory / "web.sock"))
            sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert sock.makefile("rb").read().endswith(b"hello")
        server.succeed(server.refork())


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[str, str, ssl.SSLContext]:
    """Issue a certificate; return its file, its key's file, and who trusts it."""
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    issued.private_key_pem.write_to_path(key)
    for blob in issued.cert_chain_pems:
        blob.write_to_path(chain, append=True)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    return str(chain), str(key), trusting


@pytest.mark.parametrize(("kind", "app"), KINDS)
def test_tls_is_served_and_survives_a_refork(
    serve: Serve, certificate: tuple[str, str, ssl.SSLContext], kind: str, app: str
) -> None:
    """No handshake fails under load."""
    chain, key, trusting = certificate
    server = serve("-k", kind, "--certfile", chain, "--keyfile", key, app=app)
    for generation in (1, 2):
        connection = http.client.HTTPSConnection("localhost", server.port, context=trusting, timeout=PATIENCE)
        assert server.get(connection=connection).body == b"hello"
        connection.close()
        with server.load(connections=6, pause=0.03, scheme="https") as load:
            server.succeed(server.refork())
            server.wait_steady(generation=generation)
            report = load.stop()
        assert_no_failure(report)


AS_SYSTEMD = """
import os, sys
for number, fd in enumerate(sys.argv[1].split(","), 3):
    os.dup2(int(fd), number)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.argv[2], sys.argv[2:])
"""


def test_sockets_that_systemd_passes_are_served_and_left_open(serve: Serve, tmp_path: Path) -> None:
    """Two of them; the manager is told when the server is ready and when it stops."""
    notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notices.bind(str(tmp_path / "notify"))
    notices.settimeout(PATIENCE)
    with notices, socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        # Far away from where they are to be, so that none is overwritten.
        passed = [os.dup(sock.fileno()) for sock in (one, two)]
        command = (sys.executable, "-c", AS_SYSTEMD, ",".join(map(str, passed)), sys.executable, "-m", "refork")
        server = serve(
            bind=False,
            command=command,
            pass_fds=passed,
            environment={"LISTEN_FDS": "2", "NOTIFY_SOCKET": str(tmp_path / "notify")},
        )
        for fd in passed:
            os.close(fd)
        for _ in range(2):
            for sock in (one, two):
                assert server.get(port=sock.getsockname()[1]).body == b"hello"
            server.succeed(server.refork())
        assert b"READY=1" in notices.recv(4096)
        assert server.stop() == 0
        assert b"STOPPING=1" in until(lambda: notices.recv(4096), what="the notice of the stop")
        for sock in (one, two):  # it listens still: systemd starts the server again at the next connection
            socket.create_connection(sock.getsockname(), timeout=PATIENCE).close()


# --- logs and files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "app"), [("sync", WSGI), ("asgi", ASGI)])
def test_logs_are_reopened_by_usr1_in_all_processes(serve: Serve, kind: str, app: str) -> None:
    """In the monitor, the workers and the mold, whose workers to come write to the new file too."""
    words = ("--access-logfile", "access.log", "--error-logfile", "error.log", "--access-logformat", "%(p)s %(U)s")
    server = serve("-k", kind, *words, app=app)
    access, error = server.directory / "access.log", server.directory / "error.log"
    server.get("/before")
    until(lambda: "/before" in access.read_text(), what="the first access")
    for path in (access, error):
        path.rename(path.with_suffix(".old"))
    server.send(signal.SIGUSR1)
    until(error.exists, what="a new error log")
    workers = {worker.pid for worker in server.status().workers}

    def written() -> set[int]:
        server.get("/after")
        return {int(pid) for pid in re.findall(r"<(\d+)> /after", access.read_text() if access.exists() else "")}

    until(lambda: workers <= written(), what="an access by each worker in the new file")
    old = access.with_suffix(".old").read_text().count("/after")
    server.succeed(server.refork())
    fresh = {worker.pid for worker in server.wait_steady(generation=1).workers}
    until(lambda: fresh <= written(), what="an access by each new worker in the new file")
    assert access.with_suffix(".old").read_text().count("/after") == old
    assert "refork to gen=1 succeeded" in error.read_text()
    assert server.log() == ""


def test_what_the_application_prints_comes_out_once(serve: Serve) -> None:
    """Not once more for each worker that is forked while it waits in a buffer."""
    app = WSGI + "\nprint('printed at import')\n"
    server = serve(app=app, workers=3, environment={"PYTHONUNBUFFERED": ""})
    server.get("/eval/print('printed in a worker')")
    for _ in range(2):
        server.succeed(server.refork())
    server.wait_steady(generation=2)
    assert server.stop() == 0
    assert server.log().count("printed at import") == 1
    assert server.log().count("printed in a worker") == 1


def test_a_pid_file_names_the_monitor_and_keeps_a_second_server_away(serve: Serve, tmp_path: Path) -> None:
    """It is removed at the end."""
    path = tmp_path / "server.pid"
    first = serve("--pid", str(path))
    assert int(path.read_text()) == first.monitor
    second = serve("--pid", str(path), steady=False)
    assert second.wait() == 1
    assert f"pid file {path}: Already running on PID {first.monitor}" in second.log()
    first.stop()
    assert not path.exists()


def test_two_servers_know_nothing_of_each_other(serve: Serve) -> None:
    """The end of one is not noticed by the other."""
    one, two = serve(), serve()
    two.succeed(two.refork())
    one.stop()
    assert two.wait_steady(generation=1)
    assert two.get().status == 200


@pytest.fixture
def daemon(serve: Serve) -> Iterator[Server]:
    """A server in the background; it is stopped by its pid file."""
    server = serve("--daemon", "--pid", "server.pid", "--error-logfile", "error.log", steady=False)
    assert server.wait() == 0
    path = server.directory / "server.pid"
    server.monitor = int(until(lambda: path.exists() and path.read_text(), what="the pid file"))
    yield server
    os.kill(server.monitor, signal.SIGTERM)
    until(lambda: not is_alive(server.monitor), what="the daemon to end")
    assert not path.exists()


def test_a_daemon_serves_in_the_background(daemon: Server) -> None:
    """The command returns at once; what is to be said goes to the log."""
    daemon.wait_steady()
    assert daemon.get().status == 200
    daemon.succeed(daemon.refork())
    assert daemon.log() == ""
    assert "serving: workers=2 gen=0" in (daemon.directory / "error.log").read_text()


def test_a_daemon_that_cannot_serve_says_so_in_its_log(serve: Serve) -> None:
    """Its standard error is gone."""
    other = serve()
    server = serve(
        *("--daemon", "--error-logfile", "error.log", "--bind", f"127.0.0.1:{other.port}"), bind=False, steady=False
    )
    assert server.wait() == 0
    log = server.directory / "error.log"
    said = "Address already in use; another process"
    until(lambda: log.exists() and said in log.read_text(), what="the reason in the log")
    until(lambda: not server.left(), what="the daemon to end")


# --- rights -----------------------------------------------------------------------------------------------------------


def nobody_can_import() -> bool:
    """Tell whether others than root can read Python's own library."""
    command = [sys.executable, "-c", "import hashlib"]
    try:
        return subprocess.run(command, user=NOBODY, capture_output=True, check=False).returncode == 0
    except PermissionError:
        return False


@as_root
def test_workers_and_molds_have_the_rights_they_are_given(serve: Serve, tmp_path: Path) -> None:
    """The monitor keeps its own; a promoted worker has none to give back.

    Where only root can read Python's library, nobody else could run it: there the group alone is given.
    """
    for directory in (tmp_path.parent.parent, tmp_path.parent, tmp_path):
        directory.chmod(0o755)
    user = NOBODY if nobody_can_import() else os.getuid()
    server = serve("--user", str(user), "--group", str(NOBODY), "--umask", "027")
    for generation in (0, 1):
        status = server.wait_steady(generation=generation)
        for process in (*status.molds, *status.workers):
            assert _credentials(process.pid) == ({user}, {NOBODY}), process
        assert _credentials(server.monitor) == ({os.getuid()}, {os.getgid()})
        inherited = os.umask(0o22)
        os.umask(inherited)
        assert server.get(f"/eval/oct(os.umask({inherited}))").body == oct(inherited).encode()
        if generation == 0:
            server.succeed(server.refork())


def _credentials(pid: int) -> tuple[set[int], set[int]]:
    """Return the real, effective, saved and file system ids of user and group."""
    text = Path(f"/proc/{pid}/status").read_text()
    users, groups = (
        re.findall(r"\d+", re.findall(rf"^{name}:(.*)$", text, re.MULTILINE)[0]) for name in ("Uid", "Gid")
    )
    return {int(user) for user in users}, {int(group) for group in groups}


# --- requests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sync", "gthread"])
def test_files_are_sent_whole(serve: Serve, kind: str) -> None:
    """By sendfile, in each generation."""
    server = serve("-k", kind)
    content = os.urandom(300_000)
    (server.directory / "file.bin").write_bytes(content)
    for _ in range(2):
        assert server.get("/file").body == content
        server.succeed(server.refork())


@pytest.mark.parametrize(("kind", "app"), KINDS)
def test_max_requests_renews_workers_from_the_warm_mold(serve: Serve, kind: str, app: str) -> None:
    """No import, and no request fails."""
    server = serve("-k", kind, "--max-requests", "40", "--drain-seconds", "1", app=app)
    before = server.status()
    # uvicorn looks only ten times a second how many there were, and answers many more until then.
    with server.load(connections=6, pause=0.005, requests=1200) as load:
        report = load.wait()
    assert_no_failure(report)
    after = server.wait_steady(workers=2)
    assert len(report.pids) > 4
    assert not {worker.pid for worker in before.workers} & {worker.pid for worker in after.workers}
    assert [mold.pid for mold in after.molds] == [mold.pid for mold in before.molds]
    assert "[ERROR]" not in server.log()


def test_a_stuck_worker_is_killed_and_its_slot_comes_back(serve: Serve) -> None:
    """The others serve on meanwhile."""
    server = serve("--timeout", "1", traces=True)
    with server.load(connections=1, path="gate/never") as stuck_client:
        stuck = server.reached("never")
        server.wait_log(rf"\[CRITICAL\] worker\[\d\] gen=0 pid={stuck} timed out")
        until(lambda: not is_alive(stuck), what="the stuck worker to be killed")
        server.open("never")
        stuck_client.stop()
    server.wait_steady(workers=2)
    assert server.get().status == 200


def test_an_error_in_the_application_is_an_answer_and_is_counted(serve: Serve) -> None:
    """The worker serves on."""
    server = serve(workers=1, traces=True)
    assert server.get("/error").status == 500
    assert server.get().status == 200
    status = server.wait_status(lambda s: s.workers[0].requests == 2, what="two requests")
    assert status.workers[0].errors == 1


ANSWERS = """
START, BODY = "http.response.start", "http.response.body"

async def app(scope, receive, send):
    if scope["type"] != "http":
        raise NotImplementedError
    path = scope["path"]
    if path == "/raised":
        raise ZeroDivisionError
    failed = path in ("/said", "/said-and-raised")
    length = b"6" if path == "/broken-off" else b"2"
    await send({"type": START, "status": 503 if failed else 200, "headers": [(b"content-length", length)]})
    await send({"type": BODY, "body": b"ok", "more_body": path == "/broken-off"})
    if path in ("/said-and-raised", "/broken-off"):
        raise ZeroDivisionError
"""


@pytest.mark.parametrize("kind", [kind for kind, app in KINDS if app == ASGI])
def test_the_errors_of_an_asgi_application_are_counted_once_each(serve: Serve, kind: str) -> None:
    """Said with a status, raised before an answer or in the middle of it, or several of these at once."""
    server = serve("-k", kind, app=ANSWERS, workers=1, traces=True)
    for requests, path in enumerate(("/", "/said", "/raised", "/said-and-raised", "/"), start=1):
        assert server.get(path).status in (200, 500, 503)
        server.wait_status(lambda s, n=requests: s.workers[0].requests == n, what=f"the answer to {path}")
    with pytest.raises(http.client.IncompleteRead):
        server.get("/broken-off")
    status = server.wait_status(lambda s: s.workers[0].requests == 6, what="the broken answer")
    broken_off = kind != "asgi"  # where an answer counts as what it begins with
    assert status.workers[0].errors == 3 + broken_off


@pytest.mark.parametrize(("kind", "app"), KINDS)
def test_a_request_is_in_flight_until_it_is_answered(serve: Serve, kind: str, app: str) -> None:
    """Whoever looks sees it, at the next heartbeat at the latest."""
    server = serve("-k", kind, app=app, workers=1)
    with ThreadPoolExecutor(1) as client:
        answer = client.submit(server.get, "/gate/held")
        server.reached("held")
        server.wait_status(lambda s: s.workers[0].in_flight == 1, what="the request")
        assert server.status().workers[0].requests == 0
        server.open("held")
        assert answer.result().status == 200
    server.wait_status(lambda s: (s.workers[0].in_flight, s.workers[0].requests) == (0, 1), what="the answer")


# --- containers -------------------------------------------------------------------------------------------------------


@as_root
@pytest.mark.skipif(shutil.which("unshare") is None, reason="there is no unshare(1)")
def test_as_the_first_process_of_a_container_it_ends_and_reaps(serve: Serve) -> None:
    """PID 1 gets no default action for a signal, and every orphan there is."""
    enter = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable, "-m", "refork")
    if subprocess.run([*enter[:5], "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine does not let us make a pid namespace")
    server = serve(command=enter)
    server.monitor = children(server.process.pid)[0] if server.process else 0
    assert server.status().pid == 1
    orphan = "__import__('subprocess').run(['sh','-c','(sleep 0.2;exit 3)&'])"
    server.get(f"/eval/{orphan}")
    until(lambda: not server.zombies(), what="the orphan to be reaped")
    server.succeed(server.refork())
    server.wait_steady(generation=1)
    assert server.stop() == 0
