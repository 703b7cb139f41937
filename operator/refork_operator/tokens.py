"""What is shown to pods, a token from a Secret or our own ServiceAccount's, and the authorities to check pods by.

Secrets are read when they are needed and kept for a minute; the projected token is a file that the kubelet renews, and
is read again when it has changed.
"""

from __future__ import annotations

import base64
import binascii
import os
import ssl
import time
from typing import TYPE_CHECKING

from refork_operator import paths
from refork_operator.cluster import ClusterError
from refork_operator.names import Trouble
from refork_operator.podclient import PodError, tls_context

if TYPE_CHECKING:
    from refork_operator.cluster import Cluster
    from refork_operator.policy import Control, SecretRef

_KEPT_SECONDS = 60.0


class Tokens:
    """Finds credentials for pods."""

    def __init__(self, cluster: Cluster, *, file: str) -> None:
        self._cluster = cluster
        self._file = file
        self._file_seen: tuple[int, str] = (0, "")
        self._secrets: dict[tuple[str, SecretRef], tuple[float, str]] = {}
        self._contexts: dict[str, ssl.SSLContext] = {}

    async def token(self, namespace: str, control: Control) -> str:
        """Return the bearer token; empty when there is none to show. Raises PodError."""
        if control.token is not None:
            return (await self._secret(namespace, control.token)).strip()
        return self._own()

    async def tls(self, namespace: str, control: Control) -> ssl.SSLContext | None:
        """Return how to check the pods' certificates; None for plain HTTP. Raises PodError."""
        if control.scheme != "https":
            return None
        authority = await self._secret(namespace, control.ca) if control.ca is not None else ""
        if authority not in self._contexts:
            try:
                self._contexts[authority] = tls_context(authority)
            except ssl.SSLError as error:
                raise PodError(Trouble.NO_TOKEN, f"the authority is no certificate: {error}") from error
        return self._contexts[authority]

    def forget(self, namespace: str) -> None:
        """Read the Secrets of a namespace anew: a pod did not accept what we showed."""
        for key in [key for key in self._secrets if key[0] == namespace]:
            del self._secrets[key]

    def _own(self) -> str:
        try:
            changed = os.stat(self._file).st_mtime_ns
            if changed != self._file_seen[0]:
                with open(self._file, encoding="ascii") as file:
                    self._file_seen = (changed, file.read().strip())
        except (OSError, UnicodeDecodeError):
            return ""
        return self._file_seen[1]

    async def _secret(self, namespace: str, ref: SecretRef) -> str:
        known = self._secrets.get((namespace, ref))
        if known is not None and time.monotonic() - known[0] < _KEPT_SECONDS:
            return known[1]
        try:
            found = await self._cluster.get(paths.secret(namespace, ref.name))
            value = base64.b64decode((found.get("data") or {})[ref.key], validate=True).decode()
        except ClusterError as error:
            raise PodError(Trouble.NO_TOKEN, f"Secret {ref.name}: {error}") from error
        except KeyError as error:
            raise PodError(Trouble.NO_TOKEN, f"Secret {ref.name} has no key {ref.key}") from error
        except (binascii.Error, UnicodeDecodeError) as error:
            raise PodError(Trouble.NO_TOKEN, f"Secret {ref.name}, key {ref.key}: {error}") from error
        self._secrets[namespace, ref] = (time.monotonic(), value)
        return value
