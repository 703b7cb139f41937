"""The control endpoint over TCP: who gets in, who does not, and that it stays closed when in doubt."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trustme
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from refork import endpoint
from refork.endpoint import Lines
from refork.jwks import LARGEST_ANSWER
from tests.integration.steered import PATIENCE, Running, ask, dial, environment, launch
from tests.unit.test_service_accounts import EC_KEY, ISSUER, RSA_KEY, STRANGE_KEY, SUBJECT, published, signed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

CURRENT, PREVIOUS, OTHER = "c" * 40, "p" * 40, "o" * 40
LOOPBACK = "127.0.0.1:0"


def bearer(token: str) -> dict[str, str]:
    """Show a token."""
    return {"Authorization": f"Bearer {token}"}


def write_tokens(path: Path, *tokens: str) -> Path:
    """Replace a token file as one should: at once."""
    new = path.with_suffix(".new")
    new.write_text("".join(f"{token}\n" for token in tokens))
    new.chmod(0o600)
    new.rename(path)
    return path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One server with a token file, without TLS on loopback, for all tests that do it no harm."""
    directory = tmp_path_factory.mktemp("server")
    tokens = write_tokens(directory / "tokens", CURRENT, PREVIOUS)
    running = launch(directory / "log", "--tcp", LOOPBACK, "--token-file", str(tokens))
    yield running
    assert running.stop() == 0
    assert "Traceback" not in running.log_text()


def is_well(server: Running) -> bool:
    """Tell whether both doors still open to those who may."""
    return (
        ask(server.tcp, "GET", "/v1/status", headers=bearer(CURRENT))[0] == 200
        and ask(server.control, "GET", "/v1/status")[0] == 200
    )


# --- tokens -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", [CURRENT, PREVIOUS])
def test_a_token_of_the_file_may_command(server: Running, token: str) -> None:
    """The current one and the previous one; the log names it without giving it away."""
    status, accepted, _ = ask(server.tcp, "POST", "/v1/refork", body=b'{"reason": "peak"}', headers=bearer(token))
    assert status == 202
    log = server.log_text()
    who = r"address=127\.0\.0\.1 token=[0-9a-f]{12}"
    assert re.search(rf'command=refork why="peak" {who} answer=202 operation={accepted["operation"]}\n', log)
    assert token not in log


@pytest.mark.parametrize(
    "shown",
    [
        {},
        bearer(OTHER),
        bearer(CURRENT[:-1]),
        bearer(f"{CURRENT}{PREVIOUS}"),
        bearer(f"{CURRENT} {PREVIOUS}"),
        bearer(""),
        {"Authorization": CURRENT},
        {"Authorization": f"Basic {CURRENT}"},
        {"Authorization": f"Bearer\t{CURRENT}"},
        {"Cookie": f"Authorization=Bearer {CURRENT}"},
        {"X-Forwarded-User": "root", "X-Remote-User": "root"},
        {"Proxy-Authorization": f"Bearer {CURRENT}"},
    ],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/status"),
        ("POST", "/v1/refork"),
        ("GET", "/v1/openapi.json"),
        ("GET", "/v1/events"),
        ("GET", "/none"),
    ],
)
def test_whoever_shows_no_token_of_the_file_gets_nothing(
    server: Running, shown: Mapping[str, str], method: str, path: str
) -> None:
    """401 and a sentence, whatever was asked for: not even what there is."""
    status, answer, headers = ask(server.tcp, method, path, headers=shown)
    assert status == 401
    assert answer["error"] in {"a token is needed: Authorization: Bearer TOKEN", "the token is not known"}
    assert headers["WWW-Authenticate"] == "Bearer"


def test_two_tokens_at_once_are_none(server: Running) -> None:
    """A request that two readers could read in two ways is refused."""
    connection = http.client.HTTPConnection(server.tcp, timeout=PATIENCE)
    with closing(connection):
        connection.putrequest("GET", "/v1/status")
        connection.putheader("Authorization", f"Bearer {CURRENT}")
        connection.putheader("Authorization", f"Bearer {OTHER}")
        connection.endheaders()
        assert connection.getresponse().status == 401


