"""A second door for commands, over TCP: for the operator of a cluster, who is on no unix socket. Off unless asked for.

It fails closed. Without a way to know who asks, the server does not start; without TLS, it does not listen where others
can listen in, unless told that something else (a mesh, a tunnel) encrypts. It is a listener of its own, with seats of
its own: whatever happens here, the unix socket stays usable.

Imported only when it is configured, and loads what speaks HTTP no sooner than the unix socket does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from refork.address import TcpAddress
from refork.bind import BindError, listen
from refork.door import is_loopback, objections
from refork.endpoint import Endpoint
from refork.tls import CertificateError, Certificates
from refork.tokens import TokenFileError, read

if TYPE_CHECKING:
    from refork.control import Steerable
    from refork.door import Door
    from refork.endpoint import Log, Stay
    from refork.events import Events
    from refork.web import Application


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
        if certificates is None and not self._door.plaintext and not is_loopback(host):
            sock.close()
            raise BindError(f"--control-tcp {wanted} is {host}, which is not this machine's own: it needs TLS")
        endpoint = Endpoint(lambda: self._application(endpoint.stay), log=self._log, certificates=certificates)
        await endpoint.start(sock)
        self._endpoint = endpoint
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

    def _application(self, stay: Stay) -> Application:
        from refork.control_app import application  # noqa: PLC0415  (not before somebody asks)
        from refork.gate import Gate  # noqa: PLC0415  (as above)

        return application(
            self._steerable,
            self._events,
            identify=Gate(self._door, log=self._log).identify,
            stay=stay,
            log=self._log,
        )
