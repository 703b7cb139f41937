"""Copies of charts that a test may add files to, and servers that their commands talk to."""

from __future__ import annotations

import shutil
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

from tests.helm.harness import OPERATOR

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """The operator's chart without dashboards and rules."""
    copy = tmp_path / "refork"
    shutil.copytree(OPERATOR, copy, ignore=shutil.ignore_patterns("dashboards", "rules"))
    return copy


@pytest.fixture
def answering() -> Callable[[int], AbstractContextManager[str]]:
    """Serve /readyz on loopback with one status; the context gives the URL."""

    @contextmanager
    def serve(status: int) -> Iterator[str]:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status if self.path == "/readyz" else 404)
                self.end_headers()

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            yield f"http://127.0.0.1:{server.server_port}"
            server.shutdown()
            thread.join()

    return serve
