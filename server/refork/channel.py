"""What monitor, mold and worker say to each other: the whole protocol on one screen.

Each child has one ``SOCK_SEQPACKET`` socketpair with the monitor: datagram boundaries, order, an end-of-file when the
other side dies (unix(7)), and file descriptors on board (``SCM_RIGHTS``). Messages are JSON of typed structs and never
pickles, because the application that speaks here may run with fewer rights than the monitor that listens.
"""

from __future__ import annotations

import socket
from array import array
from typing import Self

import msgspec

LONGEST_MESSAGE = 16 * 1024
LONGEST_TEXT = 2_000
MOST_DESCRIPTORS = 250
"""The kernel's SCM_MAX_FD is 253."""


class Message(msgspec.Struct, frozen=True, tag=True):
    """The base of all messages; the class's name tells them apart on the wire."""


# --- from the monitor to a mold or worker -----------------------------------------------------------------------------


class Load(Message, frozen=True):
    """To an executed mold: load the application. Descriptors: scoreboard, then the listeners."""

    generation: int


class Fork(Message, frozen=True):
    """To a mold: fork a worker. Descriptor: the worker's end of its channel."""

    worker: int
    slot: int
    row: int


class Promote(Message, frozen=True):
    """To a worker about to be stopped: become a mold when drained. Descriptors: the listeners.

    ``deadline`` is on the monotonic clock, which all processes share; with ``trial`` only say what would be in the way.
    """

    generation: int
    deadline: float = 0.0
    trial: bool = False


class Retire(Message, frozen=True):
    """To a mold: end."""


# --- from a mold or worker to the monitor -----------------------------------------------------------------------------


class MoldReady(Message, frozen=True):
    """The mold's heap is sealed (or frozen, and why); it answers ``Fork`` now."""

    pid: int
    sealed: bool
    reason: str
    objects: int
    total_objects: int
    seconds: float


class MoldFailed(Message, frozen=True):
    """The application could not be loaded."""

    reason: str
    exit_code: int


class ForkFailed(Message, frozen=True):
    """The worker was not born."""

    worker: int
    reason: str


class Born(Message, frozen=True):
    """The first word of a worker."""

    pid: int


class Ready(Message, frozen=True):
    """The worker accepts requests."""


class Failed(Message, frozen=True):
    """The worker could not boot, or its loop ended with an exception."""

    reason: str


class Drained(Message, frozen=True):
    """The worker serves nothing any more and passed the audit; it seals its heap now."""


class PromotionRefused(Message, frozen=True):
    """The drained worker must not be forked from; it ends."""

    reason: str


class Tried(Message, frozen=True):
    """The drained worker was only to be looked at; it ends. One sentence a finding."""

    findings: tuple[str, ...]


type AnyMessage = (
    Load | Fork | Promote | Retire
    | MoldReady | MoldFailed | ForkFailed | Born | Ready | Failed | Drained | PromotionRefused | Tried
)  # fmt: skip

_decoder: msgspec.json.Decoder[AnyMessage] = msgspec.json.Decoder(AnyMessage.__value__)
_encoder = msgspec.json.Encoder()


class Garbled(Exception):
    """A datagram that is no message: the other side is not to be trusted any more."""


class Channel:
    """One end of the line. Descriptors that arrive are the receiver's to close."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end

    @classmethod
    def pair(cls) -> tuple[Self, socket.socket]:
        """Return the monitor's channel, which never blocks, and the raw end for the child."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        return cls(ours), theirs

    def fileno(self) -> int:
        """Return the descriptor, for a selector."""
        return self._socket.fileno()

    def send(self, message: Message, fds: tuple[int, ...] = ()) -> bool:
        """Send a message; False if the other side is gone or has stopped reading."""
        try:
            socket.send_fds(self._socket, [_encoder.encode(message)], fds, socket.MSG_NOSIGNAL)
        except OSError:
            return False
        return True

    def receive(self, *, wait: bool = True) -> tuple[AnyMessage, tuple[int, ...]] | None:
        """Return the next message with its descriptors, or None at the end of the file.

        Raises:
            BlockingIOError: nothing has arrived, on a channel that does not block or with ``wait=False``.
            Garbled: what arrived is no message; its descriptors are closed.
        """
        flags = socket.MSG_CMSG_CLOEXEC | (0 if wait else socket.MSG_DONTWAIT)
        space = socket.CMSG_SPACE(MOST_DESCRIPTORS * array("i").itemsize)
        try:
            data, ancillary, _, _ = self._socket.recvmsg(LONGEST_MESSAGE, space, flags)
        except ConnectionError:
            return None
        received = array("i")
        for level, kind, payload in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                received.frombytes(payload[: len(payload) - len(payload) % received.itemsize])
        if not data:
            return None
        try:
            # A message cut short at LONGEST_MESSAGE is no JSON either.
            return _decoder.decode(data), tuple(received)
        except msgspec.DecodeError as error:
            close_all(tuple(received))
            raise Garbled(str(error)) from None

    def close(self) -> None:
        """Hang up."""
        self._socket.close()


def close_all(fds: tuple[int, ...]) -> None:
    """Close descriptors that came with a message."""
    for fd in fds:
        socket.close(fd)


def clip(text: str) -> str:
    """Shorten a text so that it fits a message."""
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "…"
