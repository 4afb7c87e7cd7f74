"""One edge-triggered epoll and one timer for all that a loop has in flight, instead of the loop's own watching.

When many events come together, the moment of all of them is taken first, and not each after the work on those before
it. What is ugly about this stays in this file:

- An edge is told once. So whoever is told reads until there is nothing left, or asks to be told again.
- epoll names descriptors, and a descriptor that was closed may be another socket a moment later. So what one poll told
  is matched to its owners before the first of them is worked on.
- Deadlines stand in a heap, for one timer; those that are not needed any more are left there until they are due, or
  are the greater part.
"""

import asyncio
import heapq
import math
import select
import time
from typing import Any, Generic, Protocol, TypeVar
from weakref import WeakKeyDictionary

from agent.timer import Timer

FAILED = select.EPOLLERR | select.EPOLLHUP

_MOST_EVENTS = 256  # taken from one poll
_FEW = 64  # deadlines that are not worth sorting out


class End(Protocol):
    """Who is told what comes of a socket. What it raises comes back to it as `failed`."""

    def failed(self, error: Exception) -> None:
        """There is a bug, or what else the kind of socket says."""

    def expired(self) -> None:
        """The deadline came."""


E = TypeVar("E", bound=End)


class Watched(Generic[E]):
    """A socket whose events and deadline are watched, until it is closed. Moments are seconds of `time.monotonic`.

    Each kind sets all fields by itself: to call this one for it would be dearer. `_end` is None once it is closed.
    """

    __slots__ = ("_deadline", "_end", "_poll")

    _deadline: float
    _end: E | None
    _poll: "Poll"

    def look(self, events: int, now: float) -> None:
        """What epoll told, at that moment."""
        raise NotImplementedError

    def expire_at(self, deadline: float) -> None:
        """Sets the deadline anew."""
        self._deadline = deadline
        self._poll.expire_at(deadline, self)

    def look_at_deadline(self) -> None:
        """The deadline came."""
        if self._end is not None:
            self._end.expired()

    def crash(self, error: Exception) -> None:
        """What was told raised."""
        if self._end is not None:
            self._end.failed(error)

    def is_open_until(self, deadline: float) -> bool:
        """Whether this deadline still matters: it was neither closed since, nor set anew."""
        return self._end is not None and deadline == self._deadline


class Poll:
    """The epoll and the deadlines of one loop."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watched: dict[int, Watched[Any]] = {}
        self._deadlines: list[tuple[float, int, Watched[Any]]] = []  # deadline, a number that settles ties, whose
        self._numbers = 0
        self._timer = Timer(time.CLOCK_MONOTONIC, self._expire)
        asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._look)

    def add(self, watched: Watched[Any], fd: int, events: int) -> None:
        """Watches a descriptor for these events, edge-triggered. Raises OSError."""
        self._epoll.register(fd, events)
        self._watched[fd] = watched

    def remove(self, fd: int) -> None:
        """Watches it no more; to be followed by its closing, with which the kernel forgets it."""
        self._watched.pop(fd, None)

    def tell_again(self, fd: int, events: int) -> None:
        """Tells again what it told, with the next poll."""
        if fd in self._watched:
            self._epoll.modify(fd, events)

    def expire_at(self, deadline: float, watched: Watched[Any]) -> None:
        """Tells it at the deadline, unless that does not matter any more by then."""
        self._numbers += 1
        heapq.heappush(self._deadlines, (deadline, self._numbers, watched))
        if len(self._deadlines) > 2 * len(self._watched) + _FEW:
            self._deadlines = [place for place in self._deadlines if place[2].is_open_until(place[0])]
            heapq.heapify(self._deadlines)
        self._timer.set(self._deadlines[0][0])

    def _look(self) -> None:
        events = self._epoll.poll(0, _MOST_EVENTS)
        now = time.monotonic()
        for watched, told in [(self._watched[fd], told) for fd, told in events if fd in self._watched]:
            try:
                watched.look(told, now)
            except Exception as error:  # noqa: BLE001  (told to whoever waits for it; the others get their events)
                watched.crash(error)

    def _expire(self) -> None:
        self._look()  # what came in time, though we were late, counts
        now = time.monotonic()
        while self._deadlines:
            deadline, _, watched = self._deadlines[0]
            matters = watched.is_open_until(deadline)
            if matters and deadline > now:
                break
            heapq.heappop(self._deadlines)
            if matters:
                try:
                    watched.look_at_deadline()
                except Exception as error:  # noqa: BLE001  (told as in `_look`; the others get their deadlines)
                    watched.crash(error)
        self._timer.set(self._deadlines[0][0] if self._deadlines else math.inf)


_polls: WeakKeyDictionary[asyncio.AbstractEventLoop, Poll] = WeakKeyDictionary()


def running() -> Poll:
    """That of the running loop, made when it is first asked for. Raises OSError without file descriptors for it."""
    loop = asyncio.get_running_loop()
    poll = _polls.get(loop)
    if poll is None:
        poll = _polls[loop] = Poll()
    return poll
