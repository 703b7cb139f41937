"""reforkctl, as a process: what it prints, where it prints it, and how it ends."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refork import api, ctl_client
from refork.ctl_table import lines, rows
from refork.ctl_words import duration, plain
from tests.integration.steered import (
    MIB,
    PATIENCE,
    SLOT_THAT_HANGS,
    SLOT_WITH_BUG,
    SLOT_WITHOUT_WORKER,
    Running,
    environment,
    launch,
    make_status,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

Result = subprocess.CompletedProcess[str]
CTL = (sys.executable, "-m", "refork.ctl")
NOBODY = 65534

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")

AS_NOBODY = f"""
import contextlib, io, os, sys
import refork.ctl
# The first run fails, but loads every module: the installation may be one that only its owner can read.
with contextlib.redirect_stderr(io.StringIO()):
    refork.ctl.main(["status", "--socket", "unix:@nobody"])
os.setgroups([])
os.setuid({NOBODY})
sys.exit(refork.ctl.main(sys.argv[1:]))
"""


def run(*arguments: str, prefix: Sequence[str] = (), command: Sequence[str] = CTL, **more: str) -> Result:
    """Run reforkctl to its end."""
    return subprocess.run(
        [*prefix, *command, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
        env=environment(**more),
    )


def assert_one_line(result: Result, *, code: int, says: str) -> None:
    """It failed in the way that was expected, with one line on standard error and nothing else."""
    assert (result.returncode, result.stdout) == (code, "")
    assert re.fullmatch(r"reforkctl: [^\n]+\n", result.stderr)
    assert says in result.stderr


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One server that is always named."""
    running = launch(tmp_path_factory.mktemp("server") / "log")
    yield running
    assert running.stop() == 0