@settings(max_examples=150, deadline=None)
@given(shown=st.text(alphabet=st.characters(min_codepoint=0x21, max_codepoint=0xFF, exclude_characters="\x7f\x85\xa0")))
def test_no_other_text_is_a_token(server: Running, shown: str) -> None:
    """Whatever is shown, it is not let in, and the next one who may is."""
    assert ask(server.tcp, "GET", "/v1/status", headers={"Authorization": f"Bearer {shown}"})[0] in {400, 401}


def test_a_refused_request_leaves_a_line_but_cannot_fill_the_log(tmp_path: Path) -> None:
    """Some lines at once, then one a second; what was left out is counted."""
    tokens = write_tokens(tmp_path / "tokens", CURRENT)
    server = launch(tmp_path / "log", "--tcp", LOOPBACK, "--token-file", str(tokens))
    for _ in range(200):
        assert ask(server.tcp, "POST", "/v1/refork\x41", headers=bearer(OTHER))[0] == 401
    assert server.stop() == 0
    lines = [line for line in server.log_text().splitlines() if "answer=401" in line]
    assert 'command=unknown address=127.0.0.1 answer=401 reason="the token is not known" more=0' in lines[0]
    assert 20 <= len(lines) < 100


def test_nothing_is_read_of_what_a_stranger_sends(server: Running) -> None:
    """The answer comes before the body does, however long it says that it will be."""
    host, port = server.tcp.split(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE) as sock:
        sock.sendall(b"POST /v1/refork HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000000\r\n\r\n")
        assert sock.recv(4096).startswith(b"HTTP/1.1 401")
    assert is_well(server)


def test_a_token_does_not_make_a_web_page_welcome(server: Running) -> None:
    """An Origin header is refused, whoever is logged in."""
    assert ask(server.tcp, "POST", "/v1/refork", headers=bearer(CURRENT) | {"Origin": "https://x"})[0] == 403


def test_tokens_are_changed_without_a_restart_and_without_a_gap(tmp_path: Path) -> None:
    """New and old together, then the new one alone: and the old one, replayed, opens nothing any more."""
    tokens = write_tokens(tmp_path / "tokens", PREVIOUS)
    server = launch(tmp_path / "log", "--tcp", LOOPBACK, "--token-file", str(tokens))

    def opens(token: str) -> bool:
        return ask(server.tcp, "GET", "/v1/status", headers=bearer(token))[0] == 200

    assert (opens(PREVIOUS), opens(CURRENT)) == (True, False)
    write_tokens(tokens, CURRENT, PREVIOUS)
    assert (opens(PREVIOUS), opens(CURRENT)) == (True, True)
    write_tokens(tokens, CURRENT)
    assert (opens(PREVIOUS), opens(CURRENT)) == (False, True)
    tokens.write_text("short\n")
    assert not opens(CURRENT)
    tokens.unlink()
    assert not opens(CURRENT)
    assert not opens("")
    write_tokens(tokens, CURRENT)
    assert opens(CURRENT)
    assert server.stop() == 0
    assert server.log_text().count("control token_file: ") == 2


def test_a_token_file_that_others_can_read_is_warned_of(tmp_path: Path) -> None:
    """It works, and the log says what to do."""
    tokens = write_tokens(tmp_path / "tokens", CURRENT)
    tokens.chmod(0o644)
    server = launch(tmp_path / "log", "--tcp", LOOPBACK, "--token-file", str(tokens))
    assert server.stop() == 0
    assert "mode 0644 lets others at it; 0600 would not" in server.log_text()


def test_lines_in_a_log_are_rationed() -> None:
    """Some at once, then one a second, and those in between are counted once."""
    lines = Lines(at_once=3)
    assert [lines.allow(100.0) for _ in range(5)] == [True, True, True, False, False]
    assert (lines.take_missed(), lines.take_missed()) == (2, 0)
    assert [lines.allow(now) for now in (100.5, 101.0, 101.1, 102.1)] == [False, True, False, True]
    assert [lines.allow(1000.0) for _ in range(4)] == [True, True, True, False]


