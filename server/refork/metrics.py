"""The place where Prometheus and the probes of Kubernetes look: ``/metrics``, ``/healthz``, ``/readyz``, and ``/v1``.

Everything here is read-only. That is why it may listen on TCP without asking who is there. This module is what the
monitor imports at boot, so it stays small: what is answered is in ``refork.metrics_app``, loaded by the first scrape.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from refork.address import TcpAddress, UnixAddress, parse
from refork.bind import listen
from refork.endpoint import Endpoint, Log

if TYPE_CHECKING:
    from collections.abc import Callable

    from refork import api
    from refork.endpoint import Stay
    from refork.events import Events
    from refork.web import Application


class MetricsServer:
    """Serves on ``bind`` what ``build`` makes, when the first client comes."""

    def __init__(self, build: Callable[[Stay], Application], *, bind: TcpAddress | UnixAddress, log: Log) -> None:
        self._log = log
        self._wanted = bind
        self._endpoint = Endpoint(lambda: build(self._endpoint.stay), log=log)
        self.address: UnixAddress | TcpAddress | None = None

    async def start(self) -> None:
        """Listen. Raises ``refork.bind.BindError`` with a sentence when that cannot be."""
        sock = listen(self._wanted, mode=0o666)
        self.address = self._wanted
        if isinstance(self._wanted, TcpAddress):
            self.address = TcpAddress(self._wanted.host, sock.getsockname()[1])
        await self._endpoint.start(sock)
        self._log.info("metrics address=%s", self.address)

    async def stop(self) -> None:
        """Stop listening; answers under way still go out."""
        self.address = None
        await self._endpoint.stop()


def metrics_of(status: Callable[[], api.Status], events: Events, *, bind: str, log: Log) -> MetricsServer:
    """Serve the metrics of ``status`` on ``bind``: ``HOST:PORT``, ``:PORT`` or ``unix:/PATH``."""

    def build(stay: Stay) -> Application:
        from refork.metrics_app import application  # noqa: PLC0415  (not before somebody asks)

        return application(status, events, stay=stay, log=log)

    return MetricsServer(build, bind=parse(bind), log=log)
