"""TCP connections the cheapest way: own sockets in the poll that all share, instead of the loop's transports.

Those cost a measurement a tenth of its time more, in system calls that it has no use for and in turns of the loop.
`socket.SocketType` is the socket without Python's own wrapping, which a measurement would pay for twice.
"""

import errno
import math
import os
import select
import socket
import struct
import time
from typing import Protocol

from agent.device.source import leave_by
from agent.probers.poll import FAILED, Watched, running

_EVENTS = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
_READABLE = select.EPOLLIN | select.EPOLLRDHUP | FAILED
_ENDING = select.EPOLLRDHUP | FAILED
_STREAM = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
_PIECE = 64 << 10  # bytes that are read at once
_PIECES = 4  # read of one connection before the others have their turn
_TCP_INFO = struct.Struct("=24xI72xI")  # of `struct tcp_info`: tcpi_unacked and tcpi_total_retrans


class End(Protocol):
    """Who is at this end. Moments are seconds of `time.monotonic`. What it raises comes back to it as `failed`."""

    def connected(self, now: float) -> None:
        """There is a connection."""

    def received(self, data: bytes, now: float) -> None:
        """The peer sent this."""

    def ended(self, now: float) -> None:
        """The peer sends no more."""

    def emptied(self, now: float) -> None:
        """The kernel has taken all that was written."""

    def failed(self, error: Exception) -> None:
        """The connection could not be made, or broke; other than OSError: there is a bug."""

    def expired(self) -> None:
        """The deadline came."""


class Wire(Watched[End]):
    """One connection. Whoever made it closes it, whatever happens."""

    __slots__ = ("_connected", "_fd", "_socket", "_unsent")

    def __init__(self, end: End) -> None:
        self._end = end
        self._socket: socket.SocketType | None = None
        self._fd = -1
        self._connected = False
        self._unsent = b""
        self._deadline = math.inf

    def connect(self, address: str, port: int, deadline: float, source: str | None = None) -> None:
        """Begins to connect to a numeric address, from a `source`. Raises OSError when that fails at once."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._poll = running()
        self._socket = made = socket.SocketType(family, _STREAM)
        if source is not None:
            leave_by(made, source)
        number = made.connect_ex((address, port))
        if number not in (0, errno.EINPROGRESS):
            raise OSError(number, os.strerror(number))
        self._fd = made.fileno()
        self._poll.add(self, self._fd, _EVENTS)
        self.expire_at(deadline)

    def write(self, data: bytes) -> bool:
        """Whether the kernel took all of it; else `emptied` will tell."""
        if self._unsent:
            self._unsent += data
            return False
        if self._socket is None or self._end is None:
            return False
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            sent = 0
        except BrokenPipeError:
            return False  # the peer has hung up; what it said before that, and that it did, is still to be read
        except OSError as error:
            self._end.failed(error)
            return False
        self._unsent = data[sent:]
        return not self._unsent

    def resent(self) -> bool:
        """Whether something had to be sent again, or is about to be: it was not acknowledged (tcp(7), TCP_INFO)."""
        if self._socket is None:
            return False
        info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
        return any(_TCP_INFO.unpack(info))

    def close(self) -> None:
        """Hangs up at once; nothing is told any more."""
        if self._socket is not None:
            self._poll.remove(self._fd)
            self._socket.close()
        self._socket = self._end = None
        self._deadline = math.inf

    def look(self, events: int, now: float) -> None:
        """See `Watched`."""
        if self._socket is None or self._end is None:
            return
        if not self._connected:
            number = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) if events & FAILED else 0
            if number:
                self._end.failed(OSError(number, os.strerror(number)))
                return
            self._connected = True
            self._end.connected(now)
            events &= ~select.EPOLLOUT
        # First, or writing would meet the reset that followed an answer, which then nobody would see.
        if events & _READABLE:
            self._read(events, now)
        if events & select.EPOLLOUT and self._unsent and self._end is not None:
            data, self._unsent = self._unsent, b""
            if self.write(data):
                self._end.emptied(time.monotonic())

    def _read(self, events: int, now: float) -> None:
        for _ in range(_PIECES):
            if self._socket is None or self._end is None:
                return
            try:
                data = self._socket.recv(_PIECE)
            except BlockingIOError:
                return
            except BrokenPipeError:  # it hung up first, and then did so rudely
                data = b""
            except OSError as error:
                self._end.failed(error)
                return
            if not data:
                self._end.ended(now)
                return
            self._end.received(data, now)
            if len(data) < _PIECE and not events & _ENDING:
                return
        self._poll.tell_again(self._fd, _EVENTS)