# --- closed when in doubt ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "nothing would tell who asks"),
        (["--token-file", "/nowhere"], "/nowhere cannot be read: No such file"),
        (["--token-file", "{short}"], "token 1 is shorter than 32 characters"),
        (["--token-file", "{empty}"], "has 0 tokens"),
        (["--client-ca", "{ca}"], "client certificates need TLS"),
        (["--token-file", "{good}", "--certfile", "/nowhere"], "/nowhere cannot be used: No such file"),
        (["--token-file", "{good}", "--certfile", "{good}"], "{good} cannot be used"),
        (["--token-file", "{good}", "--certfile", "{cert}"], "{cert} cannot be used"),
        (["--token-file", "{good}", "--keyfile", "{key}"], "set --control-certfile too"),
        (["--certfile", "{cert}", "--keyfile", "{key}", "--client-ca", "{empty}"], "cannot be used"),
        (["--accounts", SUBJECT, "--issuer", ISSUER], "this is no cluster; set --control-jwks"),
        (["--accounts", SUBJECT, "--jwks", "/x"], "set --control-issuer"),
    ],
)
def test_it_does_not_start_without_knowing_who_asks(tmp_path: Path, arguments: list[str], says: str) -> None:
    """A configuration that would let everybody in, or nobody, is one sentence and no server."""
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    files = {name: tmp_path / name for name in ("good", "short", "empty", "ca", "cert", "key")}
    write_tokens(files["good"], CURRENT)
    files["short"].write_text("short\n")
    files["empty"].write_text("")
    authority.cert_pem.write_to_path(str(files["ca"]))
    certificate.cert_chain_pems[0].write_to_path(str(files["cert"]))
    certificate.private_key_pem.write_to_path(str(files["key"]))
    with pytest.raises(AssertionError) as caught:
        launch(tmp_path / "log", "--tcp", LOOPBACK, *(word.format(**files) for word in arguments))
    assert "BindError: " in str(caught.value)
    assert says.format(**files) in str(caught.value)


@pytest.mark.parametrize("bind", ["0.0.0.0:0", ":0", "[::]:0"])
def test_it_is_not_open_to_a_network_without_tls_unless_told_so(tmp_path: Path, bind: str) -> None:
    """A token that others can read on its way is none."""
    tokens = write_tokens(tmp_path / "tokens", CURRENT)
    arguments = ("--tcp", bind, "--token-file", str(tokens))
    with pytest.raises(AssertionError, match="others could read and repeat what passes there"):
        launch(tmp_path / "log", *arguments)
    server = launch(tmp_path / "log", *arguments, "--plaintext")
    port = server.tcp.rpartition(":")[2]
    host = "[::1]" if bind.startswith("[") else "127.0.0.1"
    assert ask(f"{host}:{port}", "GET", "/v1/status", headers=bearer(CURRENT))[0] == 200
    assert server.stop() == 0


# --- service accounts -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server that believes the tokens of a cluster whose keys are in a file."""
    directory = tmp_path_factory.mktemp("cluster")
    keys = directory / "jwks.json"
    keys.write_bytes(published(one=RSA_KEY, two=EC_KEY))
    accounts = ("--accounts", SUBJECT, "--jwks", str(keys), "--issuer", ISSUER)
    running = launch(directory / "log", "--tcp", LOOPBACK, *accounts)
    yield running
    assert running.stop() == 0


def test_a_service_account_may_command_and_is_named_in_the_log(cluster: Running) -> None:
    """Its token is proof enough, and the line says which pod it was."""
    status, accepted, _ = ask(cluster.tcp, "POST", "/v1/rebase", headers=bearer(signed()))
    assert status == 202
    who = "address=127.0.0.1 serviceaccount=refork-system:operator pod=operator-0"
    assert f"command=rebase {who} answer=202 operation={accepted['operation']}" in cluster.log_text()


