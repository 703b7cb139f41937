"""The load client is the proof that no request fails, so it has to be able to prove the opposite.

Each test runs it against a server that behaves, or misbehaves, in exactly one way.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from benchmarks import _load
from benchmarks._load import Plan, Report

type Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Worker-Pid: 7\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
OK_CLOSE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"


async def request(reader: asyncio.StreamReader) -> bool:
    """Read one request; False when the client closed instead."""
    try:
        await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return False
    return True


def answering(*answers: bytes, end: Callable[[asyncio.StreamWriter], None] | None = None) -> Handler:
    """A server that gives each connection these answers, the last one for ever; or ``end`` after them."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = 0
        while await request(reader):
            if number >= len(answers) and end is not None:
                end(writer)
                return
            writer.write(answers[min(number, len(answers) - 1)])
            number += 1
        writer.close()

    return handle


def drive(handler: Handler, **plan: object) -> Report:
    """Run the load, in this process, against a server with this handler."""

    async def both() -> Report:
        server = await asyncio.start_server(handler, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        wanted: dict[str, object] = {"connections": 2, "requests": 10, "timeout": 5.0} | plan
        report = await _load.Load(Plan(url=f"http://127.0.0.1:{port}/x?y=1", **wanted)).run()  # type: ignore[arg-type]
        server.close()
        return report

    return asyncio.run(asyncio.wait_for(both(), 20))


def test_a_server_that_keeps_connections_alive_has_no_failures_and_one_connection_a_lane() -> None:
    report = drive(answering(OK))
    assert (report.requests, report.failed_requests, report.connections) == (10, 0, 2)
    assert report.pids == {"7": 10}


def test_an_announced_close_is_no_failure() -> None:
    report = drive(answering(OK_CLOSE, end=lambda writer: writer.close()))
    assert (report.requests, report.failed_requests, report.connections) == (10, 0, 10)


def test_a_close_with_the_request_in_flight_is_a_failure() -> None:
    report = drive(answering(OK, end=lambda writer: writer.close()), connections=1)
    assert report.requests == 10
    assert report.failures == {"closed": 5}
    assert report.socket_errors == 5
    assert "closed by the server with the request in flight" in report.notes[0]


def test_a_reset_with_the_request_in_flight_is_a_failure() -> None:
    def reset(writer: asyncio.StreamWriter) -> None:
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        writer.transport.abort()

    report = drive(answering(OK, end=reset), connections=1)
    assert report.failures == {"reset": 5}


def test_an_unannounced_close_right_behind_an_answer_fails_the_request_that_follows_it() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(OK)
        writer.close()

    report = drive(handle, connections=1)
    assert report.failed_requests > 0
    assert report.failed_requests == report.socket_errors


def test_a_close_while_idle_is_counted_and_is_no_failure() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(OK)
        await asyncio.sleep(0.02)
        writer.close()

    report = drive(handle, requests=4, connections=1, pause=0.1)
    assert (report.failed_requests, report.idle_closes, report.connections) == (0, 3, 4)


def test_half_an_answer_is_a_failure() -> None:
    def stop_early(writer: asyncio.StreamWriter) -> None:
        writer.write(OK[:-1])
        writer.close()

    report = drive(answering(OK, end=stop_early), connections=1, requests=4)
    assert report.failures == {"closed": 2}


@pytest.mark.parametrize("status", [b"500 Internal Server Error", b"503 Service Unavailable", b"404 Not Found"])
def test_any_status_but_2xx_is_a_failure(status: bytes) -> None:
    report = drive(answering(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n"), requests=3)
    assert (report.requests, report.failed_requests, report.non_2xx, report.socket_errors) == (3, 3, 3, 0)


def test_an_answer_that_never_comes_is_a_failure_after_the_timeout() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await request(reader):
            pass
        writer.close()

    report = drive(handle, requests=1, connections=1, timeout=0.3)
    assert report.failures == {"timeout": 1}


def test_bytes_that_are_not_http_are_a_failure() -> None:
    report = drive(answering(b"SSH-2.0-nothing\r\n\r\n"), requests=1)
    assert report.failures == {"bad answer": 1}


def test_more_bytes_than_the_answer_has_are_a_failure() -> None:
    report = drive(answering(OK + b"HTTP/1.1 500"), requests=1)
    assert report.failures == {"bad answer": 1}


def test_nobody_listening_is_a_failure() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    report = asyncio.run(_load.Load(Plan(url=f"http://127.0.0.1:{port}/", connections=1, requests=2)).run())
    assert report.failures == {"connect": 2}


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(CHUNKED + b"2\r\nok\r\n3;x=1\r\nabc\r\n0\r\n\r\n", id="chunked"),
        pytest.param(CHUNKED + b"0\r\nA: b\r\nC: d\r\n\r\n", id="trailers"),
        pytest.param(b"HTTP/1.1 204 No Content\r\n\r\n", id="no content"),
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n" + OK, id="continue first"),
    ],
)
@pytest.mark.parametrize("size", [1, 1000])
def test_every_framing_of_an_answer_is_understood_in_pieces_of_any_size(answer: bytes, size: int) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await request(reader):
            for at in range(0, len(answer), size):
                writer.write(answer[at : at + size])
                await asyncio.sleep(0)
        writer.close()

    report = drive(handle, requests=4)
    assert (report.requests, report.failed_requests, report.connections) == (4, 0, 2)


def test_an_answer_without_a_length_ends_with_the_connection() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(b"HTTP/1.0 200 OK\r\n\r\nsome text")
        writer.close()

    report = drive(handle, requests=4)
    assert (report.requests, report.failed_requests, report.connections) == (4, 0, 4)


def test_the_open_loop_keeps_its_rate_and_counts_the_wait_of_late_requests() -> None:
    """One lane and answers that take 50 ms cannot keep up with 40 requests a second: the backlog shows as latency."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await request(reader):
            await asyncio.sleep(0.05)
            writer.write(OK)
        writer.close()

    late = drive(handle, connections=1, requests=20, rate=40.0)
    assert late.latency_ms["max"] > 400
    timely = drive(handle, connections=8, requests=20, rate=40.0)
    assert timely.latency_ms["max"] < 200
    assert timely.seconds >= 19 / 40


def test_it_runs_as_a_process_of_its_own_over_a_unix_socket_until_stopped(tmp_path: Path) -> None:
    path = tmp_path / "server.sock"

    async def both() -> Report:
        server = await asyncio.start_unix_server(answering(OK), path)
        plan = Plan(url="http://localhost/", unix=str(path), connections=2)
        with await asyncio.to_thread(_load.start, plan) as load:
            await asyncio.sleep(0.3)
            report = await asyncio.to_thread(load.stop)
        server.close()
        return report

    report = asyncio.run(both())
    assert report.requests > 10
    assert report.failed_requests == 0


def test_the_command_line_says_what_the_plan_says() -> None:
    plan = Plan(url="http://localhost:1/", connections=3, seconds=1.5, rate=10.0, pause=0.1, cpus=(0, 1))
    assert _load.parse(plan.arguments()) == (plan, False)
