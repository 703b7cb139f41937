"""HTTP as uvicorn speaks it, on connections that ``refork.endpoint`` has let in.

Of uvicorn there is the protocol of one connection, and nothing around it: no listener, no signals, no lifespan, no log.
Loaded by the first client that may ask something.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, cast

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from refork.answers import refuse
from refork.api import Refusal

if TYPE_CHECKING:
    from refork.web import Application

# What clients send that is no HTTP is no news. The logger is nobody else's: uvicorn's own may be an application's.
_SILENCE = logging.Logger("refork.web_server", logging.CRITICAL + 1)  # noqa: LOG001

_NO_HTTP = refuse(Refusal("this is no valid HTTP", status=400))


class WebServer:
    """Speaks HTTP for one application."""

    def __init__(self, app: Application) -> None:
        self._app = app
        self._state = ServerState()
        self._config = Config(
            cast("Any", app),
            interface="asgi3",
            http=_Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            proxy_headers=False,  # whoever asks is who has connected
            forwarded_allow_ips="",
            workers=1,  # or the environment would be asked
        )

    def protocol(self, transport: asyncio.Transport) -> asyncio.Protocol:
        """Make what speaks on one connection; the application finds that as ``scope["state"]["transport"]``."""
        return _Connection(self._config, self._state, {"transport": transport})

    async def stop(self, *, within: float) -> None:
        """Let answers under way go out."""
        self._app.close()
        if self._state.tasks:
            await asyncio.wait(self._state.tasks, timeout=within)


class _Connection(H11Protocol):
    def __init__(self, config: Config, state: ServerState, shared: dict[str, Any]) -> None:
        super().__init__(config, state, shared)
        self.logger = _SILENCE
        self.access_log = False

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP as everything is refused; where an answer has begun already, break it off."""
        del msg
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            for event in (
                h11.Response(status_code=_NO_HTTP.status, headers=_NO_HTTP.fields(), reason=b"Bad Request"),
                h11.Data(data=b"" if self.scope and self.scope["method"] == "HEAD" else _NO_HTTP.body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
