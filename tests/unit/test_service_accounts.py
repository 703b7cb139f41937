"""The tokens of service accounts: which ones are believed, with keys that were made for the test."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from refork import jwks
from refork.api import Refusal
from refork.cluster import Source, keys_of, own_issuer
from refork.service_accounts import LARGEST_TOKEN, ServiceAccounts

if TYPE_CHECKING:
    from pathlib import Path

ISSUER = "https://kubernetes.default.svc.cluster.local"
SUBJECT = "system:serviceaccount:refork-system:operator"
LOG = logging.getLogger("test")

type Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey

RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
SMALL_KEY = rsa.generate_private_key(public_exponent=65537, key_size=1024)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
STRANGE_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def published(**keys: Key) -> bytes:
    """Write a key set as an API server does."""
    found = []
    for kid, key in keys.items():
        public: Any = key.public_key()
        algorithm = jwt.algorithms.RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else jwt.algorithms.ECAlgorithm
        name = "RS256" if isinstance(key, rsa.RSAPrivateKey) else "ES256"
        found.append(algorithm.to_jwk(public, as_dict=True) | {"kid": kid, "use": "sig", "alg": name})
    return json.dumps({"keys": found}).encode()


def claims(**changes: Any) -> dict[str, Any]:
    """Make up what the kubelet mounts; None leaves a claim out."""
    now = int(time.time())
    usual = {
        "aud": ["refork"],
        "exp": now + 600,
        "iat": now,
        "nbf": now,
        "iss": ISSUER,
        "sub": SUBJECT,
        "kubernetes.io": {"namespace": "refork-system", "pod": {"name": "operator-0", "uid": "1"}},
    }
    return {name: value for name, value in (usual | changes).items() if value is not None}


def signed(*, key: Key = RSA_KEY, kid: str | None = "one", algorithm: str = "RS256", **changes: Any) -> str:
    """Make a token."""
    headers = {} if kid is None else {"kid": kid}
    return jwt.encode(claims(**changes), key, algorithm=algorithm, headers=headers)


@pytest.fixture
def accounts(tmp_path: Path) -> ServiceAccounts:
    """Believes tokens of two keys, an RSA and an EC one."""
    path = tmp_path / "jwks.json"
    path.write_bytes(published(one=RSA_KEY, two=EC_KEY, small=SMALL_KEY))
    return ServiceAccounts([SUBJECT], source=Source(str(path)), issuer=ISSUER, log=LOG)


def refusal(accounts: ServiceAccounts, token: str) -> Refusal:
    """Return what is said against a token."""
    with pytest.raises(Refusal) as caught:
        asyncio.run(accounts.verify(token))
    return caught.value


@pytest.mark.parametrize(("key", "kid", "algorithm"), [(RSA_KEY, "one", "RS256"), (EC_KEY, "two", "ES256")])
def test_a_token_of_the_cluster_names_the_account_and_its_pod(
    accounts: ServiceAccounts, key: Key, kid: str, algorithm: str
) -> None:
    """Both kinds of keys that a cluster signs with."""
    words = asyncio.run(accounts.verify(signed(key=key, kid=kid, algorithm=algorithm)))
    assert words == "serviceaccount=refork-system:operator pod=operator-0"


HOUR = 3600


@pytest.mark.parametrize(
    ("changes", "status", "says"),
    [
        ({"aud": ["https://kubernetes.default.svc"]}, 401, "for another audience than refork"),
        ({"aud": "refork-evil"}, 401, "for another audience"),
        ({"aud": []}, 401, "it has no aud"),
        ({"aud": {"refork": 1}}, 401, "audience"),
        ({"aud": None}, 401, "it has no aud"),
        ({"iss": "https://elsewhere"}, 401, "of another issuer"),
        ({"iss": None}, 401, "it has no iss"),
        ({"exp": 1}, 401, "it has expired"),
        ({"exp": int(time.time()) - HOUR}, 401, "it has expired"),
        ({"exp": None}, 401, "it has no exp"),
        ({"exp": "soon"}, 401, ""),
        ({"exp": 1e400}, 401, ""),
        ({"nbf": int(time.time()) + HOUR}, 401, "not valid yet"),
        ({"nbf": None}, 401, "it has no nbf"),
        ({"iat": int(time.time()) + HOUR}, 401, "not valid yet"),
        ({"sub": None}, 401, "it has no sub"),
        ({"sub": 7}, None, ""),
        ({"sub": "system:serviceaccount:default:default"}, 403, "default:default may not command"),
        ({"sub": SUBJECT + "2"}, 403, "may not command"),
        ({"sub": "system:admin"}, 403, "no service account"),
        ({"sub": f"{SUBJECT}\nanswer=202"}, 403, "no service account"),
        ({"kid": "unknown"}, 401, "no key of the name"),
        ({"kid": None}, 401, "names no key"),
        ({"key": STRANGE_KEY}, 401, "signature is wrong"),
        ({"kid": "two"}, 401, "does not fit the key"),
        ({"algorithm": "RS512"}, 401, "does not fit the key"),
        ({"algorithm": "PS256"}, 401, "does not fit the key"),
        ({"key": SMALL_KEY, "kid": "small"}, 401, "no key of the name"),
    ],
)
def test_a_token_that_proves_nothing_or_somebody_else_is_refused(
    accounts: ServiceAccounts, changes: dict[str, Any], status: int | None, says: str
) -> None:
    """401 for what is no proof, 403 for somebody who may not, each with the reason."""
    said = refusal(accounts, signed(**changes))
    assert said.status == status or (status is None and said.status in {401, 403})
    assert says in said.reason
    assert "\n" not in said.reason


def encoded(part: bytes) -> str:
    """Write a part of a token."""
    return base64.urlsafe_b64encode(part).rstrip(b"=").decode()


def forged(header: dict[str, Any], *, secret: bytes | None = None) -> str:
    """Make a token by hand, with the header that an attacker would write."""
    text = f"{encoded(json.dumps(header).encode())}.{encoded(json.dumps(claims()).encode())}"
    signature = b"" if secret is None else hmac.new(secret, text.encode(), hashlib.sha256).digest()
    return f"{text}.{encoded(signature)}"


def test_the_public_key_is_no_secret_to_sign_with(accounts: ServiceAccounts) -> None:
    """The oldest trick: HS256 with the public key, in all the forms that an attacker has it in."""
    public = RSA_KEY.public_key()
    forms = [
        public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        public.public_bytes(Encoding.PEM, PublicFormat.PKCS1),
        published(one=RSA_KEY),
    ]
    for secret in forms:
        said = refusal(accounts, forged({"alg": "HS256", "typ": "JWT", "kid": "one"}, secret=secret))
        assert (said.status, "does not fit the key" in said.reason) == (401, True)


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "nOnE", "", None, "HS256", "RS256", ["RS256"], 0])
def test_a_token_without_a_signature_is_refused(accounts: ServiceAccounts, algorithm: object) -> None:
    """Whatever it calls that."""
    assert refusal(accounts, forged({"alg": algorithm, "kid": "one"})).status == 401


def test_a_key_that_the_token_brings_along_is_not_used(accounts: ServiceAccounts) -> None:
    """Neither in the header, nor by an address in it."""
    own = json.loads(published(one=STRANGE_KEY))["keys"][0]
    for extra in ({"jwk": own}, {"jku": "https://attacker/keys"}, {"x5u": "https://attacker/keys"}):
        token = jwt.encode(claims(), STRANGE_KEY, algorithm="RS256", headers={"kid": "one", **extra})
        assert refusal(accounts, token).reason == "the token is not accepted: its signature is wrong"


@pytest.mark.parametrize("token", ["", ".", "..", "a.b.c", "a.b", "e30.e30.", "é.é.é", "x" * (LARGEST_TOKEN + 1)])
def test_what_is_no_token_is_refused(accounts: ServiceAccounts, token: str) -> None:
    """Not an exception but a sentence."""
    assert refusal(accounts, token).status == 401


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_no_token_survives_a_change(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Any character of any part, changed to any other, and nobody gets in."""
    path = tmp_path_factory.getbasetemp() / "jwks.json"
    path.write_bytes(published(two=EC_KEY))
    accounts = ServiceAccounts([SUBJECT], source=Source(str(path)), issuer=ISSUER, log=LOG)
    token = signed(key=EC_KEY, kid="two", algorithm="ES256")
    place = data.draw(st.integers(min_value=0, max_value=len(token) - 2))  # the last character has unused bits
    other = data.draw(st.sampled_from("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_."))
    changed = token[:place] + other + token[place + 1 :]
    if changed != token:
        assert refusal(accounts, changed).status in {401, 403}


