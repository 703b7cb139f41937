"""What the tests with a real Prometheus share: the harness that boots the real server."""

from __future__ import annotations

from tests.integration.conftest import new_server, serve

__all__ = ["new_server", "serve"]
