"""What a pod knows about the Kubernetes cluster that it runs in, without asking: files and environment variables.

The kubelet puts them there (https://kubernetes.io/docs/tasks/run-application/access-api-from-pod/), so they are
believed. Read when the control endpoint is configured to accept service accounts, and only then.
"""

from __future__ import annotations

import os
import re
from base64 import urlsafe_b64decode
from dataclasses import dataclass
from urllib.parse import urlsplit

import msgspec

POD = "/var/run/secrets/kubernetes.io/serviceaccount"
SUBJECT = re.compile(r"system:serviceaccount:[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?:[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")

_PATH_OF_KEYS = "/openid/v1/jwks"
_NAMES_OF_API_SERVER = ("kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "kubernetes.default")
_LONGEST_TOKEN = 16 * 1024


class _Claims(msgspec.Struct):
    iss: str = ""


@dataclass(frozen=True, slots=True)
class Source:
    """Where the public keys of a cluster are, and what has to be shown to get them.

    Attributes:
        location: a path or an https URL.
        token_file: holds what the API server wants to see; empty for any other server, which must never see it.
        ca_file: who vouches for the server; empty for the authorities that the system trusts.
    """

    location: str
    token_file: str = ""
    ca_file: str = ""

    @property
    def remote(self) -> bool:
        """Whether they have to be fetched."""
        return self.location.startswith("https://")


def api_server() -> str:
    """Return the address of the API server, inside a cluster; empty elsewhere."""
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST", ""), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        return ""
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


def keys_of(location: str, *, pod: str = POD) -> Source | None:
    """Find out where keys are to be had: where it is said, or else at the API server; None where there is none."""
    cluster = api_server()
    location = location or (cluster and cluster + _PATH_OF_KEYS)
    if not location:
        return None
    if cluster and _is_api_server(location, cluster):
        return Source(location, token_file=os.path.join(pod, "token"), ca_file=os.path.join(pod, "ca.crt"))
    return Source(location)


def _is_api_server(location: str, cluster: str) -> bool:
    there, here = urlsplit(location), urlsplit(cluster)
    if there.scheme != "https":
        return False
    same = (there.hostname, there.port or 443) == (here.hostname, here.port or 443)
    return same or (there.hostname in _NAMES_OF_API_SERVER and there.port in {None, 443})


def own_issuer(pod: str = POD) -> str:
    """Return who has issued the token of the pod that this runs in; empty if there is none."""
    try:
        with open(os.path.join(pod, "token"), encoding="ascii") as file:
            payload = file.read(_LONGEST_TOKEN).split(".")[1]
        claims = urlsafe_b64decode(payload + "=" * (-len(payload) % 4))
        return msgspec.json.decode(claims, type=_Claims).iss
    except (OSError, ValueError, IndexError, msgspec.DecodeError):
        return ""
