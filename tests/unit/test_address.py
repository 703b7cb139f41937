"""refork.address reads where an endpoint listens, and says what is wrong with anything else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refork.address import AddressError, TcpAddress, UnixAddress, own_address, parse, parse_unix


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("unix:@name", UnixAddress("@name")),
        ("unix:/run/app.sock", UnixAddress("/run/app.sock")),
        ("@name", UnixAddress("@name")),
        ("/run/app.sock", UnixAddress("/run/app.sock")),
        (":9090", TcpAddress("", 9090)),
        ("localhost:0", TcpAddress("localhost", 0)),
        ("127.0.0.1:9090", TcpAddress("127.0.0.1", 9090)),
        ("[::1]:9090", TcpAddress("::1", 9090)),
    ],
)
def test_an_address_is_read_and_written_back(text: str, address: UnixAddress | TcpAddress) -> None:
    """Every spelling in the documentation is understood, and what is printed can be given again."""
    assert parse(text) == address
    assert parse(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        "", "9090", "host", "host:", "host:-1", "host:65536", "host:9 ", "host:\u0663", "::1:9090",
        "unix:", "unix:@", "unix:/", "unix:relative", "unix:@a\0b", "unix:/" + "x" * 107, ":0000000000080",
    ],
)  # fmt: skip
def test_what_is_no_address_is_an_error_that_names_it(text: str) -> None:
    """A mistake in the configuration is answered with a sentence."""
    with pytest.raises(AddressError, match=r"no address|no unix socket|too long"):
        parse(text)


@given(st.text())
def test_any_text_is_an_address_or_an_address_error(text: str) -> None:
    """Nothing else is ever raised."""
    try:
        parse(text)
    except AddressError:
        return


@given(st.integers(1, 2**22), st.integers(0, 9))
def test_the_pid_is_in_the_name_that_a_server_chooses(pid: int, attempt: int) -> None:
    """This is how reforkctl finds a server."""
    assert parse_unix(str(own_address(pid, attempt=attempt))).named_pid == pid


@pytest.mark.parametrize(
    "name", ["@refork/", "@refork/0", "@refork/1.x", "@refork/12345678901", "@other/1", "/refork/1"]
)
def test_other_names_hold_no_pid(name: str) -> None:
    """A name that no server would choose is nobody's."""
    assert UnixAddress(name).named_pid is None