@pytest.mark.parametrize(
    ("changes", "status", "says"),
    [
        ({"exp": int(time.time()) - 60}, 401, "it has expired"),
        ({"nbf": int(time.time()) + 3600}, 401, "it is not valid yet"),
        ({"aud": ["https://kubernetes.default.svc"]}, 401, "it is for another audience than refork"),
        ({"iss": "https://elsewhere"}, 401, "it is of another issuer"),
        ({"sub": "system:serviceaccount:default:default"}, 403, "may not command this server"),
        ({"key": STRANGE_KEY}, 401, "its signature is wrong"),
        ({"kid": "three"}, 401, "no key of the name in the token"),
    ],
)
def test_a_token_that_is_not_ours_is_refused_with_a_line(
    cluster: Running, changes: dict[str, Any], status: int, says: str
) -> None:
    """The one who asks hears why, and so does the one who reads the log."""
    token = signed(**changes)
    answered, answer, _ = ask(cluster.tcp, "POST", "/v1/refork", headers=bearer(token))
    assert answered == status
    assert says in answer["error"]
    line = f"command=refork address=127.0.0.1 answer={status} reason={json.dumps(answer['error'])}"
    assert line in cluster.log_text()
    assert token not in cluster.log_text()


def test_the_same_command_again_is_not_carried_out_again(cluster: Running) -> None:
    """Whoever records a command and sends it once more gets the old answer, and the server does nothing."""
    headers = bearer(signed())
    body = b'{"request_id": "deploy-7"}'
    first = ask(cluster.tcp, "POST", "/v1/refork", body=body, headers=headers)[1]
    assert ask(cluster.tcp, "POST", "/v1/refork", body=body, headers=headers)[1] == first
    assert ask(cluster.control, "POST", "/v1/refork", body=body)[1] == first
    status, answer, _ = ask(cluster.tcp, "POST", "/v1/rebase", body=body, headers=headers)
    assert (status, answer["error"]) == (409, "the request_id deploy-7 was given to another command before")


class _ApiServer(BaseHTTPRequestHandler):
    """Publishes keys to whoever shows the pod's token."""

    keys = b""
    token = ""
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(f"{self.path} {self.headers['Authorization']}")
        status = 200 if self.headers["Authorization"] == f"Bearer {self.token}" else 403
        self.send_response(302 if self.path == "/elsewhere" else status)
        self.send_header("Location", "/openid/v1/jwks")
        self.send_header("Content-Length", str(len(self.keys)))
        self.end_headers()
        self.wfile.write(self.keys)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name in the base class
        """Say nothing."""


