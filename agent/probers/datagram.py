"""A connected socket of datagrams in the poll that all share, with what ICMP said about what was sent through it."""

import math
import select
import socket
import struct
import time
from typing import Protocol

from agent.probers.icmp_packet import RECVERR, Unreachable, unreachable
from agent.probers.poll import FAILED, Watched, running
from agent.probers.result import Attribution

_EVENTS = select.EPOLLIN | select.EPOLLET
_LARGEST = 1 << 16
_MOST_AT_ONCE = 16  # read of one socket before the others have their turn
_ANCILLARY = 512  # bytes that the kernel tells besides
_TIMESTAMPNS = 35  # <asm-generic/socket.h>
_TIMESPEC = struct.Struct("@ll")


class End(Protocol):
    """Who is at this end. Moments are seconds of `time.monotonic`. What it raises comes back to it as `failed`."""

    def received(self, data: bytes, now: float) -> None:
        """The peer sent this."""

    def told(self, error: Unreachable, about: bytes, now: float) -> None:
        """ICMP says that something does not arrive, which begins with this, its IP and UDP header left out."""

    def failed(self, error: Exception) -> None:
        """There is a bug."""

    def expired(self) -> None:
        """The deadline came."""


class Datagrams(Watched[End]):
    """Takes a socket that is not connected yet. Whoever made it closes it, whatever happens."""

    __slots__ = ("_here", "_peer", "_socket")

    def __init__(self, end: End, made: socket.socket) -> None:
        self._end = end
        self._poll = running()
        self._socket: socket.socket | None = made
        self._peer = self._here = ""
        self._deadline = math.inf

    def connect(self, address: str, port: int, *, stamped: bool = False) -> None:
        """Connects it, which sends nothing. Raises OSError, which is this device's fault.

        `stamped`: a moment is when the kernel had the datagram, and not when the loop came to read it.
        """
        assert self._socket is not None
        self._socket.setblocking(False)
        self._socket.setsockopt(*RECVERR[self._socket.family], 1)
        if stamped:
            self._socket.setsockopt(socket.SOL_SOCKET, _TIMESTAMPNS, 1)
        self._socket.connect((address, port))
        family = self._socket.family
        self._peer = socket.inet_ntop(family, socket.inet_pton(family, address))
        self._here = self._socket.getsockname()[0]
        self._poll.add(self, self._socket.fileno(), _EVENTS)

    def who_says(self, error: Unreachable) -> tuple[Attribution, str]:
        """To whom an error is put down, and a sentence for people."""
        if error.by == self._peer:
            return "target", f"{error.by} says: {error.why}"
        if error.by != self._here:
            return "path", f"{error.by} says: {error.why}"
        # This device says so itself when its neighbour, which may be the router, does not answer; else it is
        # its firewall.
        return "path" if error.of_a_neighbour else "local", f"{error.by} (this device) says: {error.why}"

    def send(self, data: bytes) -> bool:
        """Whether it was sent; not so while there is no room. Raises OSError, which is this device's fault."""
        for last in (False, True):
            if self._socket is None:
                break
            try:
                self._socket.send(data)
            except BlockingIOError:
                break
            except OSError:
                if last:
                    raise
                self._hear(time.monotonic())  # the first error may be ICMP's, about what was sent before
            else:
                return True
        return False

    def close(self) -> None:
        """Nothing is told any more."""
        if self._socket is not None:
            self._poll.remove(self._socket.fileno())
            self._socket.close()
        self._socket = self._end = None
        self._deadline = math.inf

    def look(self, events: int, now: float) -> None:
        """See `Watched`."""
        if events & FAILED:
            self._hear(now)
        for _ in range(_MOST_AT_ONCE):
            if self._socket is None or self._end is None:
                return
            try:
                data, ancillary, _, source = self._socket.recvmsg(_LARGEST, _ANCILLARY)
            except BlockingIOError:
                return
            except OSError:  # ICMP's again, of which more was heard already
                continue
            # A ping socket takes them from anyone.
            if source[0].partition("%")[0] == self._peer:
                self._end.received(data, _moment(ancillary, now))
        if self._socket is not None:
            self._poll.tell_again(self._socket.fileno(), _EVENTS)

    def _hear(self, now: float) -> None:
        """Reads what ICMP said."""
        for _ in range(_MOST_AT_ONCE):
            if self._socket is None or self._end is None:
                return
            try:
                about, ancillary, _, _ = self._socket.recvmsg(_LARGEST, _ANCILLARY, socket.MSG_ERRQUEUE)
            except OSError:
                break
            if (error := unreachable(ancillary)) is not None:
                self._end.told(error, about, now)
        else:
            if self._socket is not None:
                self._poll.tell_again(self._socket.fileno(), _EVENTS)
        if self._socket is not None:
            self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # takes the error away


def _moment(ancillary: list[tuple[int, int, bytes]], now: float) -> float:
    """When it came, by the kernel's stamp if there is one; the wall clock counts no more than the time since that."""
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, _TIMESTAMPNS) and len(data) >= _TIMESPEC.size:
            seconds, nanoseconds = _TIMESPEC.unpack_from(data)
            since: float = (time.time_ns() - seconds * 1_000_000_000 - nanoseconds) / 1e9
            return time.monotonic() - since
    return now