# --- keys -------------------------------------------------------------------------------------------------------------


@dataclass
class Cluster:
    """An API server that is asked for its keys, without a network."""

    keys: bytes = b""
    asked: int = 0
    now: float = 0.0
    failing: bool = False
    key_set: jwks.KeySet = field(init=False)

    def __post_init__(self) -> None:
        self.key_set = jwks.KeySet(Source("https://cluster/openid/v1/jwks"), log=LOG, clock=lambda: self.now)
        self.key_set._fetch = self._fetch  # type: ignore[method-assign]

    async def _fetch(self) -> bytes:
        self.asked += 1
        if self.failing:
            raise OSError("unreachable")
        return self.keys

    def knows(self, kid: str) -> bool:
        """Whether a key is found."""
        return asyncio.run(self.key_set.find(kid)) is not None


def test_keys_are_kept_and_looked_at_again() -> None:
    """Many tokens are one fetch; minutes later there is another."""
    cluster = Cluster(published(one=RSA_KEY))
    assert all(cluster.knows("one") for _ in range(10))
    assert cluster.asked == 1
    cluster.now = jwks.SECONDS_FRESH + 1
    assert cluster.knows("one")
    assert cluster.asked == 2


def test_a_new_key_is_fetched_when_a_token_names_it() -> None:
    """That is how a cluster changes its keys: no token of the new one has to wait."""
    cluster = Cluster(published(one=RSA_KEY))
    assert cluster.knows("one")
    cluster.keys = published(one=RSA_KEY, two=EC_KEY)
    cluster.now = jwks.SECONDS_BETWEEN_FETCHES + 1
    assert cluster.knows("two")


