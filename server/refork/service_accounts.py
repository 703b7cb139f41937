"""Who asks, proved by the cluster: the token of a Kubernetes ServiceAccount, verified without asking anybody.

Such a token is made for one audience, for some minutes, and bound to a pod; the kubelet renews it. There is no secret
to share and to forget. It is signed by the cluster, so its published keys are all that is needed to verify it. What is
demanded of it: a signature by one of these keys with an algorithm that fits the key, our audience, the cluster's
issuer, times that are now, and a subject on the list.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from refork.api import Refusal
from refork.cluster import SUBJECT
from refork.jwks import KeysError, KeySet

if TYPE_CHECKING:
    from collections.abc import Collection

    import jwt

    from refork.cluster import Source
    from refork.endpoint import Log

AUDIENCE = "refork"
LARGEST_TOKEN = 8 * 1024
SECONDS_OF_CLOCK_SKEW = 10.0

_ALGORITHMS = {"RSA": ("RS256", "RS384", "RS512"), "EC": ("ES256", "ES384", "ES512")}


class ServiceAccounts:
    """Knows the service accounts that may command.

    Args:
        subjects: their names, as ``system:serviceaccount:NAMESPACE:NAME``.
        source: where the keys of the cluster are.
        issuer: the name of the cluster in its tokens.
        log: hears of keys that cannot be had.
    """

    def __init__(self, subjects: Collection[str], *, source: Source, issuer: str, log: Log) -> None:
        self._subjects = frozenset(subjects)
        self._issuer = issuer
        self._keys = KeySet(source, log=log)

    async def verify(self, token: str) -> str:
        """Return the words that name whoever shows this token.

        Raises:
            Refusal: 401 when the token proves nothing, 403 when it proves somebody else, 503 when it cannot be known.
        """
        key = await self._key(token)
        claims = self._claims(token, key)
        subject = claims["sub"]
        if subject not in self._subjects:
            raise Refusal(f"{subject} may not command this server", status=403)
        return f"serviceaccount={subject.removeprefix('system:serviceaccount:')}{_pod(claims)}"

    async def _key(self, token: str) -> jwt.PyJWK:
        """Find the key that the token names. Nothing else in it is believed yet."""
        import jwt  # noqa: PLC0415  (it takes cryptography with it: not before somebody shows a token)

        if len(token) > LARGEST_TOKEN:
            raise Refusal("the token is too long", status=401)
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.PyJWTError, ValueError, RecursionError):
            raise Refusal("this is no token of a service account", status=401) from None
        kid = header.get("kid")
        if not isinstance(kid, str):
            raise Refusal("the token names no key", status=401)
        try:
            key = await self._keys.find(kid)
        except KeysError as error:
            raise Refusal(f"the token cannot be verified: {error}", status=503) from error
        if key is None:
            raise Refusal("the cluster has no key of the name in the token", status=401)
        return key

    def _claims(self, token: str, key: jwt.PyJWK) -> dict[str, Any]:
        import jwt  # noqa: PLC0415  (as above)

        try:
            claims = jwt.decode(
                token,
                key=key,
                algorithms=[name for name in _ALGORITHMS.get(key.key_type or "", ()) if name == key.algorithm_name],
                audience=AUDIENCE,
                issuer=self._issuer,
                leeway=SECONDS_OF_CLOCK_SKEW,
                options={"require": ["exp", "iat", "nbf", "iss", "aud", "sub"]},
            )
        except jwt.PyJWTError as error:
            raise Refusal(f"the token is not accepted: {_reason(error)}", status=401) from None
        except (ValueError, TypeError, OverflowError):
            raise Refusal("this is no token of a service account", status=401) from None
        subject = claims["sub"]
        if not isinstance(subject, str) or not SUBJECT.fullmatch(subject):
            raise Refusal("the subject of the token is no service account", status=403)
        return claims


def _reason(error: Exception) -> str:
    """Say what PyJWT means."""
    import jwt  # noqa: PLC0415  (as above)

    reasons: dict[type[Exception], str] = {
        jwt.ExpiredSignatureError: "it has expired",
        jwt.ImmatureSignatureError: "it is not valid yet",
        jwt.InvalidAudienceError: f"it is for another audience than {AUDIENCE}",
        jwt.InvalidIssuerError: "it is of another issuer",
        jwt.InvalidSignatureError: "its signature is wrong",
        jwt.InvalidAlgorithmError: "its algorithm does not fit the key",
        jwt.InvalidKeyError: "its algorithm does not fit the key",
    }
    if isinstance(error, jwt.MissingRequiredClaimError):
        return f"it has no {error.claim}"
    return next((words for kind, words in reasons.items() if isinstance(error, kind)), "it is malformed")


def _pod(claims: dict[str, Any]) -> str:
    """Name the pod that the token is bound to."""
    pod = claims.get("kubernetes.io")
    name = pod.get("pod", {}).get("name") if isinstance(pod, dict) and isinstance(pod.get("pod", {}), dict) else None
    return f" pod={name}" if isinstance(name, str) and re.fullmatch(r"[-a-z0-9.]{1,253}", name) else ""
