"""A server that is not refork, and the exporter beside it: what the dashboard shows of workloads that could change."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.integration.server import PATIENCE, SOURCES, free_port
from tests.observability.prometheus import Target

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

APP = """
CACHE = [str(number) * 4 for number in range(150_000)]


def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""
EAGER = ("--interval", "1", "--cpu-share", "1", "--estimate-interval", "2")
"""The exporter's budget, which lets it look every second and estimate at once."""


@dataclass(frozen=True, slots=True)
class Plain:
    """A gunicorn of four workers, each with a cache of its own, and the address of the exporter that looks at it."""

    exporter: str

    @property
    def target(self) -> Target:
        return Target(self.exporter, {"namespace": "shop", "job": "legacy", "pod": "legacy-0"})


@contextlib.contextmanager
def plain(directory: Path) -> Iterator[Plain]:
    """Start both, and end them; nothing is waited for."""
    directory.mkdir()
    (directory / "plain.py").write_text(APP)
    address = f"127.0.0.1:{free_port()}"
    with contextlib.ExitStack() as running:
        words = ("-w", "4", "-b", f"127.0.0.1:{free_port()}", "plain:app")
        server = running.enter_context(_running("gunicorn", words, directory))
        watch = ("--bind", address, "--pid", str(server.pid), *EAGER)
        running.enter_context(_running("refork.exporter", watch, directory))
        yield Plain(address)


@contextlib.contextmanager
def _running(module: str, words: Sequence[str], directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    with (directory / f"{module}.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *words],
            cwd=directory,
            env={**os.environ, "PYTHONPATH": SOURCES},
            stdout=log,
            stderr=log,
        )
        try:
            yield process
        finally:
            process.terminate()
            process.wait(PATIENCE)