def test_a_key_that_is_withdrawn_counts_no_more() -> None:
    """Within minutes, without a restart."""
    cluster = Cluster(published(one=RSA_KEY, two=EC_KEY))
    assert cluster.knows("two")
    cluster.keys = published(one=RSA_KEY)
    cluster.now = jwks.SECONDS_FRESH + 1
    assert not cluster.knows("two")


def test_made_up_names_do_not_make_us_flood_the_api_server() -> None:
    """However many tokens name keys that do not exist, fetches keep their distance."""
    cluster = Cluster(published(one=RSA_KEY))
    for _ in range(100):
        cluster.now += 0.1
        assert not cluster.knows(f"made-up-{cluster.now}")
    assert cluster.asked <= 2


def test_an_outage_of_the_api_server_is_survived_for_an_hour() -> None:
    """What is known counts on, then nothing does; and a later success heals it."""
    cluster = Cluster(published(one=RSA_KEY))
    assert cluster.knows("one")
    cluster.failing = True
    cluster.now = jwks.SECONDS_USABLE - 1
    assert cluster.knows("one")
    cluster.now = jwks.SECONDS_USABLE + 20
    with pytest.raises(jwks.KeysError, match="cannot be had"):
        cluster.knows("one")
    cluster.failing = False
    cluster.now += jwks.SECONDS_BETWEEN_FETCHES + 1
    assert cluster.knows("one")


def test_without_keys_nobody_is_believed(tmp_path: Path) -> None:
    """A file that is not there, or holds no keys, is 503 for everybody: and nobody gets in."""
    path = tmp_path / "jwks.json"
    accounts = ServiceAccounts([SUBJECT], source=Source(str(path)), issuer=ISSUER, log=LOG)
    for content in (None, b"", b"{}", b'{"keys": []}', b'{"keys": [7]}', published(small=SMALL_KEY)):
        if content is not None:
            path.write_bytes(content)
        assert refusal(accounts, signed()).status == 503


