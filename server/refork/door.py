"""The door for commands over TCP as it is configured, and what speaks against opening it.

Pure but for a look at what a pod knows about its cluster: ``refork --check-config`` asks here too.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from refork.address import TcpAddress, parse
from refork.cluster import Source, keys_of, own_issuer

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class Door:
    """What is configured: where it is, and what opens it. Empty means that it is not set."""

    bind: str
    token_file: str = ""
    service_accounts: tuple[str, ...] = ()
    keys: Source | None = None
    issuer: str = ""
    certfile: str = ""
    keyfile: str = ""
    client_ca: str = ""
    plaintext: bool = False

    @property
    def address(self) -> TcpAddress:
        """Where it is."""
        address = parse(self.bind)
        assert isinstance(address, TcpAddress)
        return address

    @property
    def wants_token(self) -> bool:
        """Whether a token must be shown; if not, a client certificate says who asks."""
        return bool(self.token_file or self.service_accounts)


def door_of(cfg: Any) -> Door | None:
    """Return what the configuration says; None without such a door."""
    if not cfg.control_tcp:
        return None
    accounts = cfg.control_service_accounts
    return Door(
        bind=cfg.control_tcp,
        token_file=cfg.control_token_file,
        service_accounts=accounts,
        keys=keys_of(cfg.control_jwks) if accounts else None,
        issuer=(cfg.control_issuer or own_issuer()) if accounts else "",
        certfile=cfg.control_certfile,
        keyfile=cfg.control_keyfile,
        client_ca=cfg.control_client_ca,
        plaintext=cfg.control_plaintext,
    )


def objections(door: Door) -> Iterator[str]:
    """Say why a door would be open to people it should not be open to, or to nobody."""
    if not door.wants_token and not door.client_ca:
        yield (
            f"--control-tcp {door.bind}: nothing would tell who asks; set --control-token-file, "
            "--control-service-accounts or --control-client-ca"
        )
    if door.client_ca and not door.certfile:
        yield "--control-client-ca: client certificates need TLS; set --control-certfile and --control-keyfile too"
    if door.keyfile and not door.certfile:
        yield "--control-keyfile: set --control-certfile too"
    if not door.certfile and not door.plaintext and not is_loopback(door.address.host):
        yield (
            f"--control-tcp {door.bind}: others could read and repeat what passes there; set --control-certfile and "
            "--control-keyfile, or --control-plaintext if something else encrypts it, or bind it to 127.0.0.1"
        )
    if door.service_accounts:
        yield from _about_accounts(door)


def _about_accounts(door: Door) -> Iterator[str]:
    if find_spec("jwt") is None or find_spec("cryptography") is None:
        yield "--control-service-accounts: install refork[kubernetes], which verifies their tokens"
    if door.keys is None:
        yield "--control-service-accounts: this is no cluster; set --control-jwks to the file or https URL of the keys"
    if not door.issuer:
        yield (
            "--control-service-accounts: the pod has no token that names the issuer; set --control-issuer, as in "
            "`kubectl get --raw /.well-known/openid-configuration`"
        )


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