@pytest.fixture
def alone() -> Iterator[tuple[str, ...]]:
    """A network namespace in which no other server runs: the prefix of commands that run in it."""
    unshare: Sequence[str] = ("unshare", "--net")
    enter: Sequence[str] = ("nsenter", "--net=/proc/{pid}/ns/net")
    if os.geteuid() != 0:
        unshare = ("unshare", "--net", "--user", "--map-root-user")
        enter = ("nsenter", "--net=/proc/{pid}/ns/net", "--user=/proc/{pid}/ns/user", "--preserve-credentials")
    try:
        holder = subprocess.Popen(
            [*unshare, "sh", "-c", "echo made; read end"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
    except FileNotFoundError:
        pytest.skip("unshare is not installed: apt-get install util-linux")
    with holder:
        assert holder.stdout is not None
        if holder.stdout.readline() != "made\n":
            pytest.skip("no network namespace can be made here")
        yield tuple(word.format(pid=holder.pid) for word in enter)
        holder.communicate()


def test_status_is_a_table_of_all_processes(server: Running) -> None:
    """Who serves, what each costs, what all cost together, and what went on."""
    result = run("status", "--socket", server.control)
    assert (result.returncode, result.stderr) == (0, "")
    table = [line.split() for line in result.stdout.splitlines()]
    assert table[0] == ["ROLE", "SLOT", "GEN", "PID", "STATE", "REQUESTS", "AGE", "RSS", "PSS", "USS", "SHARED"]
    assert [row[0] for row in table[1:5]] == ["monitor", "mold", "worker", "worker"]
    worker = "worker 1 1 {} ready 101 1 min 5 s 200.0 MiB 53.0 MiB 4.0 MiB 98%"
    assert table[4] == worker.format(server.process.pid + 3).split()
    assert "memory: 300.0 MiB used, 340.0 MiB saved by sharing (53% of RSS); RSS 640.0 MiB\n" in result.stdout
    assert "\ngain: a refork would win 0.0 MiB\n" in result.stdout
    assert "server: demo:app worker_class=sync ready=2/2 generation=1 phase=steady sealing=on" in result.stdout
    last = "last: refork refork-0 to generation 1 by requests succeeded after 2.50 s (surge 0.25, rolling 2.00), 59 min"
    assert last in result.stdout


@pytest.mark.parametrize("columns", ["20", "80"])
def test_without_a_terminal_nothing_is_left_out(server: Running, columns: str) -> None:
    """What a script reads does not depend on the width of anybody's screen."""
    narrow = run("status", "--socket", server.control, COLUMNS=columns)
    assert narrow.stdout == run("status", "--socket", server.control).stdout
    assert "…" not in narrow.stdout


def test_on_a_terminal_the_table_is_shown_too(server: Running) -> None:
    """A person sees the same figures."""
    leader, follower = pty.openpty()
    with subprocess.Popen([*CTL, "status", "--socket", server.control], stdout=follower, env=environment()) as shown:
        os.close(follower)
        output = b""
        try:
            while chunk := os.read(leader, 65536):
                output += chunk
        except OSError:  # EIO: the other side of the terminal is closed
            pass
    os.close(leader)
    assert shown.returncode == 0
    assert b"saved by sharing" in output


def test_status_as_json_is_what_the_server_says(server: Running) -> None:
    """For programs: everything, in a form that is the same for all versions of reforkctl."""
    result = run("--socket", server.control, "status", "--json")
    assert result.returncode == 0
    assert json.loads(result.stdout)["workers"][1]["requests"] == 101


def test_a_refork_is_watched_step_by_step(server: Running) -> None:
    """With --wait each step is a line, and the end says how long they took."""
    result = run("refork", "--wait", "--socket", server.control)
    assert (result.returncode, result.stderr) == (0, "")
    steps = ["surge", "draining", "sealing", "canary", "rolling", "retiring"]
    said = result.stdout.splitlines()
    assert said[0] == "refork to generation 2 begins"
    assert [line.strip() for line in said[1:-1]] == steps
    assert said[-1].startswith("refork succeeded: generation 2 serves, after 1.50 s (surge 0.25, draining 0.25,")


def test_without_wait_a_command_returns_at_once(server: Running) -> None:
    """It says what the server said."""
    result = run("refork", "--slot", str(SLOT_THAT_HANGS), "--socket", server.control)
    assert (result.returncode, result.stdout) == (0, "refork to generation 2 begins\n")
    result = run("workers", "12", "--socket", server.control)
    assert (result.returncode, result.stdout) == (0, "12 workers wanted\n")


def test_a_rollout_that_fails_is_exit_code_1_and_the_reason(server: Running) -> None:
    """A script that deploys can trust the exit code."""
    result = run("rebase", "--wait", "--socket", server.control)
    assert (result.returncode, result.stdout) == (1, "rebase to generation 2 begins\n  loading\n")
    reason = "the application does not import: No module named 'nonsense'"
    assert result.stderr == f"reforkctl: rebase failed while loading: {reason}\n"


def test_interrupted_it_says_what_goes_on(server: Running) -> None:
    """Ctrl-C ends the watching, in one line."""
    hanging = ["refork", "--slot", str(SLOT_THAT_HANGS), "--wait", "--socket", server.control]
    # A shell's background jobs have SIGINT ignored, and so have the tests that run in one.
    code = (
        "import signal, sys, refork.ctl; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "sys.exit(refork.ctl.main(sys.argv[1:]))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, *hanging],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as process:
        assert process.stdout is not None
        while process.stdout.readline() != "  surge\n":
            pass
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, errors) == (130, "reforkctl: interrupted; what the server has accepted goes on\n")


def test_a_rollout_that_takes_too_long_is_left_to_itself(server: Running) -> None:
    """--timeout ends the watching, and says that it goes on."""
    hanging = ("refork", "--slot", str(SLOT_THAT_HANGS), "--wait", "--timeout", "0.1")
    result = run(*hanging, "--socket", server.control)
    assert result.returncode == 1
    assert re.match(r"reforkctl: refork \S+ is still in its step surge after 0.1 s, and goes on", result.stderr)


def test_a_refusal_is_exit_code_1_and_its_sentence(server: Running) -> None:
    """The server's own words."""
    result = run("refork", "--slot", str(SLOT_WITHOUT_WORKER), "--socket", server.control)
    assert_one_line(result, code=1, says="slot 7 has no worker")


def test_a_server_with_a_bug_is_exit_code_3(server: Running) -> None:
    """It could be reached, but gave no answer."""
    result = run("refork", "--slot", str(SLOT_WITH_BUG), "--socket", server.control)
    assert_one_line(result, code=3, says="its log says why")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["refork", "--slot", "-1"],
        ["refork", "--slot", "x"],
        ["refork", "--wait", "--timeout", "nan"],
        ["refork", "--wait", "--timeout", "soon"],
        ["workers"],
        ["workers", "0"],
        ["workers", "0000000000001"],
        ["workers", "65536"],
        ["status", "--socket", "tcp:1"],
        ["status", "extra"],
    ],
)
def test_wrong_usage_is_exit_code_2_and_one_line(arguments: list[str]) -> None:
    """Not a page of usage, and not a traceback."""
    assert_one_line(run(*arguments), code=2, says="")