def test_keys_that_must_not_verify_are_left_out() -> None:
    """Symmetric ones, those for encryption, those that are too short, and what is no key."""
    good = json.loads(published(one=RSA_KEY))["keys"][0]
    bad = [
        {"kty": "oct", "kid": "oct", "k": encoded(b"secret"), "alg": "HS256"},
        good | {"kid": "enc", "use": "enc"},
        good | {"kid": "confused", "alg": "HS256"},
        good | {"kid": 7},
        {"kty": "RSA", "kid": "empty"},
        good | {"kid": "none", "alg": "none"},
        good | {"kid": "algorithms", "alg": ["RS256"]},
        good | {"kid": "kinds", "kty": ["RSA"]},
        good | {"kid": "number", "n": 7},
        json.loads(published(small=SMALL_KEY))["keys"][0],
    ]
    assert set(jwks.parse(json.dumps({"keys": [*bad, good]}).encode())) == {"one"}


def test_a_file_of_keys_is_read_again(tmp_path: Path) -> None:
    """Somebody who replaces it need not restart anything."""
    path = tmp_path / "jwks.json"
    path.write_bytes(published(one=STRANGE_KEY))
    accounts = ServiceAccounts([SUBJECT], source=Source(str(path)), issuer=ISSUER, log=LOG)
    assert refusal(accounts, signed()).status == 401
    path.write_bytes(published(one=RSA_KEY))
    assert asyncio.run(accounts.verify(signed())).startswith("serviceaccount=")


# --- inside a cluster -------------------------------------------------------------------------------------------------


@pytest.fixture
def pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The directory that the kubelet mounts, and the variables that it sets."""
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    (tmp_path / "token").write_text(signed(aud=["https://kubernetes.default.svc"]) + "\n")
    return str(tmp_path)


def test_in_a_cluster_everything_is_known(pod: str) -> None:
    """The API server has the keys, and the pod's own token names the issuer."""
    assert keys_of("", pod=pod) == Source(
        "https://10.96.0.1:443/openid/v1/jwks", token_file=f"{pod}/token", ca_file=f"{pod}/ca.crt"
    )
    assert own_issuer(pod) == ISSUER


@pytest.mark.parametrize(
    "location",
    [
        "https://10.96.0.1/openid/v1/jwks",
        "https://kubernetes.default.svc/openid/v1/jwks",
        "https://kubernetes.default.svc.cluster.local:443/openid/v1/jwks",
    ],
)
def test_the_pods_token_is_shown_to_the_api_server(pod: str, location: str) -> None:
    """By whichever of its names."""
    found = keys_of(location, pod=pod)
    assert found is not None
    assert found.token_file == f"{pod}/token"


@pytest.mark.parametrize(
    "location",
    [
        "https://oidc.eks.eu-central-1.amazonaws.com/id/X/keys",
        "https://10.96.0.1:8443/openid/v1/jwks",
        "https://kubernetes.default.svc.attacker.example/openid/v1/jwks",
        "https://kubernetes.default.svc@attacker.example/openid/v1/jwks",
        "https://10.96.0.1@attacker.example/",
        "http://10.96.0.1:443/openid/v1/jwks",
        "/etc/refork/jwks.json",
    ],
)
def test_the_pods_token_is_shown_to_nobody_else(pod: str, location: str) -> None:
    """Whoever got it could act as the pod."""
    assert keys_of(location, pod=pod) == Source(location)


def test_elsewhere_nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So it has to be said."""
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert keys_of("", pod=str(tmp_path)) is None
    assert own_issuer(str(tmp_path)) == ""
    for content in ("", "x", "a.b.c", "a.e30.c", "a.MTI.c"):
        (tmp_path / "token").write_text(content)
        assert own_issuer(str(tmp_path)) == ""
