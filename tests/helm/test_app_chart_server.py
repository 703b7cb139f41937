"""The real server takes what the chart renders: its options, its files, its probes, its tokens, its end."""

from __future__ import annotations

import base64
import http.client
import re
import signal
import socket
import ssl
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trustme

from tests.helm.app_chart import ACCOUNT, EVERYTHING, TLS, VARIANTS, WSGI, container_of, pod_of, rendered
from tests.integration.conftest import new_server
from tests.integration.server import ASGI, SOURCES, Server, free_port
from tests.integration.server import WSGI as WSGI_APP
from tests.unit.test_service_accounts import ISSUER, RSA_KEY, published, signed

if TYPE_CHECKING:
    from tests.helm.harness import Object, Release

__all__ = ["new_server"]

IDENTITY = "/var/run/secrets/kubernetes.io/serviceaccount"
TOKEN_OF_THE_POD = signed()
SERVED = ("sync", "asgi", "uvicorn", "configured", "token", "service account", "published keys", "everything")
"""Those of the sets of values that make different command lines."""

# Where the kubelet puts the pod's own token is no option of the server's: here it is told before the server is.
ELSEWHERE = """
import sys
from refork import cluster
place = sys.argv.pop(1)
cluster.own_issuer.__defaults__ = (place,)
cluster.keys_of.__kwdefaults__ = {"pod": place}
from refork.cli import main
main()
"""