@contextmanager
def api_server(pod: Path) -> Iterator[tuple[type[_ApiServer], int]]:
    """Run an API server, and mount what the kubelet would."""
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(pod / "ca.crt"))
    (pod / "token").write_text(signed(aud=["https://kubernetes.default.svc"]))
    handler = type("Handler", (_ApiServer,), {"token": (pod / "token").read_text(), "asked": []})
    server = HTTPServer(("127.0.0.1", 0), handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield handler, server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def in_cluster(tmp_path: Path, port: int, *arguments: str) -> Running:
    """Start a server as a pod would."""
    prefix = ("env", "KUBERNETES_SERVICE_HOST=127.0.0.1", f"KUBERNETES_SERVICE_PORT={port}")
    accounts = ("--accounts", SUBJECT, "--issuer", ISSUER, "--pod", str(tmp_path))
    return launch(tmp_path / "log", "--tcp", LOOPBACK, *accounts, *arguments, prefix=prefix)


def test_keys_are_fetched_from_the_api_server_with_the_pods_token(tmp_path: Path) -> None:
    """Over TLS that is verified; many tokens are one fetch; and cryptography is not loaded before the first token."""
    with api_server(tmp_path) as (cluster, port):
        cluster.keys = published(one=RSA_KEY)
        server = in_cluster(tmp_path, port)
        assert not cluster.asked
        for _ in range(5):
            assert ask(server.tcp, "GET", "/v1/status", headers=bearer(signed()))[0] == 200
        assert cluster.asked == [f"/openid/v1/jwks Bearer {cluster.token}"]
        assert server.stop() == 0
    assert "modules=cryptography,jwt,uvicorn" in server.log_text()


@pytest.mark.parametrize("fault", ["denied", "untrusted", "redirected", "nonsense", "huge", "gone"])
def test_without_keys_nobody_gets_in_and_the_unix_socket_works(tmp_path: Path, fault: str) -> None:
    """An API server that does not answer, or not as it should, opens nothing: 503."""
    with api_server(tmp_path) as (cluster, port):
        cluster.keys = b"<html>" if fault == "nonsense" else published(one=RSA_KEY)
        if fault == "huge":
            cluster.keys += b" " * LARGEST_ANSWER
        if fault == "denied":
            cluster.token = "another"
        if fault == "untrusted":
            trustme.CA().cert_pem.write_to_path(str(tmp_path / "ca.crt"))
        location = f"https://127.0.0.1:{port}/elsewhere" if fault == "redirected" else ""
        server = in_cluster(tmp_path, 1 if fault == "gone" else port, "--jwks", location)
        status, answer, _ = ask(server.tcp, "GET", "/v1/status", headers=bearer(signed()))
        assert (status, "the token cannot be verified: keys cannot be had" in answer["error"]) == (503, True)
        assert ask(server.control, "GET", "/v1/status")[0] == 200
        assert len(cluster.asked) == (0 if fault in {"untrusted", "gone"} else 1)
        assert server.stop() == 0


def test_nothing_of_cryptography_is_loaded_for_a_token_file(tmp_path: Path) -> None:
    """Who does not use service accounts does not pay for them."""
    tokens = write_tokens(tmp_path / "tokens", CURRENT)
    server = launch(tmp_path / "log", "--tcp", LOOPBACK, "--token-file", str(tokens))
    assert is_well(server)
    assert server.stop() == 0
    assert "modules=uvicorn\n" in server.log_text()


# --- TLS --------------------------------------------------------------------------------------------------------------


class Pki:
    """An authority, a server's certificate, and what clients trust and show."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = trustme.CA()
        self.ca = directory / "ca.pem"
        self.cert, self.key = directory / "cert.pem", directory / "key.pem"
        self.authority.cert_pem.write_to_path(str(self.ca))
        self.issue()

    def issue(self) -> str:
        """Write another certificate for the server; return its serial number."""
        issued = self.authority.issue_cert("localhost", "127.0.0.1")
        issued.private_key_pem.write_to_path(str(self.key))
        issued.cert_chain_pems[0].write_to_path(str(self.cert))
        return self.serial_of(ssl.PEM_cert_to_DER_cert(self.cert.read_text()))

    @staticmethod
    def serial_of(der: bytes | None) -> str:
        """Tell two certificates from each other."""
        assert der is not None
        return der.hex()

    def context(self, *, shows: trustme.CA | None = None, name: str = "operator") -> ssl.SSLContext:
        """What a client speaks TLS with."""
        context = ssl.create_default_context(cafile=str(self.ca))
        if shows is not None:
            shows.issue_cert(f"{name}@example.org", common_name=name).configure_cert(context)
        return context

    def launch(self, *arguments: str) -> Running:
        """Start a server that speaks TLS."""
        pair = ("--certfile", str(self.cert), "--keyfile", str(self.key))
        return launch(self.directory / "log", "--tcp", LOOPBACK, *pair, *arguments)


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path)


def ask_tls(
    server: Running, context: ssl.SSLContext, *, headers: Mapping[str, str] | None = None, path: str = "/v1/status"
) -> int:
    """Ask over TLS: the status of the answer."""
    host, port = server.tcp.split(":")
    connection = http.client.HTTPSConnection(host, int(port), timeout=PATIENCE, context=context)
    with closing(connection):
        connection.request("GET", path, headers=dict(headers or {}))
        response = connection.getresponse()
        response.read()
        return response.status


def shown_by(server: Running, pki: Pki) -> str:
    """Tell which certificate a server shows."""
    host, port = server.tcp.split(":")
    with (
        socket.create_connection((host, int(port)), timeout=PATIENCE) as sock,
        pki.context().wrap_socket(sock, server_hostname="localhost") as secure,
    ):
        return pki.serial_of(secure.getpeercert(binary_form=True))


def test_over_tls_a_token_is_needed_all_the_same(pki: Pki) -> None:
    """Encryption says who the server is, and nothing about the client."""
    server = pki.launch("--token-file", str(write_tokens(pki.directory / "tokens", CURRENT)))
    assert ask_tls(server, pki.context(), headers=bearer(CURRENT)) == 200
    assert ask_tls(server, pki.context()) == 401
    assert ask_tls(server, pki.context(shows=pki.authority)) == 401
    with pytest.raises(ssl.SSLCertVerificationError):
        ask_tls(server, ssl.create_default_context(), headers=bearer(CURRENT))
    assert server.stop() == 0
    assert "tls=on" in server.log_text()


def test_what_is_no_tls_gets_no_answer(pki: Pki) -> None:
    """HTTP as it is, garbage, half a handshake, an old version of TLS: and the next client is served."""
    server = pki.launch("--token-file", str(write_tokens(pki.directory / "tokens", CURRENT)))
    host, port = server.tcp.split(":")
    request = f"GET /v1/status HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {CURRENT}\r\n\r\n".encode()
    for garbage in (request, b"\0" * 100_000, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", os.urandom(5000)):
        with socket.create_connection((host, int(port)), timeout=PATIENCE) as sock:
            try:
                sock.sendall(garbage)
                sock.shutdown(socket.SHUT_WR)
                answer = b"".join(iter(lambda: sock.recv(4096), b""))
            except (ConnectionResetError, BrokenPipeError):
                answer = b""
        assert b"HTTP" not in answer
    old = pki.context()
    old.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionError)):
        ask_tls(server, old, headers=bearer(CURRENT))
    assert ask_tls(server, pki.context(), headers=bearer(CURRENT)) == 200
    assert server.stop() == 0
    assert "Traceback" not in server.log_text()
    assert "tls address=127.0.0.1 refused=" in server.log_text()


def test_a_renewed_certificate_is_shown_to_the_next_client(pki: Pki) -> None:
    """Without a restart; what is no certificate, or half of a pair, leaves the last one in use."""
    server = pki.launch("--token-file", str(write_tokens(pki.directory / "tokens", CURRENT)))
    first = shown_by(server, pki)
    second = pki.issue()
    assert first != second
    assert shown_by(server, pki) == second
    key = pki.key.read_bytes()
    pki.cert.write_text("half a certif")
    assert shown_by(server, pki) == second
    pki.issue()
    pki.key.write_bytes(key)
    assert shown_by(server, pki) == second
    third = pki.issue()
    assert shown_by(server, pki) == third
    assert server.stop() == 0
    assert server.log_text().count("control tls=kept") == 2


def test_with_mutual_tls_the_certificate_says_who_asks(pki: Pki) -> None:
    """No certificate, or one of another authority, is the end of the conversation; the right one is in the log."""
    server = pki.launch("--client-ca", str(pki.ca))
    for context in (pki.context(), pki.context(shows=trustme.CA())):
        with pytest.raises((ssl.SSLError, ConnectionError, http.client.BadStatusLine)):
            ask_tls(server, context)
    assert ask_tls(server, pki.context(shows=pki.authority), path="/v1/operations/none") == 404
    host, port = server.tcp.split(":")
    connection = http.client.HTTPSConnection(host, int(port), context=pki.context(shows=pki.authority))
    with closing(connection):
        connection.request("POST", "/v1/refork")
        assert connection.getresponse().status == 202
    assert server.stop() == 0
    assert 'certificate="email:operator@example.org' in server.log_text()
    assert "PEER_DID_NOT_RETURN_A_CERTIFICATE" in server.log_text()


def test_a_stream_over_tls_outlives_the_deadline_of_a_request(pki: Pki) -> None:
    """And hears what happens, like one at any other door."""
    server = pki.launch("--client-ca", str(pki.ca), "--deadline", "2.0")
    host, port = server.tcp.split(":")
    raw = socket.create_connection((host, int(port)), timeout=PATIENCE)
    with (
        dial(server.control) as silent,
        pki.context(shows=pki.authority).wrap_socket(raw, server_hostname="localhost") as sock,
    ):
        sock.sendall(b"GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n")
        stream = sock.makefile("rb")
        assert b"200 OK" in stream.readline()
        assert silent.recv(1) == b""  # sat down at the same time, and was sent away
        assert ask(server.control, "POST", "/v1/workers", body=b'{"count": 1}')[0] == 202
        assert any(line == b"event: worker\n" for line in stream)
    assert server.stop() == 0


def test_with_mutual_tls_and_tokens_a_client_needs_both(pki: Pki) -> None:
    """Neither a stolen token nor a stolen certificate is enough."""
    tokens = str(write_tokens(pki.directory / "tokens", CURRENT))
    server = pki.launch("--client-ca", str(pki.ca), "--token-file", tokens)
    assert ask_tls(server, pki.context(shows=pki.authority), headers=bearer(CURRENT)) == 200
    assert ask_tls(server, pki.context(shows=pki.authority)) == 401
    with pytest.raises((ssl.SSLError, ConnectionError, http.client.BadStatusLine)):
        ask_tls(server, pki.context(), headers=bearer(CURRENT))
    assert server.stop() == 0


def test_clients_that_hang_in_the_handshake_cost_others_nothing(pki: Pki) -> None:
    """They have seats and a deadline like all others; the unix socket has seats of its own."""
    server = pki.launch("--token-file", str(write_tokens(pki.directory / "tokens", CURRENT)), "--deadline", "3.0")
    host, port = server.tcp.split(":")
    hanging = [socket.create_connection((host, int(port)), timeout=PATIENCE) for _ in range(3 * endpoint.SEATS)]
    try:
        assert ask_tls(server, pki.context(), headers=bearer(CURRENT)) == 200
        assert ask(server.control, "GET", "/v1/status")[0] == 200
        for sock in hanging:
            try:
                assert sock.recv(1) == b""
            except ConnectionResetError:
                continue
    finally:
        for sock in hanging:
            sock.close()
    descriptors = Path(f"/proc/{server.process.pid}/fd")
    deadline = time.monotonic() + PATIENCE
    while len(list(descriptors.iterdir())) > 30:
        assert time.monotonic() < deadline
        ask(server.control, "GET", "/v1/status")
    assert server.stop() == 0
    assert "Traceback" not in server.log_text()


# --- malformed HTTP ---------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(garbage=st.binary(min_size=1, max_size=300), known=st.booleans())
def test_any_bytes_at_all_leave_the_server_well(server: Running, garbage: bytes, *, known: bool) -> None:
    """Also after the beginning of a request that would be welcome."""
    host, port = server.tcp.split(":")
    beginning = (
        f"POST /v1/workers HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {CURRENT}\r\n".encode() if known else b""
    )
    with socket.create_connection((host, int(port)), timeout=PATIENCE) as sock:
        try:
            sock.sendall(beginning + garbage)
            sock.shutdown(socket.SHUT_WR)
            answer = sock.recv(4096)
        except (BrokenPipeError, ConnectionResetError):
            answer = b""
    assert not answer.startswith((b"HTTP/1.1 2", b"HTTP/1.1 5"))


# --- reforkctl --------------------------------------------------------------------------------------------------------


def ctl(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run reforkctl to its end."""
    command = [sys.executable, "-m", "refork.ctl", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=PATIENCE, env=environment(**more)
    )


def test_reforkctl_reaches_a_server_by_its_url(pki: Pki) -> None:
    """With a token and an authority for the server, from options or the environment; and says why it asks."""
    tokens = str(write_tokens(pki.directory / "tokens", CURRENT))
    server = pki.launch("--token-file", tokens)
    url = f"https://localhost:{server.tcp.rpartition(':')[2]}"
    shown = ("--token-file", tokens, "--ca", str(pki.ca))
    done = ctl("refork", "--wait", "--reason", "new prices", "--url", url, *shown)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].startswith("refork succeeded: generation 2 serves")
    assert ctl("status", *shown, REFORK_CONTROL=url).returncode == 0
    for words, code, says in (
        ((), 3, "is not to be trusted"),
        (("--ca", str(pki.ca)), 1, "a token is needed: Authorization: Bearer TOKEN; name the file that holds it with"),
        ((*shown, "--socket", "unix:@x"), 2, "name two servers"),
        (("--ca", str(pki.ca), "--token-file", "/nowhere"), 2, "--token-file /nowhere: No such file"),
        (("--ca", tokens), 2, "cannot be used"),
    ):
        failed = ctl("status", "--url", url, *words)
        assert (failed.returncode, says in failed.stderr, failed.stdout) == (code, True, "")
        assert failed.stderr.count("\n") == 1
    assert server.stop() == 0
    assert 'command=refork why="new prices"' in server.log_text()