def test_help_teaches() -> None:
    """Words, examples, which server is meant, exit codes."""
    result = run("--help")
    assert result.returncode == 0
    for word in (
        "status",
        "refork",
        "rebase",
        "workers",
        "REFORK_CONTROL",
        "unix:@NAME",
        "exit codes",
        "examples",
        "mold",
    ):
        assert word in result.stdout
    assert "--timeout SECONDS" in run("refork", "--help").stdout


def test_the_environment_names_a_server_and_the_option_wins(server: Running) -> None:
    """--socket over REFORK_CONTROL, before or after the command."""
    assert run("workers", "3", REFORK_CONTROL=server.control).returncode == 0
    assert run("workers", "3", "--socket", server.control, REFORK_CONTROL="unix:@nobody").returncode == 0
    assert run("--socket", server.control, "workers", "3", REFORK_CONTROL="unix:@nobody").returncode == 0
    assert_one_line(run("workers", "3", REFORK_CONTROL="unix:@nobody"), code=3, says="unix:@nobody: is it running?")


def test_a_single_server_is_found_without_being_named(alone: tuple[str, ...], tmp_path: Path) -> None:
    """Nobody has to know a pid."""
    server = launch(tmp_path / "log", prefix=alone)
    result = run("status", prefix=alone)
    assert (result.returncode, result.stderr) == (0, "")
    assert "demo:app" in result.stdout
    assert server.stop() == 0


def test_a_busy_server_is_waited_for(tmp_path: Path) -> None:
    """A full queue of connections is no reason to give up: the command waits for its place, as long as it may."""
    path = tmp_path / "busy.sock"
    with socket.create_server(str(path), family=socket.AF_UNIX, backlog=1) as listener:
        early = [socket.socket(socket.AF_UNIX) for _ in range(2)]
        for sock in early:
            sock.connect(str(path))
        with subprocess.Popen(
            [*CTL, "status", "--socket", f"unix:{path}"], stderr=subprocess.PIPE, text=True, env=environment()
        ) as process:
            accepted = [listener.accept()[0] for _ in range(3)]
            assert accepted[-1].recv(65536).startswith(b"GET /v1/status")
            for sock in accepted + early:
                sock.close()
            _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 3
    assert errors.startswith(f"reforkctl: unix:{path} broke off the conversation: ")


