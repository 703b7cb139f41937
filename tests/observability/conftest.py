"""What the tests with a real Prometheus share: the harness that boots the real server, and the whole stage."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.integration.conftest import new_server, serve
from tests.observability.stage import Stage, staged

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["new_server", "serve", "stage"]


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Return a server that was reforked by a real operator, and the Prometheus that saw it: one for all tests."""
    with staged(tmp_path_factory.mktemp("stage")) as running:
        yield running
