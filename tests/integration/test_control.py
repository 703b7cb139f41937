"""The control endpoint: who may ask, what is answered, and that no client's trouble is another's."""

from __future__ import annotations

import gzip
import json
import os
import socket
import stat
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refork import api, endpoint
from refork.address import parse_unix
from refork.control import may_command
from refork.endpoint import Peer
from tests.integration.steered import (
    PATIENCE,
    SLOT_WITH_BUG,
    SLOT_WITHOUT_WORKER,
    Running,
    ask,
    dial,
    environment,
    launch,
    make_status,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

NOBODY = 65534

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")

# Connects as somebody else: says one word, hears one answer.
STRANGER = f"""
import os, socket, sys
os.setgroups([])
os.setgid({NOBODY})
os.setuid({NOBODY})
sock = socket.socket(socket.AF_UNIX)
sock.connect("\\0" + sys.argv[1])
sock.sendall(b"POST /v1/refork HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
answer = b""
while chunk := sock.recv(4096):
    answer += chunk
print(answer.decode())
"""

# Sits down as somebody else and says nothing: as many times as it is told, until its input ends.
SILENT_STRANGERS = f"""
import os, socket, sys
os.setuid({NOBODY})
socks = [socket.socket(socket.AF_UNIX) for _ in range(int(sys.argv[2]))]
for sock in socks:
    sock.connect("\\0" + sys.argv[1])
print("seated", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One server for all tests that do it no harm: which is what they test."""
    running = launch(tmp_path_factory.mktemp("server") / "log")
    yield running
    assert running.stop() == 0
    assert "Traceback" not in running.log_text()


def is_well(server: Running) -> bool:
    """Tell whether the server still answers."""
    return ask(server.control, "GET", "/v1/status")[0] == 200


def own_pid_name() -> int:
    """Make up a pid that no process has, so that the names of tests do not meet."""
    return 1_000_000_000 + os.getpid()


def test_the_status_is_typed_json(server: Running) -> None:
    """The answer is the status of the server, and says that it is JSON."""
    status, answer, headers = ask(server.control, "GET", "/v1/status")
    assert status == 200
    assert headers["Content-Type"] == "application/json"
    assert msgspec.convert(answer, api.Status) == make_status(pid=server.process.pid)


def test_a_command_is_accepted_and_can_be_followed(server: Running) -> None:
    """202 names an operation, and the operation says how far it is."""
    status, accepted, _ = ask(server.control, "POST", "/v1/refork", body=b'{"slot": 3}')
    assert status == 202
    status, rollout, _ = ask(server.control, "GET", f"/v1/operations/{accepted['operation']}")
    assert (status, rollout["phase"], rollout["outcome"]) == (200, "surge", None)


@pytest.mark.parametrize("body", [None, b"", b"{}"])
def test_a_command_without_wishes_needs_no_body(server: Running, body: bytes | None) -> None:
    """`curl -X POST` is enough."""
    assert ask(server.control, "POST", "/v1/refork", body=body)[0] == 202
    assert ask(server.control, "POST", "/v1/rebase", body=body)[0] == 202


def test_each_command_leaves_a_line_that_says_who_gave_it(server: Running) -> None:
    """The log tells what was asked, by whom, and what became of it."""
    _, accepted, _ = ask(server.control, "POST", "/v1/refork", body=b'{"slot": 2}')
    ask(server.control, "POST", "/v1/workers", body=b'{"count": 12}')
    who = f"uid={os.geteuid()} pid={os.getpid()}"
    assert (
        f"INFO steered command=refork slot=2 {who} answer=202 operation={accepted['operation']}\n" in server.log_text()
    )
    assert f"INFO steered command=workers count=12 {who} answer=202 operation=workers-1\n" in server.log_text()


def test_a_refusal_is_a_sentence_and_409(server: Running) -> None:
    """What the server will not do now, it says, and writes down."""
    status, answer, _ = ask(server.control, "POST", "/v1/refork", body=b'{"slot": %d}' % SLOT_WITHOUT_WORKER)
    assert (status, answer) == (409, {"error": "slot 7 has no worker"})
    line = f'WARNING steered command=refork slot=7 uid={os.geteuid()} pid={os.getpid()} answer=409 reason="slot 7 has'
    assert line in server.log_text()


@pytest.mark.parametrize(
    ("path", "body", "status", "error"),
    [
        ("refork", b"{", 400, "the body is no JSON"),
        ("refork", b"\xff\xfe", 400, "the body is no JSON"),
        ("refork", b'{"slot": 1} {}', 400, "the body is no JSON"),
        ("refork", gzip.compress(b"{}", mtime=0), 400, "the body is no JSON"),
        ("refork", b"[" * 10_000, 422, "Expected `object`"),
        ("refork", b"null", 422, "Expected `object`"),
        ("refork", b'{"slot": "1"}', 422, "got `str` - at `$.slot`"),
        ("refork", b'{"slot": 1.5}', 422, "$.slot"),
        ("refork", b'{"slot": -1}', 422, ">= 0"),
        ("refork", b'{"slot": 1e400}', 422, "$.slot"),
        ("refork", b'{"slto": 1}', 422, "unknown field `slto`"),
        ("refork", '{"\u0000\\n\u202eanswer=202": 1}'.encode(), 400, ""),
        ("refork", b'{"request_id": "a b"}', 422, "$.request_id"),
        ("refork", b'{"request_id": "a\\n"}', 422, "$.request_id"),
        ("rebase", b'{"slot": 1}', 422, "unknown field"),
        ("workers", b"{}", 422, "missing required field `count`"),
        ("workers", b'{"count": 0}', 422, ">= 1"),
        ("workers", b'{"count": 100000000000000000000000}', 422, "$.count"),
        ("workers", b'{"count": true}', 422, "$.count"),
    ],
)
def test_nonsense_is_refused_with_a_reason(server: Running, path: str, body: bytes, status: int, error: str) -> None:
    """400 for what is no JSON, 422 for what is no such command; nothing is done."""
    answered, answer, _ = ask(server.control, "POST", f"/v1/{path}", body=body)
    assert answered == status
    assert error in answer["error"]


def test_nothing_in_a_body_can_forge_a_line_of_the_log(server: Running) -> None:
    """Names that a client makes up are quoted."""
    ask(server.control, "POST", "/v1/refork", body=json.dumps({"x\nINFO forged": 1}).encode())
    assert not [line for line in server.log_text().splitlines() if line.startswith("INFO forged")]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v2/status", 404),
        ("GET", "/v1/operations/none", 404),
        ("GET", "/v1/operations/..%2f..%2fetc", 404),
        ("GET", "/v1/refork", 405),
        ("DELETE", "/v1/status", 405),
    ],
)
def test_wrong_addresses_and_methods_are_told_in_json(server: Running, method: str, path: str, status: int) -> None:
    """A client never has to parse a page of HTML; 405 says what would do."""
    answered, answer, headers = ask(server.control, method, path)
    assert answered == status
    assert answer["error"]
    assert ("Allow" in headers) == (status == 405)