def test_reforkctl_shows_a_certificate(pki: Pki) -> None:
    """For mutual TLS, in one file or in two."""
    server = pki.launch("--client-ca", str(pki.ca))
    mine = pki.authority.issue_cert("me@example.org")
    together, alone = pki.directory / "mine.pem", pki.directory / "mine.key"
    mine.private_key_and_cert_chain_pem.write_to_path(str(together))
    mine.private_key_pem.write_to_path(str(alone))
    url = f"https://localhost:{server.tcp.rpartition(':')[2]}"
    words = ("status", "--url", url, "--ca", str(pki.ca))
    assert ctl(*words, "--cert", str(together)).returncode == 0
    assert ctl(*words, "--cert", str(together), "--key", str(alone)).returncode == 0
    assert ctl(*words).returncode == 3
    assert server.stop() == 0


def test_reforkctl_says_what_is_wrong_about_a_door(server: Running, tmp_path: Path) -> None:
    """TLS where there is none, and a door that takes no commands."""
    tokens = str(write_tokens(tmp_path / "tokens", CURRENT))
    encrypted = ctl("status", "--url", f"https://{server.tcp}")
    assert (encrypted.returncode, encrypted.stderr.count("\n")) == (3, 1)
    assert "no TLS connection: WRONG_VERSION_NUMBER; if the server speaks none, write http://" in encrypted.stderr
    bound = launch(tmp_path / "log", "--metrics", LOOPBACK)
    command = ctl("refork", "--url", f"http://{bound.metrics}", "--token-file", tokens)
    assert bound.stop() == 0
    assert (command.returncode, command.stderr.count("\n")) == (1, 1)
    assert "commands are taken where --control-tcp is, not at a metrics bind" in command.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--url", "ftp://x"), "no URL of a server"),
        (("--url", "https://"), "no URL of a server"),
        (("--url", "https://x:y"), "no URL"),
        (("--url", "https://x:0"), "no URL"),
        (("--url", "https://x/v1"), "no URL of a server"),
        (("--url", "https://token@x"), "must not hold a secret"),
        (("--url", "http://x", "--ca", "/x"), "certificates need TLS"),
        (("--url", "https://x", "--key", "/x"), "name both"),
        (("--socket", "unix:@x", "--token-file", "/x"), "is for a server with an URL"),
    ],
)
def test_reforkctl_says_what_is_wrong_about_an_url(words: tuple[str, ...], says: str) -> None:
    """One line, exit code 2."""
    failed = ctl("status", *words)
    assert (failed.returncode, says in failed.stderr, failed.stderr.count("\n")) == (2, True, 1)


def test_reforkctl_waits_when_it_comes_too_soon(tmp_path: Path) -> None:
    """429 says how long, and the command is given again."""
    server = launch(tmp_path / "log", "--interval", "1.5")
    for _ in range(2):
        assert ctl("refork", "--socket", server.control).returncode == 0
    assert server.stop() == 0
    assert "answer=429" in server.log_text()
    assert server.log_text().count("command=refork uid=") == 3
