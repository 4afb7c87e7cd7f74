"""The device's clocks: the wall clock for stamps, boot time for everything that is measured or waited for.

A small device often has no battery for its clock: it starts at the last saved time, or in 1970, and jumps when NTP
answers. Records say whether the wall clock could be trusted, and carry the boot time, which never jumps.
"""

import ctypes
import os
import time
from functools import lru_cache
from pathlib import Path
from typing import Literal

import msgspec

# timesyncd makes this file at its first successful synchronization (systemd-timesyncd.service(8)).
TIMESYNC_FILE = "/run/systemd/timesync/synchronized"
_STA_UNSYNC = 0x0040  # <linux/timex.h>


class _Timex(ctypes.Structure):
    """`struct timex` of adjtimex(2) as far as it is read here, padded beyond its real size."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_char * 256),
    )


class ClockState(msgspec.Struct, frozen=True):
    """`max_error_ms` is the kernel's own bound of the error, None when it has none."""

    synchronized: bool
    max_error_ms: float | None


def boottime() -> float:
    """Seconds since boot, suspend included (CLOCK_BOOTTIME)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    """The kernel's random id of this boot; empty where there is none (random(4))."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def ahead() -> float:
    """Seconds by which the wall clock is ahead of boot time: what is added to a boot time makes a wall time."""
    return time.time() - boottime()


def stamp(wall: float) -> str:
    """Seconds since 1970 as RFC 3339 in UTC with microseconds: `2026-11-23T16:33:11.000412Z`."""
    seconds, microseconds = divmod(round(wall * 1e6), 1_000_000)
    return f"{_second(seconds)}.{microseconds:06d}Z"


@lru_cache(maxsize=256)
def _second(seconds: int) -> str:
    moment = time.gmtime(seconds)
    return f"{moment.tm_year:04d}{time.strftime('-%m-%dT%H:%M:%S', moment)}"  # %Y has fewer digits before the year 1000


STEP = 0.5  # seconds by which the wall clock must be set for it to be told; less is the slewing of NTP


class Clock:
    """Tells whether the wall clock is right, and when it was set; asks the system at most once a second.

    `mode`: `yes` and `no` are the operator's word; `auto` asks the kernel (adjtimex), and timesyncd's file where the
    kernel does not say yes or a sandbox forbids the question.
    """

    def __init__(self, mode: Literal["auto", "yes", "no"] = "auto") -> None:
        self.mode = mode
        self._state = ClockState(False, None)
        self._asked = -1.0
        self._ahead = ahead()

    def step(self) -> float | None:
        """Seconds by which the wall clock was set since the last call; None when it was not."""
        before, self._ahead = self._ahead, ahead()
        step = self._ahead - before
        return step if abs(step) >= STEP else None

    def state(self) -> ClockState:
        """The state now, at most one second old."""
        now = boottime()
        if self._asked < 0 or now - self._asked >= 1.0:
            self._asked = now
            kernel = _kernel_state()
            if self.mode == "auto":
                self._state = kernel
            else:
                agrees = self.mode == "yes" and kernel.synchronized
                self._state = ClockState(self.mode == "yes", kernel.max_error_ms if agrees else None)
        return self._state


def _kernel_state() -> ClockState:
    timex = _Timex()
    # A failure (-1) is not told apart: a sandbox that forbids adjtimex and a kernel without it both leave the file.
    if _libc().adjtimex(ctypes.byref(timex)) >= 0 and not timex.status & _STA_UNSYNC:
        return ClockState(True, timex.maxerror / 1000)
    return ClockState(os.path.exists(TIMESYNC_FILE), None)


@lru_cache(maxsize=1)
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