def test_two_servers_are_listed_and_none_is_chosen(alone: tuple[str, ...], tmp_path: Path) -> None:
    """A command never goes to the wrong one; the lines can be pasted."""
    one = launch(tmp_path / "one", "--app", "one:app", prefix=alone)
    two = launch(tmp_path / "two", "--app", "two:app", prefix=alone)
    result = run("refork", prefix=alone)
    assert (result.returncode, result.stdout) == (2, "")
    first, *listed = result.stderr.splitlines()
    assert first == "reforkctl: 2 servers are running: choose one with --socket"
    assert sorted(listed) == sorted(
        f"  --socket {server.control} pid={server.process.pid} app={app}:app"
        for server, app in ((one, "one"), (two, "two"))
    )
    assert run("status", "--socket", one.control, prefix=alone).returncode == 0
    assert (one.stop(), two.stop()) == (0, 0)
    assert "command=" not in (one.log_text() + two.log_text()).replace("command=unread", "command=")


def test_no_server_is_exit_code_3_and_what_to_do(alone: tuple[str, ...]) -> None:
    """The line says where it looked and what would help."""
    assert_one_line(run("status", prefix=alone), code=3, says="start one with `refork APP`")


def test_a_name_is_not_believed_unless_its_process_listens(alone: tuple[str, ...], tmp_path: Path) -> None:
    """Anybody can take the name of a server, and gets no command by it."""
    impostor = launch(tmp_path / "impostor", "--control", f"unix:@refork/{os.getpid()}", prefix=alone)
    assert_one_line(run("status", prefix=alone), code=3, says="no server is running")
    server = launch(tmp_path / "log", prefix=alone)
    assert run("workers", "2", prefix=alone).returncode == 0
    assert "command=workers" in server.log_text()
    assert "command=workers" not in impostor.log_text()
    assert (impostor.stop(), server.stop()) == (0, 0)


@as_root
def test_somebody_else_is_refused(server: Running, tmp_path: Path) -> None:
    """Exit code 1 and a sentence, whether the kernel says so on the socket or at its file."""
    as_nobody = (sys.executable, "-c", AS_NOBODY)
    result = run("status", "--socket", server.control, command=as_nobody)
    assert_one_line(result, code=1, says="only root and the user that runs the server may use this socket")
    tmp_path.parent.chmod(0o755)
    filed = launch(tmp_path / "log", "--control", f"unix:{tmp_path / 'control.sock'}")
    result = run("status", "--socket", filed.control, command=as_nobody)
    assert_one_line(result, code=1, says="run as root or as the server's user")
    assert filed.stop() == 0


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-x\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n\xff\xfe\x00",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 999 \x1b[31m\r\nContent-Length: 0\r\n\r\n",
        b'HTTP/1.1 409 no\r\nContent-Length: 22\r\n\r\n{"error": "\\u001b[2J"}',
        pytest.param(b'HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{"new":' + b"[" * 50_000, id="deep status"),
        pytest.param(b'HTTP/1.1 409 no\r\nConnection: close\r\n\r\n{"new":' + b"[" * 50_000, id="deep refusal"),
    ],
)
def test_whoever_answers_like_no_server_gets_no_traceback(answer: bytes, tmp_path: Path) -> None:
    """One line, exit code 1 or 3, and nothing that a terminal would obey."""
    result = talk_to(answer, tmp_path, "status")
    assert result.returncode in {1, 3}
    assert re.fullmatch(r"reforkctl: [^\n\x1b]+\n", result.stderr)
    assert talk_to(answer, tmp_path, "status", "--json").returncode in {1, 3}


def talk_to(answer: bytes, directory: Path, *arguments: str) -> Result:
    """Run reforkctl against a socket that answers the same to everything."""
    path = directory / "odd.sock"
    path.unlink(missing_ok=True)
    with socket.create_server(str(path), family=socket.AF_UNIX) as listener:
        thread = threading.Thread(target=_answer_once, args=(listener, answer))
        thread.start()
        result = run(*arguments, "--socket", f"unix:{path}")
        thread.join(PATIENCE)
    return result


def _answer_once(listener: socket.socket, answer: bytes) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.recv(65536)
        connection.sendall(answer)


