"""As the first process of a container: what the kernel then leaves to refork and to the operator.

Process 1 has no default action for a signal. One that does not handle SIGTERM yet, or forgets to, is killed when the
grace period is over; a pod that is deleted while it starts would take as long as that. What a running server does as
process 1 is in tests/integration/test_serving.py, and in test_image.py.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.image.podman import ROOT
from tests.integration.server import children, until
from tests.operator.conftest import Box

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ENTER = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root makes pid namespaces everywhere: run this test as root"),
    pytest.mark.skipif(shutil.which("unshare") is None, reason="there is no unshare(1): apt install util-linux"),
]


class First:
    """A process that is the first of its namespace."""

    def __init__(self, entered: subprocess.Popen[bytes]) -> None:
        self._entered = entered
        (self.pid,) = until(lambda: children(entered.pid), what="the namespace")

    def end(self) -> int:
        """Send SIGTERM and return the exit status."""
        os.kill(self.pid, signal.SIGTERM)
        return self._entered.wait(20)


@contextmanager
def first(module: str, *options: str, path: str = "") -> Iterator[First]:
    """Run a module as the first process; whatever it does, it is gone afterwards."""
    paths = os.pathsep.join([path, *(str(ROOT / name) for name in ("server", "operator"))])
    command = [*ENTER, sys.executable, "-m", module, *options]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths}) as entered:
        try:
            yield First(entered)
        finally:
            entered.kill()


@pytest.mark.parametrize(("module", "needed"), [("refork", "gunicorn"), ("refork_operator", "aiohttp")])
def test_it_ends_even_while_it_loads(module: str, needed: str, tmp_path: Path) -> None:
    """What it imports takes a second, and a signal in that second is not lost."""
    loading = tmp_path / "loading"
    (tmp_path / f"{needed}.py").write_text(f"import signal\nopen({str(loading)!r}, 'w')\nsignal.pause()\n")
    with first(module, path=str(tmp_path)) as process:
        until(loading.exists, what=f"{module} to import {needed}")
        assert process.end() == 0


def test_the_operator_gives_the_lease_back_and_ends(tmp_path: Path) -> None:
    """Nobody has to wait for the Lease to run out."""
    box = Box(tmp_path)
    options = ("--kubeconfig", str(box.kubeconfig), "--listen", "127.0.0.1:0", "--lease-namespace", "refork")
    try:
        with first("refork_operator", *options) as process:
            until(lambda: box.api.count(verb="watch", resource="pods", status=200), what="the operator to watch")
            assert process.end() == 0
        assert not box.api.get("leases", "refork-operator", "refork")["spec"].get("holderIdentity")
    finally:
        box.close()
