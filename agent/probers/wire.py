"""TCP connections the cheapest way: own sockets in one edge-triggered epoll instead of the loop's transports.

The loop's transports cost a measurement a tenth of its time more, in system calls that it has no use for and in turns
of the loop; and when many events come together, each is told after the work on those before it. Here the moment of all
of them is taken first. What is ugly about this stays in this file:

- An edge is told once. So whoever is told reads until there is nothing left, or asks to be told again.
- epoll names descriptors, and a descriptor that was closed may be another connection a moment later. So what one poll
  told is matched to its connections before the first of them is worked on.
- Deadlines stand in a heap, for one timer; those that are not needed any more are left there until they are due, or
  are the greater part.
- `socket.SocketType` is the socket without Python's own wrapping, which a measurement would pay for twice.
"""

import asyncio
import errno
import heapq
import math
import os
import select
import socket
import time
from typing import Protocol
from weakref import WeakKeyDictionary

from agent.timer import Timer

_EVENTS = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
_FAILED = select.EPOLLERR | select.EPOLLHUP
_READABLE = select.EPOLLIN | select.EPOLLRDHUP | _FAILED
_ENDING = select.EPOLLRDHUP | _FAILED
_STREAM = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
_PIECE = 64 << 10  # bytes that are read at once
_PIECES = 4  # read of one connection before the others have their turn
_MOST_EVENTS = 256  # taken from one poll
_FEW = 64  # deadlines that are not worth sorting out


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


class Wire:
    """One connection. Whoever made it closes it, whatever happens."""

    __slots__ = ("_connected", "_deadline", "_end", "_fd", "_poll", "_socket", "_unsent")

    def __init__(self, end: End) -> None:
        self._end: End | None = end
        self._poll: _Poll
        self._socket: socket.SocketType | None = None
        self._fd = -1
        self._connected = False
        self._unsent = b""
        self._deadline = math.inf

    def connect(self, address: str, port: int, deadline: float) -> None:
        """Begins to connect to a numeric address. Raises OSError when that fails at once."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._poll = _running()
        self._socket = made = socket.SocketType(family, _STREAM)
        number = made.connect_ex((address, port))
        if number not in (0, errno.EINPROGRESS):
            raise OSError(number, os.strerror(number))
        self._fd = made.fileno()
        self._poll.add(self, self._fd)
        self.expire_at(deadline)

    def expire_at(self, deadline: float) -> None:
        """Sets the deadline anew: seconds of `time.monotonic`."""
        self._deadline = deadline
        self._poll.expire_at(deadline, self)

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

    def close(self) -> None:
        """Hangs up at once; nothing is told any more."""
        if self._socket is not None:
            self._poll.remove(self._fd)
            self._socket.close()
        self._socket = self._end = None
        self._deadline = math.inf

    def look(self, events: int, now: float) -> None:
        """What epoll told, at that moment."""
        if self._socket is None or self._end is None:
            return
        if not self._connected:
            number = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) if events & _FAILED else 0
            if number:
                self._end.failed(OSError(number, os.strerror(number)))
                return
            self._connected = True
            self._end.connected(now)
        elif events & select.EPOLLOUT and self._unsent:
            data, self._unsent = self._unsent, b""
            if self.write(data):
                self._end.emptied(time.monotonic())
        if events & _READABLE:
            self._read(events, now)

    def look_at_deadline(self) -> None:
        """The deadline came."""
        if self._end is not None:
            self._end.expired()

    def crash(self, error: Exception) -> None:
        """What was told raised."""
        if self._end is not None:
            self._end.failed(error)

    def is_open_until(self, deadline: float) -> bool:
        """Whether this deadline still matters: it was neither hung up since, nor set anew."""
        return self._end is not None and deadline == self._deadline

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
        self._poll.tell_again(self._fd)


class _Poll:
    """The epoll and the deadlines of one loop."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._wires: dict[int, Wire] = {}
        self._deadlines: list[tuple[float, int, Wire]] = []  # deadline, a number that settles ties, whose
        self._numbers = 0
        self._timer = Timer(time.CLOCK_MONOTONIC, self._expire)
        asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._look)

    def add(self, wire: Wire, fd: int) -> None:
        self._epoll.register(fd, _EVENTS)
        self._wires[fd] = wire

    def remove(self, fd: int) -> None:
        self._wires.pop(fd, None)  # the kernel forgets it when it is closed

    def tell_again(self, fd: int) -> None:
        if fd in self._wires:
            self._epoll.modify(fd, _EVENTS)

    def expire_at(self, deadline: float, wire: Wire) -> None:
        self._numbers += 1
        heapq.heappush(self._deadlines, (deadline, self._numbers, wire))
        if len(self._deadlines) > 2 * len(self._wires) + _FEW:
            self._deadlines = [place for place in self._deadlines if place[2].is_open_until(place[0])]
            heapq.heapify(self._deadlines)
        self._timer.set(self._deadlines[0][0])

    def _look(self) -> None:
        events = self._epoll.poll(0, _MOST_EVENTS)
        now = time.monotonic()
        for wire, told in [(self._wires[fd], told) for fd, told in events if fd in self._wires]:
            try:
                wire.look(told, now)
            except Exception as error:  # noqa: BLE001  (told to whoever waits for it; the others get their events)
                wire.crash(error)

    def _expire(self) -> None:
        self._look()  # what came in time, though we were late, counts
        now = time.monotonic()
        while self._deadlines:
            deadline, _, wire = self._deadlines[0]
            matters = wire.is_open_until(deadline)
            if matters and deadline > now:
                break
            heapq.heappop(self._deadlines)
            if matters:
                wire.look_at_deadline()
        self._timer.set(self._deadlines[0][0] if self._deadlines else math.inf)


_polls: WeakKeyDictionary[asyncio.AbstractEventLoop, _Poll] = WeakKeyDictionary()


def _running() -> _Poll:
    """That of the running loop, made at its first connection. Raises OSError without file descriptors for it."""
    loop = asyncio.get_running_loop()
    poll = _polls.get(loop)
    if poll is None:
        poll = _polls[loop] = _Poll()
    return poll
