"""The certificates of the control endpoint: read again when they change, because they expire and are replaced.

What is new counts for the connections that come after. When a new file is no certificate, or not yet the one that goes
with the key, what was read last goes on being used, and the log says so.
"""

from __future__ import annotations

import os
import ssl
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import NoReturn

    from refork.endpoint import Log

type _Stamp = tuple[tuple[int, int, int, int], ...]


class CertificateError(Exception):
    """The files cannot be used; the sentence says why."""


class Certificates:
    """A certificate with its key, and perhaps the authority whose certificates clients must show.

    Raises:
        CertificateError: they cannot be used.
    """

    def __init__(self, certfile: str, keyfile: str, *, client_ca: str, log: Log) -> None:
        self._files = tuple(path for path in (certfile, keyfile, client_ca) if path)
        self._certfile = certfile
        self._keyfile = keyfile
        self._client_ca = client_ca
        self._log = log
        self._stamp = self._look()
        try:
            self._context = self._load()
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise CertificateError(f"{self._named()} cannot be used: {_words(error)}") from error

    def context(self) -> ssl.SSLContext:
        """Return what the next connection is to be made with."""
        stamp = self._look()
        if stamp != self._stamp:
            self._stamp = stamp
            try:
                self._context = self._load()
                self._log.info("control tls=reloaded files=%s", self._named())
            except (OSError, ValueError) as error:
                self._log.error("control tls=kept files=%s error=%s", self._named(), _words(error))
        return self._context

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
        context.load_cert_chain(self._certfile, self._keyfile or None, password=no_password)
        if self._client_ca:
            context.load_verify_locations(self._client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def _look(self) -> _Stamp:
        stamps = []
        for path in self._files:
            try:
                found = os.stat(path)
                stamps.append((found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns))
            except OSError:
                stamps.append((0, 0, 0, 0))
        return tuple(stamps)

    def _named(self) -> str:
        return ",".join(self._files)


def subject(certificate: object) -> str:
    """Name the subject of a client's certificate, as ``SSLObject.getpeercert()`` tells it."""
    if not isinstance(certificate, dict):
        return ""
    names = [f"{kind}:{name}" for kind, name in certificate.get("subjectAltName", ())]
    names += [f"{kind}={value}" for part in certificate.get("subject", ()) for kind, value in part]
    return ",".join(names) or "unnamed"


def no_password() -> NoReturn:
    """Give no password for an encrypted key, of which OpenSSL would ask the terminal otherwise.

    Raises:
        ValueError: in any case; ``load_cert_chain`` passes it on.
    """
    raise ValueError("the key is encrypted")


def _words(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return str(error.reason or error)
    return str(getattr(error, "strerror", None) or error)
