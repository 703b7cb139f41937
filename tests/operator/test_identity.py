"""The operator's own ServiceAccount, shown over TLS to a real server that verifies it: no secret is shared."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
import trustme

from tests.integration.server import free_port
from tests.operator.conftest import ROOT, Box, until
from tests.operator.test_process import now, watching
from tests.unit.test_service_accounts import ISSUER, RSA_KEY, SUBJECT, published, signed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ADDRESS, SERVER_NAME = "127.3.0.3", "web.example.org"
APP = """
def application(environ, start_response):
    start_response("200 OK", [])
    return [b""]
"""
POD = "web-7d9f-0"


class Served:
    """A pod whose server has a certificate and the keys of the cluster, and knows no token of its own."""

    def __init__(self, box: Box) -> None:
        self.box = box
        self.authority = trustme.CA()
        self.token_file = box.directory / "token"
        self._log = box.directory / "server.log"
        box.pods.port = free_port()
        words = [
            "app:application", "-w", "1", "-b", f"{ADDRESS}:{free_port()}", "--control-bind", "none",
            "--control-tcp", f"{ADDRESS}:{box.pods.port}", "--control-service-accounts", SUBJECT,
            "--control-jwks", str(self._write("jwks", published(one=RSA_KEY))), "--control-issuer", ISSUER,
            *self._certificate(),
        ]  # fmt: skip
        self._write("app.py", APP.encode())
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "refork", *words],
                cwd=box.directory,
                env={**os.environ, "PYTHONPATH": f"{ROOT / 'server'}{os.pathsep}{box.directory}"},
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
        until(lambda: "tls=on" in self.said, what="a control endpoint")
        self._show()

    def _write(self, name: str, content: bytes) -> Path:
        path = self.box.directory / name
        path.write_bytes(content)
        path.chmod(0o600)
        return path

    def _certificate(self) -> list[str]:
        issued = self.authority.issue_cert(SERVER_NAME)
        chain = self._write("tls.crt", b"".join(pem.bytes() for pem in issued.cert_chain_pems))
        key = self._write("tls.key", issued.private_key_pem.bytes())
        return ["--control-certfile", str(chain), "--control-keyfile", str(key)]

    def _show(self) -> None:
        """Make it a pod of the cluster, with a policy that says how to reach it."""
        self.box.pod(POD)
        status = self.box.api.get("pods", POD)["status"] | {"podIP": ADDRESS}
        self.box.api.patch("pods", POD, {"status": status}, status=True)
        self.trust(self.authority)
        control = {"scheme": "HTTPS", "serverName": SERVER_NAME, "caSecretRef": {"name": "ca"}}
        self.box.policy(mode="Observe", control=control)

    def trust(self, authority: trustme.CA) -> None:
        """Put an authority into the Secret that the policy names."""
        data = {"ca.crt": base64.b64encode(authority.cert_pem.bytes()).decode()}
        if any(item["metadata"]["name"] == "ca" for item in self.box.api.list("secrets")):
            self.box.api.patch("secrets", "ca", {"data": data})
        else:
            self.box.api.create("secrets", {"metadata": {"name": "ca"}, "data": data})

    def identify(self, token: str) -> None:
        """Mount a token for the operator, as the kubelet does: in the place of the last, at once."""
        self._write("token.new", token.encode()).rename(self.token_file)

    @property
    def said(self) -> str:
        return self._log.read_text()


@pytest.fixture
def served(box: Box) -> Iterator[Served]:
    """A pod that believes the operator's ServiceAccount, over TLS."""
    made = Served(box)
    try:
        yield made
    finally:
        made.process.terminate()
        made.process.wait(30)


def test_the_operators_identity_opens_pods_over_tls(box: Box, served: Served) -> None:
    """The server names who commanded it, and the operator has needed no secret."""
    served.identify(signed())
    box.operator("--token-file", str(served.token_file))
    watching(box, "pods")
    box.api.annotate("pods", POD, value := now())
    until(lambda: box.annotations("pods", POD).get("refork.dev/handledAt") == value, seconds=60, what="an answer")
    assert box.outcome("pods", POD).startswith("Succeeded: generation 1")
    account = SUBJECT.removeprefix("system:serviceaccount:")
    assert f"serviceaccount={account} pod=operator-0" in served.said


def test_a_renewed_token_is_shown_at_once(box: Box, served: Served) -> None:
    """What has expired opens nothing, and the policy says so until the kubelet has written a new one."""
    served.identify(signed(exp=int(time.time()) - 60))
    box.operator("--token-file", str(served.token_file))
    until(lambda: box.condition("Degraded").get("reason") == "Unauthorized", what="a pod that is not opened")
    assert "it has expired" in box.status()["details"][0]["message"]
    served.identify(signed())
    until(lambda: box.condition("Degraded").get("status") == "False", what="a pod that is opened")
    assert box.status()["pods"]["sampled"] == 1


def test_nothing_is_shown_to_a_server_that_another_authority_vouches_for(box: Box, served: Served) -> None:
    """The handshake fails before the token is sent."""
    served.trust(trustme.CA())
    served.identify(signed())
    box.operator("--token-file", str(served.token_file))
    until(lambda: box.condition("Degraded").get("status") == "True", what="a pod that is not believed")
    assert "certificate verify failed" in box.status()["details"][0]["message"]
    assert box.status()["pods"]["sampled"] == 0