def test_what_comes_from_a_web_page_is_refused(server: Running) -> None:
    """A browser that can reach the socket through some proxy commands nothing."""
    for method, path in (("POST", "/v1/refork"), ("GET", "/v1/status"), ("GET", "/nowhere")):
        status, answer, _ = ask(server.control, method, path, headers={"Origin": "null"})
        assert (status, "Origin" in answer["error"]) == (403, True)
    line = f"WARNING steered command=refork uid={os.geteuid()} pid={os.getpid()} answer=403 reason="
    assert line in server.log_text()


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_has_a_limit(server: Running, *, chunked: bool) -> None:
    """Whether it announces its size or not, a huge body is not read to the end."""
    with dial(server.control) as sock:
        length = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: 1000000000"
        sock.sendall(b"POST /v1/refork HTTP/1.1\r\nHost: x\r\n" + length + b"\r\n\r\n")
        for _ in range(64):
            sock.sendall((b"1000\r\n" if chunked else b"") + b" " * 4096 + (b"\r\n" if chunked else b""))
        assert sock.recv(4096).startswith(b"HTTP/1.1 413")
    assert is_well(server)


def test_a_bug_in_the_server_costs_one_answer(server: Running) -> None:
    """An exception is 500 in JSON and a line in the log, and the next client is served."""
    status, answer, _ = ask(server.control, "POST", "/v1/refork", body=b'{"slot": %d}' % SLOT_WITH_BUG)
    assert (status, answer) == (500, {"error": "the server could not answer: its log says why"})
    assert "answer=500 error=ZeroDivisionError()" in server.log_text()
    assert is_well(server)


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/9.9\r\n\r\n",
        b"BREW / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v1/status\r\n\r\n",
        b"GET " + b"/" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 10_000 + b"\r\n",
        b"POST /v1/refork HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/refork HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
        b"POST /v1/refork HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HEAD /v1/status HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"\r\n" * 50_000,
    ],
)
def test_malformed_http_ends_with_an_error_or_the_connection(server: Running, garbage: bytes) -> None:
    """It is never taken for a request, and the server goes on."""
    assert not _answer_to(server, garbage).startswith(b"HTTP/1.1 2")
    assert is_well(server)


