"""What a worker writes and the monitor reads."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refork.scoreboard import ROWS, Cell, Row, Scoreboard
from refork.workers.counting import counted

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, MutableMapping
    from typing import Any

    type Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


@pytest.fixture
def board() -> Iterator[Scoreboard]:
    """A table of our own."""
    board = Scoreboard.create()
    yield board
    os.close(board.fd)


def figures(row: Row) -> tuple[int, int, int]:
    """Requests answered, those that failed, and those under way."""
    return row[Cell.REQUESTS], row[Cell.ERRORS], row[Cell.IN_FLIGHT]


@given(ends=st.lists(st.booleans(), max_size=20), begun=st.integers(0, 5))
def test_another_process_reads_what_one_has_counted(ends: list[bool], begun: int) -> None:
    """It maps the same memory; a row's neighbours are not touched."""
    board = Scoreboard.create()
    mine, theirs = board.row(7), Scoreboard(board.fd).row(7)
    for failed in ends:
        mine.begin()
        if failed:
            mine.fail()
        mine.end()
    for _ in range(begun):
        mine.begin()
    mine.beat()
    assert figures(theirs) == (len(ends), sum(ends), begun)
    assert theirs[Cell.HEARTBEAT] > 0
    assert figures(board.row(6)) == figures(board.row(8)) == (0, 0, 0)
    os.close(board.fd)


def test_a_row_begins_at_nothing_for_the_next_process(board: Scoreboard) -> None:
    """Whatever the last one left in it."""
    last = board.row(ROWS - 1)
    for count in (last.begin, last.begin, last.fail, last.end, last.beat):
        count()
    board.row(ROWS - 1).clear()
    following = board.row(ROWS - 1)
    assert figures(following) == (0, 0, 0)
    assert following[Cell.HEARTBEAT] == 0
    following.begin()
    assert figures(last) == (0, 0, 1)


def test_who_knows_all_requests_that_are_under_way_says_so(board: Scoreboard) -> None:
    """Answers are counted one by one all the same, and what begins and ends meanwhile is added."""
    row = board.row(3)
    row.answer()
    row.see(2)
    assert figures(row) == (1, 0, 2)
    row.begin()
    row.end()
    assert figures(row) == (2, 0, 2)


START, BODY = "http.response.start", "http.response.body"


async def drop(_: MutableMapping[str, Any]) -> None:
    """Send nowhere."""


@pytest.mark.parametrize(
    ("messages", "raises", "failed"),
    [
        pytest.param([{"type": START, "status": 200}, {"type": BODY}], False, 0, id="an answer"),
        pytest.param([{"type": START, "status": 499}], False, 0, id="the client's error"),
        pytest.param([{"type": START, "status": 500}, {"type": BODY}], False, 1, id="the application's error"),
        pytest.param([{"type": START, "status": 503}], True, 1, id="one that is said and raised counts once"),
        pytest.param([{"type": START, "status": 200}, {"type": BODY}], True, 1, id="broken off"),
        pytest.param(
            [{"type": "http.response.informational", "status": 103}, {"type": START, "status": 500}], False, 1,
            id="hints come before an answer",
        ),
        pytest.param([], True, 1, id="no answer"),
    ],
)  # fmt: skip
def test_the_requests_of_an_asgi_application_are_counted(
    board: Scoreboard, messages: list[dict[str, Any]], *, raises: bool, failed: int
) -> None:
    """Each once, with what the client got; what is raised goes on to the server."""
    row, seen = board.row(0), []

    async def application(_scope: MutableMapping[str, Any], _receive: Any, send: Send) -> None:
        seen.append(row[Cell.IN_FLIGHT])
        for message in messages:
            await send(message)
        if raises:
            raise ZeroDivisionError

    call = counted(application, row)({"type": "http"}, drop, drop)
    with pytest.raises(ZeroDivisionError if raises else StopIteration):
        call.send(None)  # type: ignore[attr-defined]  # nothing in it waits
    assert seen == [1]
    assert figures(row) == (1, failed, 0)


@pytest.mark.parametrize("kind", ["websocket", "lifespan"])
def test_what_is_no_http_request_is_not_counted(board: Scoreboard, kind: str) -> None:
    """The application gets the server's own send."""
    row, seen = board.row(0), []

    async def application(_scope: MutableMapping[str, Any], _receive: Any, send: Send) -> None:
        seen.append(send)

    with pytest.raises(StopIteration):
        counted(application, row)({"type": kind}, drop, drop).send(None)  # type: ignore[attr-defined]
    assert seen == [drop]
    assert figures(row) == (0, 0, 0)