class Container:
    """The application's container as it would be started, with its files in a directory and its ports on loopback.

    Attributes:
        command: what is executed.
        ports: by their names, where they are here.
    """

    def __init__(self, release: Release, directory: Path) -> None:
        self._release = release
        self._directory = directory
        self._spec = container_of(release)
        self.secrets = secrets(release)
        self.environment = {each["name"]: each["value"] for each in self._spec.get("env", [])}
        self.ports = {port["name"]: free_port() for port in self._spec["ports"]}
        self._numbers = {port["containerPort"]: self.ports[port["name"]] for port in self._spec["ports"]}
        for mount in self._spec["volumeMounts"]:
            self._fill(mount)
        self.words = [self._here(word) for word in self._spec["args"]]
        self.command = [sys.executable, "-c", ELSEWHERE, self.path(IDENTITY)]

    def path(self, place: str) -> str:
        """Return where a path of the container is here."""
        return f"{self._directory}{place}"

    def _here(self, word: str) -> str:
        """Adapt addresses and paths, and nothing else."""
        word = re.sub(r"=(?:[0-9.]*|\[::\]):(\d+)$", lambda found: f"=127.0.0.1:{self._numbers[int(found[1])]}", word)
        return re.sub(r"=(/etc/refork[^,]*)$", lambda found: f"={self.path(found[1])}", word)

    def _fill(self, mount: Object) -> None:
        (volume,) = [each for each in pod_of(self._release)["spec"]["volumes"] if each["name"] == mount["name"]]
        place = Path(self.path(mount["mountPath"]))
        place.mkdir(parents=True)
        for name, content in self._files(volume):
            (place / name).write_bytes(content)
            (place / name).chmod(0o440)

    def _files(self, volume: Object) -> list[tuple[str, bytes]]:
        match volume:
            case {"configMap": {"name": name}}:
                data = self._release.one("ConfigMap", name)["data"]
                return [(key, text.encode()) for key, text in data.items()]
            case {"secret": {"secretName": name, "items": items}}:
                return [(item["path"], self.secrets[name][item["key"]]) for item in items]
            case {"projected": {"sources": [{"serviceAccountToken": token}, _]}}:
                return [(token["path"], TOKEN_OF_THE_POD.encode())]
        return []

    def check(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run the container's command to its end, with some words more."""
        return subprocess.run(
            [*self.command, *words, *self.words],
            cwd=self._directory,
            env={
                "PATH": "/usr/bin:/bin",
                "PYTHONPATH": SOURCES,
                "KUBERNETES_SERVICE_HOST": "192.0.2.1",
                **self.environment,
            },
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def probe(self, name: str) -> int:
        """Ask what a probe asks; return the status, 0 while nobody answers."""
        asked = self._spec[f"{name}Probe"]["httpGet"]
        connection = http.client.HTTPConnection("127.0.0.1", self.ports[asked["port"]], timeout=10)
        with closing(connection):
            try:
                connection.request("GET", asked["path"])
                return connection.getresponse().status
            except ConnectionError:
                return 0

    def command_status(self, token: str, *, authority: str = "", server_name: str = "") -> int:
        """Ask at the control port as the operator does; return the status of the answer."""
        sock: socket.socket = socket.create_connection(("127.0.0.1", self.ports["refork-control"]), timeout=10)
        if authority:
            sock = ssl.create_default_context(cadata=authority).wrap_socket(sock, server_hostname=server_name)
        connection = http.client.HTTPConnection("127.0.0.1")
        connection.sock = sock
        with closing(connection):
            connection.request("GET", "/v1/status", headers={"Authorization": f"Bearer {token}"})
            return connection.getresponse().status


def secrets(release: Release) -> dict[str, dict[str, bytes]]:
    """Return what is in the Secrets: those of the release, and those that somebody else would have made."""
    authority = trustme.CA()
    certificate = authority.issue_cert("shop")
    chain = b"".join(part.bytes() for part in certificate.cert_chain_pems)
    found = {
        "shop-tls": {"tls.crt": chain, "tls.key": certificate.private_key_pem.bytes()},
        "shop-ca": {"ca.crt": authority.cert_pem.bytes()},
        "door": {"shop": 64 * b"d"},
    }
    for secret in release.of("Secret"):
        found[secret["metadata"]["name"]] = {key: base64.b64decode(text) for key, text in secret["data"].items()}
    return found


def container(values: Object, tmp_path: Path, *, app: str = WSGI_APP) -> Container:
    """Lay out the application's container in a directory of its own."""
    directory = tmp_path / "container"
    directory.mkdir()
    (directory / "app.py").write_text(app)
    return Container(rendered(values), directory)


def boot(values: Object, tmp_path: Path, new_server: list[Server], *, app: str = WSGI_APP) -> tuple[Container, Server]:
    """Start the server as the container would, and wait until its startup probe succeeds."""
    laid_out = container(values, tmp_path, app=app)
    environment = {"KUBERNETES_SERVICE_HOST": "192.0.2.1", **laid_out.environment}
    server = Server(tmp_path / "container", port=laid_out.ports["http"], environment=environment)
    new_server.append(server)
    server.start(*laid_out.words, command=laid_out.command, bind=False)
    server.wait_steady()
    assert laid_out.probe("startup") == 200
    return laid_out, server


def settings(text: str) -> dict[str, str]:
    """Read what --print-config says."""
    return dict(re.findall(r"^(\w+) += (.*)$", text, re.MULTILINE))


@pytest.mark.parametrize("name", SERVED)
def test_the_server_would_serve_with_every_set_of_values(name: str, tmp_path: Path) -> None:
    """`refork --check-config` is content with each command line that the chart renders, and the files it names."""
    app = ASGI if name in {"asgi", "uvicorn"} else WSGI_APP
    done = container(VARIANTS[name], tmp_path, app=app).check("--check-config")
    assert (done.returncode, done.stderr) == (0, "")


def test_the_server_does_what_the_values_say(tmp_path: Path) -> None:
    """Every value that is meant for the server is in its configuration."""
    laid_out = container(EVERYTHING, tmp_path)
    found = settings(laid_out.check("--print-config").stdout)
    wanted = {
        "bind": f"['127.0.0.1:{laid_out.ports['http']}']",
        "workers": "3",
        "worker_class": "gthread",
        "threads": "2",
        "graceful_timeout": "90",
        "spawn_timeout": "20.0",
        "max_requests": "5000",
        "refork_after": "()",
        "access_log_format": '%(h)s "%(r)s"',
        "metrics_bind": f"127.0.0.1:{laid_out.ports['metrics']}",
        "control_tcp": f"127.0.0.1:{laid_out.ports['refork-control']}",
        "control_token_file": laid_out.path("/etc/refork-control/token"),
        "control_certfile": laid_out.path("/etc/refork-tls/tls.crt"),
        "control_plaintext": "False",
    }
    assert {name: found[name] for name in wanted} == wanted


def test_null_leaves_it_to_the_configuration_file(tmp_path: Path) -> None:
    """What is null in the values is not on the command line, which would win over the file."""
    found = settings(container(VARIANTS["configured"], tmp_path).check("--print-config").stdout)
    assert (found["workers"], found["worker_class"], found["threads"]) == ("7", "gthread", "3")


@pytest.mark.parametrize("name", ["gthread", "asgi", "uvicorn"])
def test_a_server_of_each_kind_gets_ready(name: str, tmp_path: Path, new_server: list[Server]) -> None:
    """The server answers its probes and requests of the application."""
    laid_out, server = boot(VARIANTS[name], tmp_path, new_server, app=WSGI_APP if name == "gthread" else ASGI)
    assert (laid_out.probe("readiness"), laid_out.probe("liveness")) == (200, 200)
    assert server.get("/").body == b"hello"
    assert server.status().wanted == 4


def test_the_token_of_the_chart_opens_the_door(tmp_path: Path, new_server: list[Server]) -> None:
    """What the policy tells the operator, over TLS too, is what the server takes; another token is not."""
    values = {**WSGI, "control": {"auth": "Token", "tls": TLS}, "policy": {"enabled": True}, "workers": 1}
    laid_out, _ = boot(values, tmp_path, new_server)
    control = rendered(values).one("ReforkPolicy")["spec"]["control"]
    token, authority = (
        laid_out.secrets[control[ref]["name"]][control[ref]["key"]].decode()
        for ref in ("tokenSecretRef", "caSecretRef")
    )

    def ask(shown: str) -> int:
        return laid_out.command_status(shown, authority=authority, server_name=control["serverName"])

    assert (ask(token), ask(48 * "s")) == (200, 401)


def test_the_operators_identity_opens_the_door(tmp_path: Path, new_server: list[Server]) -> None:
    """A token that the cluster made for the operator's ServiceAccount is believed; that of another one is not."""
    keys = tmp_path / "keys"
    keys.write_bytes(published(one=RSA_KEY))
    control = {**ACCOUNT, "keys": {"jwks": str(keys), "issuer": ISSUER}}
    laid_out, _ = boot({**WSGI, "control": control, "workers": 1}, tmp_path, new_server)

    def ask(subject: str) -> int:
        return laid_out.command_status(signed(sub=subject))

    assert ask("system:serviceaccount:refork-system:refork-operator") == 200
    assert ask("system:serviceaccount:market:shop") == 403


def test_a_pod_ends_within_its_grace_period(tmp_path: Path, new_server: list[Server]) -> None:
    """Even when a request never ends, the server has ended before the kubelet would kill it."""
    values = {**WSGI, "workers": 1, "gracefulTimeout": 1, "preStopSeconds": 1, "extraArgs": ["--drain-seconds=1"]}
    _, server = boot(values, tmp_path, new_server)
    connection = server.connect()
    with closing(connection):
        connection.request("GET", "/gate/endless")
        server.reached("endless")
        server.send(signal.SIGTERM)
        grace = pod_of(rendered(values))["spec"]["terminationGracePeriodSeconds"]
        assert server.wait(seconds=grace - values["preStopSeconds"]) == 0


def test_helm_test_sees_whether_the_application_answers(tmp_path: Path, new_server: list[Server]) -> None:
    """The command of the test pod succeeds with a server that answers, and fails with none and with a broken one."""
    values = {**WSGI, "workers": 1}
    laid_out, server = boot(values, tmp_path, new_server)
    server.traces = True
    (asking,) = rendered(values).one("Pod")["spec"]["containers"]
    script = asking["args"][0]

    def ask(port: int, path: str = "/") -> int:
        adapted = script.replace('"shop", 80', f'"127.0.0.1", {port}').replace('"GET", "/"', f'"GET", "{path}"')
        assert adapted != script
        command = [sys.executable, *asking["command"][1:], adapted]
        return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode

    assert asking["command"] == ["python3", "-c"]
    assert ask(laid_out.ports["http"]) == 0
    assert ask(laid_out.ports["http"], "/error") != 0
    assert ask(free_port()) != 0
