"""``/metrics``, ``/healthz`` and ``/readyz``: how the operator itself is watched."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Callable

    from refork_operator.metrics import Metrics

_FAREWELL_SECONDS = 1.0
_EXPOSITION = "text/plain; version=0.0.4; charset=utf-8"


class Probes:
    """A small HTTP server; ``healthy`` and ``ready`` say what is wrong, or nothing."""

    def __init__(self, *, metrics: Metrics, healthy: Callable[[], str], ready: Callable[[], str]) -> None:
        self._metrics = metrics
        self._healthy = healthy
        self._ready = ready
        self._runner: web.AppRunner | None = None
        self.address: tuple[str, int] = ("", 0)

    async def start(self, host: str, port: int) -> None:
        """Listen."""
        app = web.Application(client_max_size=1024)
        app.router.add_get("/metrics", self._serve_metrics)
        app.router.add_get("/healthz", self._serve_health)
        app.router.add_get("/readyz", self._serve_readiness)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=_FAREWELL_SECONDS)
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port)
        await site.start()
        self.address = self._runner.addresses[0][:2]

    async def stop(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _serve_metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=self._metrics.exposition(), headers={"Content-Type": _EXPOSITION})

    async def _serve_health(self, _: web.Request) -> web.Response:
        return _answer(self._healthy())

    async def _serve_readiness(self, _: web.Request) -> web.Response:
        return _answer(self._ready())


def _answer(trouble: str) -> web.Response:
    return web.Response(text=f"{trouble or 'ok'}\n", status=503 if trouble else 200)