def test_a_reader_that_stops_reading_is_no_error(server: Running) -> None:
    """`reforkctl status | head -1` ends quietly."""
    reader, writer = os.pipe()
    os.close(reader)
    with subprocess.Popen(
        [*CTL, "status", "--socket", server.control], stdout=writer, stderr=subprocess.PIPE, env=environment()
    ) as process:
        os.close(writer)
        _, errors = process.communicate(timeout=PATIENCE)
    assert errors == b""


def test_it_starts_without_what_it_does_not_need() -> None:
    """No web framework and no event loop; the table library only for a table."""
    code = "import sys, refork.ctl; print({'asyncio', 'gunicorn', 'h11', 'rich', 'ssl', 'uvicorn'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment())
    assert done.stdout in {"set()\n", "{'ssl'}\n"}


LISTED = """\
Num       RefCount Protocol Flags    Type St Inode Path
00000000e932729c: 00000002 00000000 00010000 0001 01  1161 @refork/812
0000000000000000: 00000002 00000000 00010000 0001 01 91161 @refork/4.1
00000000e932729c: 00000003 00000000 00000000 0001 03  1162 @refork/813
00000000e932729c: 00000002 00000000 00010000 0001 01  1163 /run/refork/814
00000000e932729c: 00000002 00000000 00010000 0005 01  1164 @refork/815
00000000e932729c: 00000002 00000000 00010000 0001 01  1165 @other/816
00000000e932729c: 00000002 00000000 00010000 0001 01  1166
"""


def test_servers_are_the_listening_names_that_servers_choose() -> None:
    """Connections, paths, other socket types and other names are none."""
    assert [str(found) for found in ctl_client.own_names(LISTED.splitlines())] == [
        "unix:@refork/4.1",
        "unix:@refork/812",
    ]


@given(st.lists(st.text() | st.sampled_from(LISTED.splitlines())))
def test_a_garbled_list_of_sockets_is_no_error(text: list[str]) -> None:
    """Names can hold anything, and another process chose them."""
    assert all(found.named_pid for found in ctl_client.own_names(text))


def test_a_status_with_nothing_known_has_a_table_too() -> None:
    """A server that is just booting has no figures."""
    status = make_status(monitor_memory=None, molds=(), workers=(), totals=None, last_rollout=None, refusal="it boots")
    assert [row[0] for row in rows(status)] == ["monitor"]
    assert list(lines(status))[-1] == "a refork would be refused: it boots"


def test_the_worth_of_a_refork_and_the_limit_are_told() -> None:
    """Who has switched on reforks by memory reads here why none comes; who runs in a container, how near the end is."""
    status = make_status(
        gain=api.Gain(predicted=12 * MIB, realised=5 * MIB, promised=6 * MIB),
        automatic=api.Automatic("DoesNotPay", "3 reforks in a row did not pay: no more until told otherwise", 3, True),
        cgroup=api.Cgroup(version=2, usage=400 * MIB, working_set=300 * MIB, limit=600 * MIB, oom_kills=2),
    )
    told = list(lines(status))
    assert "limit: 300.0 MiB of the container's 600.0 MiB (50%); 2 processes killed for want of memory" in told
    assert (
        "gain: a refork would win 12.0 MiB; the last one won 5.0 MiB of 6.0 MiB promised; "
        "by memory: 3 reforks in a row did not pay: no more until told otherwise"
    ) in told


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (61, "1 min 1 s"), (3600, "1 h 0 min"), (90_000, "1 d 1 h")]
)
def test_durations_are_told_in_two_units(seconds: float, text: str) -> None:
    """More would say less."""
    assert duration(seconds) == text


def test_what_a_server_says_cannot_steer_a_terminal() -> None:
    """Control characters are shown as what they are: nothing to obey."""
    assert plain("a\x1b[2J\u202eb\n") == "a?[2J?b?"
    assert plain("größe") == "größe"