@pytest.mark.parametrize(
    "unclear",
    [
        b"\x16\x03\x01\r\n\r\n",
        b"GET /v1/status HTTP/2.0\r\nHost: x\r\n\r\n",
        b"POST /v1/rebase HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/rebase HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\nzz\r\n",
    ],
)
def test_what_could_be_read_in_two_ways_is_not_read(server: Running, unclear: bytes) -> None:
    """It is refused in JSON like anything else, and no command is taken from it."""
    with dial(server.control) as sock:
        sock.sendall(unclear)
        head, _, body = b"".join(iter(lambda: sock.recv(4096), b"")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["error"]


@settings(deadline=None, max_examples=150)
@given(garbage=st.binary(min_size=1, max_size=300), polite=st.booleans())
def test_any_bytes_at_all_leave_the_server_well(server: Running, *, garbage: bytes, polite: bool) -> None:
    """Whatever is sent, also after a beginning that looks well, the next client is served."""
    beginning = b"POST /v1/workers HTTP/1.1\r\nHost: x\r\n" if polite else b""
    answer = _answer_to(server, beginning + garbage)
    assert not answer.startswith((b"HTTP/1.1 2", b"HTTP/1.1 5"))


def _answer_to(server: Running, data: bytes) -> bytes:
    with dial(server.control) as sock:
        try:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            return sock.recv(4096)
        except (BrokenPipeError, ConnectionResetError):
            return b""


def test_clients_that_hang_cost_others_nothing(server: Running) -> None:
    """More of them than there are seats: whoever sat longest is sent away, whoever asks is served at once."""
    hanging = [dial(server.control) for _ in range(3 * endpoint.SEATS)]
    try:
        for sock in hanging[::-1]:
            _say_half(sock)
        assert is_well(server)
        assert was_sent_away(hanging[0])
    finally:
        for sock in hanging:
            sock.close()


def was_sent_away(sock: socket.socket) -> bool:
    """Wait until the server closes a connection, and tell whether it did so without a word."""
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


def _say_half(sock: socket.socket) -> None:
    with suppress(BrokenPipeError):  # it may have been sent away already
        sock.sendall(b"POST /v1/refork HTTP/1.1\r\nHost: x\r\nContent-Le")


@pytest.mark.parametrize(
    "beginning", [b"", b"GET /v1/sta", b"POST /v1/refork HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{"]
)
def test_a_client_that_does_not_finish_is_cut_off(tmp_path: Path, beginning: bytes) -> None:
    """There is a deadline for everything that a client wants to say, wherever it stops."""
    server = launch(tmp_path / "log", "--deadline", "0.2")
    with dial(server.control) as sock:
        sock.sendall(beginning)
        assert was_sent_away(sock)
    assert server.stop() == 0


def test_one_connection_is_one_request(server: Running) -> None:
    """Nobody keeps a seat by asking again."""
    with dial(server.control) as sock:
        sock.sendall(b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n" * 2)
        answer = b""
        while chunk := sock.recv(65536):
            answer += chunk
    assert answer.count(b"HTTP/1.1 200") == 1
    assert b"\r\nconnection: close\r\n" in answer.lower()


@pytest.mark.parametrize(
    ("peer", "own_uid", "unmapped_uid", "may"),
    [
        (Peer(pid=1, uid=0), 1000, None, True),
        (Peer(pid=1, uid=1000), 1000, None, True),
        (Peer(pid=0, uid=1000), 1000, NOBODY, True),
        (Peer(pid=1, uid=1001), 1000, None, False),
        (Peer(pid=1, uid=1000), 0, None, False),
        (Peer(pid=1, uid=NOBODY), NOBODY, None, True),
        (Peer(pid=1, uid=NOBODY), NOBODY, NOBODY, True),
        (Peer(pid=0, uid=NOBODY), NOBODY, NOBODY, False),
        (None, 0, None, False),
    ],
)
def test_root_and_the_servers_user_may_command(
    *, peer: Peer | None, own_uid: int, unmapped_uid: int | None, may: bool
) -> None:
    """Nobody else may, also not a foreign user whom a user namespace shows under the server's uid."""
    assert may_command(peer, own_uid=own_uid, unmapped_uid=unmapped_uid) is may


@as_root
def test_a_stranger_is_told_so_and_nothing_is_done(tmp_path: Path) -> None:
    """The kernel says who connects: 403, a line in the log, and not even the web framework is loaded."""
    server = launch(tmp_path / "log")
    name = parse_unix(server.control).name[1:]
    answer = subprocess.run(
        [sys.executable, "-c", STRANGER, name], capture_output=True, text=True, check=True, timeout=PATIENCE
    ).stdout
    assert answer.startswith("HTTP/1.1 403 Forbidden\n")
    assert '{"error":"only root and the user that runs the server may use this socket"}' in answer
    assert f"WARNING steered command=unread uid={NOBODY} pid=" in server.log_text()
    assert server.stop() == 0
    assert "stopped modules=\n" in server.log_text()


@as_root
def test_strangers_take_no_seat_from_others_and_do_not_fill_the_log(tmp_path: Path) -> None:
    """However many of them sit there silent, a client in its own right keeps the seat it has."""
    server = launch(tmp_path / "log")
    name = parse_unix(server.control).name[1:]
    with (
        dial(server.control) as early,
        subprocess.Popen(
            [sys.executable, "-c", SILENT_STRANGERS, name, str(3 * endpoint.SEATS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as strangers,
    ):
        assert strangers.stdout is not None
        assert strangers.stdout.readline() == "seated\n"
        early.sendall(b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n")
        assert early.recv(4096).startswith(b"HTTP/1.1 200")
        strangers.communicate()
    assert server.log_text().count("command=unread") < 10
    assert server.stop() == 0


def test_the_log_holds_commands_and_nothing_else(tmp_path: Path) -> None:
    """No access lines, no noise about clients that speak no HTTP, no traceback."""
    server = launch(tmp_path / "log")
    assert is_well(server)
    _answer_to(server, b"\x16\x03\x01\r\n\r\n")
    ask(server.control, "POST", "/v1/workers", body=b'{"count": 2}')
    assert server.stop() == 0
    lines = [line.split()[:3] for line in server.log_text().splitlines()]
    assert [line[2].partition("=")[0] for line in lines] == ["control", "command", "stopped"]


def test_signals_are_left_to_the_monitor(tmp_path: Path) -> None:
    """After the web framework was loaded, SIGTERM still means what the monitor makes of it."""
    server = launch(tmp_path / "log")
    assert is_well(server)
    assert server.stop() == 0
    assert "stopped modules=uvicorn" in server.log_text()


def test_nothing_is_loaded_for_a_server_that_nobody_asks(tmp_path: Path) -> None:
    """The monitor of an unattended server does not pay for the web framework."""
    server = launch(tmp_path / "log")
    assert server.stop() == 0
    assert "stopped modules=\n" in server.log_text()


def test_a_socket_file_is_for_its_owner_and_goes_with_the_server(tmp_path: Path) -> None:
    """Mode 0600 whatever the umask is; nothing is left behind."""
    path = tmp_path / "control.sock"
    umask = os.umask(0)
    try:
        server = launch(tmp_path / "log", "--control", f"unix:{path}")
    finally:
        os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert is_well(server)
    assert server.stop() == 0
    assert not path.exists()


def test_the_socket_file_of_a_dead_server_is_replaced(tmp_path: Path) -> None:
    """A crash does not keep the next server from starting."""
    path = tmp_path / "control.sock"
    dead = launch(tmp_path / "log", "--control", f"unix:{path}")
    dead.process.kill()
    dead.process.wait(PATIENCE)
    assert path.exists()
    server = launch(tmp_path / "log", "--control", f"unix:{path}")
    assert is_well(server)
    assert server.stop() == 0


@pytest.mark.parametrize("bind", ["unix:{path}", "unix:@refork-test-{pid}"])
def test_the_address_of_a_living_server_is_refused(tmp_path: Path, bind: str) -> None:
    """The second one says so in a sentence, and the first goes on."""
    bind = bind.format(path=tmp_path / "control.sock", pid=os.getpid())
    server = launch(tmp_path / "log", "--control", bind)
    with pytest.raises(AssertionError, match=r"ended with 1: .*BindError: .* is in use by another process"):
        launch(tmp_path / "second", "--control", bind)
    assert is_well(server)
    assert server.stop() == 0


def test_a_file_that_is_no_socket_is_never_removed(tmp_path: Path) -> None:
    """A typing error in the configuration costs no data."""
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(AssertionError, match="a file that is no socket has that name"):
        launch(tmp_path / "log", "--control", f"unix:{path}")
    assert path.read_text() == "data"


def test_a_socket_file_that_another_server_has_put_there_stays(tmp_path: Path) -> None:
    """Whoever stops late does not remove what its successor listens on."""
    path = tmp_path / "control.sock"
    first = launch(tmp_path / "first", "--control", f"unix:{path}")
    path.unlink()
    second = launch(tmp_path / "second", "--control", f"unix:{path}")
    assert first.stop() == 0
    assert is_well(second)
    assert second.stop() == 0


@pytest.mark.parametrize("bind", ["unix:/nowhere/control.sock", "unix:/proc/control.sock"])
def test_a_place_that_takes_no_socket_is_named(tmp_path: Path, bind: str) -> None:
    """The sentence holds the address and the kernel's reason."""
    with pytest.raises(AssertionError, match=f"BindError: cannot listen on {bind}: "):
        launch(tmp_path / "log", "--control", bind)


def test_two_servers_whose_pids_are_equal_take_two_names(tmp_path: Path) -> None:
    """Containers of one pod share the names but not the pids."""
    pid = own_pid_name()
    first = launch(tmp_path / "first", "--pid", str(pid))
    second = launch(tmp_path / "second", "--pid", str(pid))
    assert (first.control, second.control) == (f"unix:@refork/{pid}", f"unix:@refork/{pid}.1")
    assert is_well(first)
    assert is_well(second)
    assert (first.stop(), second.stop()) == (0, 0)


def test_none_listens_nowhere(tmp_path: Path) -> None:
    """Who wants no control endpoint has none."""
    server = launch(tmp_path / "log", "--control", "none")
    assert server.control == "None"
    assert f"@refork/{server.process.pid}" not in Path("/proc/net/unix").read_text()
    assert server.stop() == 0


def test_what_the_monitor_imports_is_small() -> None:
    """Neither the web framework nor the Prometheus client comes with the endpoints until somebody asks."""
    large = {"h11", "http", "prometheus_client", "rich", "uvicorn"}
    code = f"import sys, refork.control, refork.metrics; print({large} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment())
    assert done.stdout == "set()\n"


def test_a_server_stops_at_once_whoever_hangs_on_it(tmp_path: Path) -> None:
    """Clients in the middle of anything do not keep the monitor from ending, and leave no trace in its log."""
    server = launch(tmp_path / "log")
    assert is_well(server)
    with dial(server.control) as silent, dial(server.control) as half:
        half.sendall(b"POST /v1/refork HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
        assert is_well(server)
        started = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - started < 3 * endpoint.SECONDS_TO_FINISH_AT_STOP + 2
        assert silent.fileno() != half.fileno()
    assert "Traceback" not in server.log_text()


@pytest.mark.parametrize(("ready", "status"), [("2", 200), ("3", 200), ("1", 503), ("0", 503)])
def test_readiness_is_as_many_workers_as_are_wanted(tmp_path: Path, ready: str, status: int) -> None:
    """A probe of Kubernetes takes the pod out of service while workers are missing; it stays alive."""
    server = launch(tmp_path / "log", "--metrics", "127.0.0.1:0", "--ready", ready)
    assert ask(server.metrics, "GET", "/readyz")[:2] == (status, f"ready={ready} wanted=2\n")
    assert ask(server.metrics, "GET", "/healthz")[0] == 200
    assert server.stop() == 0


def test_a_port_in_use_is_one_sentence(tmp_path: Path) -> None:
    """The sentence names the address."""
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(AssertionError, match=r"BindError: 127.0.0.1:\d+ is in use by another process"),
    ):
        launch(tmp_path / "log", "--metrics", f"127.0.0.1:{taken.getsockname()[1]}")


@pytest.mark.parametrize("bind", ["127.0.0.1:0", "localhost:0", ":0", "unix:{path}"])
def test_metrics_and_probes_are_served_wherever_the_bind_says(tmp_path: Path, bind: str) -> None:
    """One server, three addresses, TCP or unix socket."""
    server = launch(tmp_path / "log", "--metrics", bind.format(path=tmp_path / "metrics.sock"))
    address = f"127.0.0.1{server.metrics}" if server.metrics.startswith(":") else server.metrics
    status, text, headers = ask(address, "GET", "/metrics")
    assert (status, headers.get_content_type()) == (200, "text/plain")
    assert "\nrefork_workers_wanted 2" in text
    assert ask(address, "GET", "/healthz")[:2] == (200, "ok\n")
    assert ask(address, "GET", "/readyz")[:2] == (200, "ready=2 wanted=2\n")
    assert ask(address, "POST", "/metrics")[0] == 405
    assert ask(address, "POST", "/v1/refork")[0] == 404
    assert server.stop() == 0
