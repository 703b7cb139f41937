"""The operator and real refork servers, on loopback addresses of their own, over TCP with a token."""

from __future__ import annotations

import base64
import http.client
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.server import free_port
from tests.operator.conftest import ROOT, Box, until
from tests.operator.test_process import MIB, now

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TOKEN = "t" * 40
APP = '''
CACHE = []


def application(environ, start_response):
    """Each worker fills its own cache, as lazily loading applications do."""
    if environ["PATH_INFO"] == "/grow" and len(CACHE) < 1:
        CACHE.append(bytes(bytearray(range(256)) * (30 << 12)))
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(len(CACHE)).encode()]
'''


@dataclass
class Real:
    """One server: where it serves, where it is commanded, and its process."""

    address: str
    http: int
    control: int
    process: subprocess.Popen[bytes]

    def get(self, path: str, *, port: int, token: str = "") -> Any:
        connection = http.client.HTTPConnection(self.address, port, timeout=5)
        connection.request("GET", path, headers={"Authorization": f"Bearer {token}"} if token else {})
        return connection.getresponse().read()

    @property
    def status(self) -> Any:
        try:
            return json.loads(self.get("/v1/status", port=self.control, token=TOKEN))
        except OSError:
            return {}


def boot(directory: Path, address: str, *, http_port: int, control_port: int) -> Real:
    tokens = directory / "tokens"
    tokens.write_text(f"{TOKEN}\n")
    tokens.chmod(0o600)
    (directory / "real_app.py").write_text(APP)
    words = [
        "real_app:application", "-w", "3", "-k", "sync", "-b", f"{address}:{http_port}", "--control-bind", "none",
        "--control-tcp", f"{address}:{control_port}", "--control-plaintext", "--control-token-file", str(tokens),
    ]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "refork", *words],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'server'}{os.pathsep}{directory}"},
        stdout=subprocess.DEVNULL,
        stderr=(directory / f"{address}.log").open("wb"),
    )
    return Real(address, http_port, control_port, process)


@pytest.fixture
def servers(box: Box) -> Iterator[list[Real]]:
    """Two servers, shown to the cluster as pods of one Deployment."""
    real = [boot(box.directory, f"127.3.0.{n}", http_port=free_port(), control_port=free_port()) for n in (1, 2)]
    try:
        show(box, real)
        yield real
    finally:
        for server in real:
            server.process.terminate()
        for server in real:
            server.process.wait(30)


def show(box: Box, real: list[Real]) -> None:
    """Make pods of servers, and wait until they serve."""
    box.deployment("web", replicas=0)
    box.api.create(
        "secrets", {"metadata": {"name": "control"}, "data": {"token": base64.b64encode(TOKEN.encode()).decode()}}
    )
    for number, server in enumerate(real):
        box.pods.port = server.control
        box.pod(f"web-7d9f-{number}", kind="Deployment")
        status = box.api.get("pods", f"web-7d9f-{number}")["status"] | {"podIP": server.address}
        box.api.patch("pods", f"web-7d9f-{number}", {"status": status}, status=True)
    for server in real:
        log = box.directory / f"{server.address}.log"
        try:
            until(lambda server=server: server.process.poll() is None and server.status.get("ready") == 3)
        except AssertionError:
            pytest.fail(f"{server.address} does not serve:\n{log.read_text()}")


def grow(server: Real) -> None:
    """Ask until each worker has filled its cache."""

    def grown() -> bool:
        for _ in range(9):
            server.get("/grow", port=server.http)
        return bool(server.status["gain"]["predicted"] > 40 * MIB)

    until(grown, what="memory gained by the workers", seconds=60)


def test_real_servers_are_reforked_one_after_the_other(box: Box, servers: list[Real]) -> None:
    """Memory that real workers gained is won back, and the outcome says how much."""
    for server in servers:
        grow(server)
    box.policy(
        control={"port": "refork-control", "tokenSecretRef": {"name": "control"}},
        triggers=[{"metric": "PredictedGain", "threshold": "40Mi", "sustainedFor": "1s"}],
        minGain="8Mi",
    )
    box.operator()
    until(lambda: all(server.status["generation"] >= 1 for server in servers), seconds=60, what="both reforked")
    until(lambda: box.status().get("reforks", {}).get("succeeded") == 2, seconds=60)
    assert box.outcome("pods", "web-7d9f-0").startswith("Succeeded: generation 1, won ")
    for server in servers:
        assert server.status["last_rollout"]["outcome"] == "succeeded"


def test_a_real_server_is_reforked_on_request(box: Box, servers: list[Real]) -> None:
    """With nothing but annotations: on the pod, where to find the token; on the Deployment, the request."""
    for number in range(2):
        box.api.annotate("pods", f"web-7d9f-{number}", "control", key="refork.dev/token-secret")
    box.operator()
    until(lambda: box.api.count(verb="watch", resource="deployments", status=200))
    box.api.annotate("deployments", "web", now())
    until(lambda: box.outcome("deployments", "web") == "Succeeded: 2 of 2 pods", seconds=60)
    assert [server.status["generation"] for server in servers] == [1, 1]
    operation = servers[0].status["last_rollout"]["id"]
    asked = json.loads(servers[0].get(f"/v1/operations/{operation}", port=servers[0].control, token=TOKEN))
    assert asked["request_id"]
    assert "requestedAt" in asked["asked"]
