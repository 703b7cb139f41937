"""Shared secrets: a file with one token a line, any of which opens the door.

The file is read whenever a token is shown, so that a new one counts at once and a removed one no longer does. Two lines
are how tokens are changed without a gap: the current one and the previous one. Whatever is wrong with the file, nobody
gets in by it.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
from dataclasses import dataclass

SHORTEST_TOKEN = 32
MOST_TOKENS = 16
LARGEST_FILE = 64 * 1024

_OPEN_TO_OTHERS = stat.S_IRWXO | stat.S_IWGRP


class TokenFileError(Exception):
    """The file cannot be used; the sentence says why, and never what is in it."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a file held when it was read."""

    digests: tuple[bytes, ...]
    mode: int

    def fingerprint(self, shown: str) -> str | None:
        """Name the token that was shown, without giving it away; None if it is not in the file.

        Digests are compared, all of them and each in the same time, so that nothing is learnt from how long it takes.
        """
        digest = _digest(shown.encode(errors="surrogateescape"))
        found = [hmac.compare_digest(digest, known) for known in self.digests]
        return digest.hex()[:12] if any(found) else None

    @property
    def warning(self) -> str:
        """What is wrong with the permissions; empty if nothing is."""
        if not self.mode & _OPEN_TO_OTHERS:
            return ""
        return f"mode {stat.S_IMODE(self.mode):04o} lets others at it; 0600 would not"


def read(path: str) -> Tokens:
    """Read a token file.

    Raises:
        TokenFileError: it cannot be read, or what is in it will not do.
    """
    try:
        with open(path, "rb", opener=_open) as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise TokenFileError(f"{path} is no file")
            content = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise TokenFileError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(content) > LARGEST_FILE:
        raise TokenFileError(f"{path} has more than {LARGEST_FILE} bytes")
    lines = [line.strip() for line in content.splitlines() if line.strip()]
    if not 1 <= len(lines) <= MOST_TOKENS:
        raise TokenFileError(f"{path} has {len(lines)} tokens: write 1 to {MOST_TOKENS}, one a line")
    for number, line in enumerate(lines, 1):
        if len(line) < SHORTEST_TOKEN:
            raise TokenFileError(
                f"{path}: token {number} is shorter than {SHORTEST_TOKEN} characters; `openssl rand -hex 32` makes a "
                "good one"
            )
        if not line.isascii() or not line.decode().isprintable() or b" " in line:
            raise TokenFileError(f"{path}: token {number} has characters that no HTTP header can carry")
    return Tokens(tuple(_digest(line) for line in lines), mode)


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a pipe that nobody writes to would be waited for


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
