"""The token file: what is in it opens the door, and nothing else does."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refork.tokens import MOST_TOKENS, SHORTEST_TOKEN, TokenFileError, Tokens, _digest, read

if TYPE_CHECKING:
    from pathlib import Path

CURRENT, PREVIOUS = "c" * SHORTEST_TOKEN, "p" * 64


def written(path: Path, content: bytes, *, mode: int = 0o600) -> str:
    """Write a token file."""
    path.write_bytes(content)
    path.chmod(mode)
    return str(path)


@pytest.mark.parametrize("form", ["{}\n{}\n", "{}\r\n{}", "\n  {}  \n\n{}\n\n"])
def test_each_line_is_a_token(tmp_path: Path, form: str) -> None:
    """The current one and the previous one both count; white space around them does not."""
    tokens = read(written(tmp_path / "tokens", form.format(CURRENT, PREVIOUS).encode()))
    assert tokens.fingerprint(CURRENT) == _digest(CURRENT.encode()).hex()[:12]
    assert tokens.fingerprint(PREVIOUS) is not None
    assert not tokens.warning


@given(st.text())
def test_nothing_else_is_a_token(shown: str) -> None:
    """Not a part of one, not one with something added, not what cannot even be encoded."""
    tokens = Tokens((_digest(CURRENT.encode()), _digest(PREVIOUS.encode())), 0o600)
    assert tokens.fingerprint(shown) is None
    assert tokens.fingerprint(CURRENT + shown) is None or not shown
    for almost in ("", CURRENT[:-1], CURRENT + PREVIOUS, CURRENT.upper(), f"{CURRENT}\n", "\udcff"):
        assert tokens.fingerprint(almost) is None


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "has 0 tokens"),
        (b" \n\n", "has 0 tokens"),
        (b"s3cret\n", "token 1 is shorter than 32 characters"),
        (CURRENT.encode() + b"\ns3cret\n", "token 2 is shorter than 32 characters"),
        ((CURRENT + "\n").encode() * (MOST_TOKENS + 1), f"write 1 to {MOST_TOKENS}"),
        (b"x" * 70_000, "more than 65536 bytes"),
        (b"\xff" * 40, "no HTTP header can carry"),
        (b"a" * 20 + b" " + b"b" * 20, "no HTTP header can carry"),
        (b"a" * 20 + b"\0" + b"b" * 20, "no HTTP header can carry"),
    ],
)
def test_a_file_that_will_not_do_is_refused_whole(tmp_path: Path, content: bytes, says: str) -> None:
    """One bad line, and none of the others counts; the sentence never holds what is in the file."""
    with pytest.raises(TokenFileError) as caught:
        read(written(tmp_path / "tokens", content))
    assert says in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    """Neither a directory, nor a pipe that nobody writes to, nor what is not there."""
    os.mkfifo(tmp_path / "pipe")
    for path, says in (
        (tmp_path, "Is a directory"),
        (tmp_path / "pipe", "is no file"),
        (tmp_path / "none", "No such file"),
    ):
        with pytest.raises(TokenFileError, match=says):
            read(str(path))


@pytest.mark.parametrize(
    ("mode", "warned"), [(0o600, False), (0o400, False), (0o440, False), (0o644, True), (0o660, True)]
)
def test_permissions_that_let_others_in_are_warned_of(tmp_path: Path, mode: int, *, warned: bool) -> None:
    """Kubernetes lets a group read what it mounts; everything beyond that is worth a word."""
    tokens = read(written(tmp_path / "tokens", CURRENT.encode(), mode=mode))
    assert (f"mode {mode:04o} lets others at it" in tokens.warning) == warned
