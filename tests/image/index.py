"""The package index that this machine uses, made known to builds in the ways that the documentation tells."""

from __future__ import annotations

import ast
import configparser
import os
import ssl
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

KEPT = ("index-url", "extra-index-url", "trusted-host", "timeout")
AUTHORITY = "/run/secrets/ca.pem"


class Index:
    """pip's configuration for a build, and the authorities that vouch for the index."""

    def __init__(self, directory: Path) -> None:
        self.configuration = directory / "pip.conf"
        self.authorities = _authorities()

    def secrets(self) -> list[str]:
        """Return podman's options for a build that asks for secrets."""
        self._write()
        return [
            f"--secret=id=pip.conf,src={self.configuration}",
            *([f"--secret=id=ca.pem,src={self.authorities}"] if self.authorities else []),
        ]

    def volumes(self, wheels: Path) -> list[str]:
        """Return podman's options for a build that knows of none, with wheels that the index does not have."""
        self._write(**{"find-links": "/wheels"})
        return [
            f"--volume={self.configuration}:/etc/pip.conf:ro",
            f"--volume={wheels}:/wheels:ro",
            *([f"--volume={self.authorities}:{AUTHORITY}:ro"] if self.authorities else []),
        ]

    def _write(self, **more: str) -> None:
        chosen = _settings() | more
        if self.authorities:
            chosen["cert"] = AUTHORITY
        parser = configparser.RawConfigParser()
        parser["global"] = chosen
        with self.configuration.open("w") as file:
            parser.write(file)


def _settings() -> dict[str, str]:
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True)
    found = {}
    for line in listed.stdout.splitlines():
        name, _, value = line.partition("=")
        key = name.rpartition(".")[2]
        words = [word for word in ast.literal_eval(value).split() if not word.startswith("file:")]
        if key in KEPT and words:
            found[key] = " ".join(words)
    return found


def _authorities() -> str | None:
    paths = (os.environ.get("PIP_CERT"), ssl.get_default_verify_paths().cafile)
    return next((path for path in paths if path and os.path.isfile(path)), None)
