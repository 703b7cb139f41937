"""What gunicorn's hooks are given as ``server``.

gunicorn hands its arbiter to the hooks. Ours hand over this: the attributes that configuration files in the field use,
with the same names, filled in by whichever process runs the hook.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from refork.errors import ConfigurationError, describe


@dataclass(slots=True)
class Server:
    """The server as a hook sees it; ``pid`` is the monitor's."""

    pid: int
    app: Any
    cfg: Any
    log: Any
    num_workers: int
    LISTENERS: list[Any] = field(default_factory=list)
    WORKERS: dict[int, Any] = field(default_factory=dict)

    @property
    def address(self) -> Any:
        """What ``bind`` names."""
        return self.cfg.address

    @property
    def proc_name(self) -> str:
        """The name of the server for ps(1)."""
        return str(self.cfg.proc_name)

    @property
    def timeout(self) -> int:
        """Seconds after which a silent worker is killed."""
        return int(self.cfg.timeout)

    @property
    def worker_class(self) -> Any:
        """The class that ``worker_class`` names."""
        return self.cfg.worker_class


def demand(server: Server, name: str, *arguments: Any) -> None:
    """Run a hook of the start.

    Raises:
        ConfigurationError: it failed, so there is no start.
    """
    try:
        getattr(server.cfg, name)(server, *arguments)
    except Exception as error:
        raise ConfigurationError(f"the hook {name} failed: {describe(error)}") from error


def run(server: Server, name: str, *arguments: Any) -> None:
    """Run a hook; that it fails is logged, because the server has to go on."""
    try:
        getattr(server.cfg, name)(server, *arguments)
    except Exception:
        server.log.exception("the hook %s failed", name)
