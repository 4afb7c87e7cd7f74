"""A call at a moment of a clock, a few hundredths of a millisecond late on a machine that has time.

The loops' own timers will not do: uvloop's step by whole milliseconds, and the clock of either stands still while the
device is suspended. Hence a timerfd (timerfd_create(2)), through ctypes: Python has it from 3.13 on.
"""

import asyncio
import ctypes
import math
import os
import time
import weakref
from collections.abc import Callable

_TFD_TIMER_ABSTIME = 1  # <sys/timerfd.h>
_libc = ctypes.CDLL(None, use_errno=True)


class _Itimerspec(ctypes.Structure):
    """`struct itimerspec`: interval and value, each in seconds and nanoseconds."""

    _fields_ = (
        ("interval", ctypes.c_long),
        ("interval_nanoseconds", ctypes.c_long),
        ("seconds", ctypes.c_long),
        ("nanoseconds", ctypes.c_long),
    )


class Timer:
    """Calls `ring` on the running loop once the clock (`time.CLOCK_…`) has come to the moment that was set last.

    Raises OSError when there is no file descriptor left.
    """

    def __init__(self, clock: int, ring: Callable[[], object]) -> None:
        self._clock, self._ring = clock, ring
        self._set = math.inf
        self._spec = _Itimerspec()
        self._fd: int = _libc.timerfd_create(clock, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._close = weakref.finalize(self, os.close, self._fd)  # also when its loop was closed before it
        asyncio.get_running_loop().add_reader(self._fd, self._expired)

    def set(self, when: float) -> None:
        """Rings at `when`, seconds of the clock; at once if that is over, never at inf. What was set before is void."""
        if when == self._set:
            return
        self._set = when
        # Rounded up, so as not to ring before; all zeros would be never.
        at = 0 if when == math.inf else max(math.ceil(when * 1e9), 1)
        self._spec.seconds, self._spec.nanoseconds = divmod(at, 1_000_000_000)
        if _libc.timerfd_settime(self._fd, _TFD_TIMER_ABSTIME, ctypes.byref(self._spec), None) < 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime")

    def close(self) -> None:
        """Never rings again. On the loop that it was made on."""
        if self._close.alive:
            asyncio.get_running_loop().remove_reader(self._fd)
            self._close()

    def _expired(self) -> None:
        if time.clock_gettime(self._clock) < self._set:
            return  # it was set anew since the loop saw it
        self._set = math.nan
        try:
            self._ring()
        finally:
            if math.isnan(self._set):
                self.set(math.inf)  # setting takes the place of reading, which would be one more system call
