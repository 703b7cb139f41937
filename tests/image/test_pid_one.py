"""The operator as the first process of a container; the server's part is in tests/integration/test_serving.py.

The kernel gives process 1 no default action for a signal: one that forgets to handle SIGTERM is killed after the grace
period instead, and the Lease is held for all that time.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.image.podman import ROOT
from tests.integration.server import children, until
from tests.operator.conftest import Box

if TYPE_CHECKING:
    from pathlib import Path

ENTER = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes pid namespaces everywhere")
@pytest.mark.skipif(shutil.which("unshare") is None, reason="there is no unshare(1)")
def test_the_operator_as_the_first_process_gives_the_lease_back_and_ends(tmp_path: Path) -> None:
    """Status 0 after SIGTERM, and nobody has to wait for the Lease to run out."""
    box = Box(tmp_path)
    options = ("--kubeconfig", str(box.kubeconfig), "--listen", "127.0.0.1:0", "--lease-namespace", "refork")
    paths = os.pathsep.join(str(ROOT / name) for name in ("server", "operator"))
    with subprocess.Popen(
        [*ENTER, sys.executable, "-m", "refork_operator", *options], env={**os.environ, "PYTHONPATH": paths}
    ) as entered:
        try:
            (first,) = until(lambda: children(entered.pid), what="the namespace")
            until(lambda: box.api.count(verb="watch", resource="pods", status=200), what="the operator to watch")
            os.kill(first, signal.SIGTERM)
            assert entered.wait(20) == 0
            assert not box.api.get("leases", "refork-operator", "refork")["spec"].get("holderIdentity")
        finally:
            entered.kill()
            box.close()
