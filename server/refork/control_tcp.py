"""A second door for commands, over TCP: for the operator of a cluster, who is on no unix socket. Off unless asked for.

It fails closed. Without a way to know who asks, the server does not start; without TLS, it does not listen where others
can listen in, unless told that something else (a mesh, a tunnel) encrypts. It is a listener of its own, with seats of
its own: whatever happens here, the unix socket stays usable.

Imported only when it is configured, and loads the web framework no sooner than the unix socket does.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from refork.address import TcpAddress, parse
from refork.bind import BindError, listen
from refork.cluster import Source, keys_of, own_issuer
from refork.endpoint import Endpoint
from refork.tls import CertificateError, Certificates
from refork.tokens import TokenFileError, read

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator

    from aiohttp import web

    from refork.control import Steerable
    from refork.endpoint import Log
    from refork.events import Events


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
    if not door.certfile and not door.plaintext and not _is_loopback(door.address.host):
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


class ControlTcpServer:
    """Listens on TCP, and lets those who prove who they are drive a ``Steerable``."""

    def __init__(self, steerable: Steerable, events: Events, *, door: Door, log: Log) -> None:
        self._steerable = steerable
        self._events = events
        self._door = door
        self._log = log
        self._endpoint: Endpoint | None = None
        self.address: TcpAddress | None = None

    async def start(self) -> None:
        """Listen.

        Raises:
            BindError: that cannot be, or should not; says why in a sentence.
        """
        for objection in objections(self._door):
            raise BindError(objection)
        certificates = self._prepare()
        wanted = self._door.address
        sock = listen(wanted, mode=0o600)
        host, port = sock.getsockname()[:2]
        if certificates is None and not self._door.plaintext and not _is_loopback(host):
            sock.close()
            raise BindError(f"--control-tcp {wanted} is {host}, which is not this machine's own: it needs TLS")
        self._endpoint = Endpoint(self._application, log=self._log, certificates=certificates)
        await self._endpoint.start(sock)
        self.address = TcpAddress(wanted.host, port)
        self._log.info("control address=%s tls=%s", self.address, "on" if certificates else "off")

    async def stop(self) -> None:
        """Stop listening; answers under way still go out."""
        endpoint, self._endpoint = self._endpoint, None
        self.address = None
        if endpoint is not None:
            await endpoint.stop()

    def _prepare(self) -> Certificates | None:
        door = self._door
        try:
            if door.token_file:
                warning = read(door.token_file).warning
                if warning:
                    self._log.warning("control token_file: %s: %s", door.token_file, warning)
            if not door.certfile:
                return None
            return Certificates(door.certfile, door.keyfile, client_ca=door.client_ca, log=self._log)
        except (TokenFileError, CertificateError) as error:
            raise BindError(f"--control-tcp {door.bind}: {error}") from error

    def _application(self) -> web.Application:
        from refork.control_app import application  # noqa: PLC0415  (not before somebody asks)
        from refork.gate import Gate  # noqa: PLC0415  (as above)

        return application(
            self._steerable,
            self._events,
            identify=Gate(self._door, log=self._log).identify,
            stay=self._stay,
            log=self._log,
        )

    def _stay(self, transport: asyncio.BaseTransport, gone: Callable[[], None]) -> None:
        if self._endpoint is not None:
            self._endpoint.stay(transport, gone)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
