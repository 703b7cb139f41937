"""What the tests that boot the real server share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import pytest

from tests.integration.server import BRISK, WSGI, Server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Serve(Protocol):
    """Boots a server; the words come after those that make its rollouts brisk."""

    def __call__(
        self,
        *words: str,
        app: str = WSGI,
        config: str = "",
        workers: int | None = 2,
        steady: bool = True,
        bind: bool = True,
        traces: bool = False,
        threaded: bool = False,
        environment: dict[str, str] | None = None,
        **start: Any,
    ) -> Server:
        """Return the server: once it is steady, or at once; ``start`` is for ``Server.start``."""
        ...


@pytest.fixture
def new_server(tmp_path: Path) -> Iterator[list[Server]]:
    """Servers that a test puts in here are closed, and nothing of them may be left."""
    servers: list[Server] = []
    yield servers
    errors = []
    for server in servers:
        try:
            server.close()
        except AssertionError as error:
            errors.append(error)
    if errors:
        raise errors[0]


@pytest.fixture
def serve(tmp_path: Path, new_server: list[Server]) -> Serve:
    """Return what boots a server in a directory of its own."""

    def boot(
        *words: str,
        app: str = WSGI,
        config: str = "",
        workers: int | None = 2,
        steady: bool = True,
        bind: bool = True,
        traces: bool = False,
        threaded: bool = False,
        environment: dict[str, str] | None = None,
        **start: Any,
    ) -> Server:
        directory = tmp_path / f"server{len(new_server)}"
        directory.mkdir()
        server = Server(directory, environment=environment or {}, traces=traces, threaded=threaded)
        new_server.append(server)
        server.write("app.py", app)
        server.write("gunicorn.conf.py", config)
        counted = () if workers is None else ("-w", str(workers))
        server.start(*counted, *BRISK, *words, "app:app", bind=bind, **start)
        if steady:
            server.wait_steady(workers=workers)
        return server

    return boot
