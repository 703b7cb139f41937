"""How ``reforkctl`` reaches a server over TCP: where it is, whom to trust, and what to show. The standard library only.

A token is read from a file when it is needed, because such files change (the kubelet renews the tokens of service
accounts), and because what stands on a command line can be read by everybody on the machine.
"""

from __future__ import annotations

import http.client
import ssl
from dataclasses import dataclass
from urllib.parse import urlsplit

from refork.address import AddressError

SCHEMES = ("https://", "http://")

_LARGEST_TOKEN_FILE = 64 * 1024


@dataclass(frozen=True, slots=True)
class Remote:
    """A server that is reached by an URL.

    Attributes:
        host: its name or address.
        port: where it listens.
        encrypted: whether TLS is spoken.
        token_file: holds the token to show, in its first line.
        ca: who vouches for the server, a file; empty for the authorities that the system trusts.
        cert: our own certificate, a file; empty to show none.
        key: the key of ``cert``; empty if it is in that file too.
    """

    host: str
    port: int
    encrypted: bool
    token_file: str = ""
    ca: str = ""
    cert: str = ""
    key: str = ""

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.encrypted else 'http'}://{host}:{self.port}"


def parse_url(text: str, *, token_file: str = "", ca: str = "", cert: str = "", key: str = "") -> Remote:
    """Read ``https://HOST:PORT`` or ``http://HOST:PORT``.

    Raises:
        AddressError: it is neither; says what would be.
    """
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError as error:
        raise AddressError(f"no URL: {text!r}: {error}") from error
    encrypted = url.scheme == "https"
    if (
        url.scheme not in {"http", "https"}
        or not url.hostname
        or port == 0
        or url.path not in {"", "/"}
        or url.query
        or url.fragment
    ):
        raise AddressError(f"no URL of a server: {text!r}; write https://HOST:PORT")
    if url.username is not None or url.password is not None:
        raise AddressError(f"a URL must not hold a secret: write {url.scheme}://{url.hostname} and use --token-file")
    if (ca or cert) and not encrypted:
        raise AddressError(f"{text}: certificates need TLS; write https://")
    if key and not cert:
        raise AddressError("--key is the key of --cert: name both")
    return Remote(url.hostname, port or (443 if encrypted else 80), encrypted, token_file, ca, cert, key)


def connection(remote: Remote, *, timeout: float) -> http.client.HTTPConnection:
    """Prepare a connection.

    Raises:
        AddressError: a certificate cannot be used.
    """
    if not remote.encrypted:
        return http.client.HTTPConnection(remote.host, remote.port, timeout=timeout)
    try:
        context = ssl.create_default_context(cafile=remote.ca or None)
        if remote.cert:
            context.load_cert_chain(remote.cert, remote.key or None, password=_no_password)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        files = " ".join(file for file in (remote.ca, remote.cert, remote.key) if file)
        raise AddressError(f"certificates of {files} cannot be used: {_words(error)}") from error
    return http.client.HTTPSConnection(remote.host, remote.port, timeout=timeout, context=context)


def headers(remote: Remote) -> dict[str, str]:
    """Return what shows who we are.

    Raises:
        AddressError: there is no token to be read.
    """
    if not remote.token_file:
        return {}
    try:
        with open(remote.token_file, encoding="ascii") as file:
            lines = file.read(_LARGEST_TOKEN_FILE).split()
    except (OSError, ValueError) as error:
        raise AddressError(f"--token-file {remote.token_file}: {_words(error)}") from error
    if not lines:
        raise AddressError(f"--token-file {remote.token_file}: there is no token in it")
    return {"Authorization": f"Bearer {lines[0]}"}


def about_tls(error: ssl.SSLError) -> str:
    """Say why there was no TLS connection, and what to do if that can be told."""
    advice = "; if the server speaks none, write http://" if error.reason == "WRONG_VERSION_NUMBER" else ""
    return f"no TLS connection: {_words(error)}{advice}"


def _no_password() -> str:
    raise ValueError("the key is encrypted")


def _words(error: Exception) -> str:
    return str(getattr(error, "reason", None) or getattr(error, "strerror", None) or error)
