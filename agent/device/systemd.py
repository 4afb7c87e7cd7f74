"""systemd, and the only file that knows it: readiness, reloads, the status line, the watchdog.

The protocol of sd_notify(3) is a datagram; the library for it leaves its socket blocking and unclosed, and
drops what is not Latin-1.
"""

import contextlib
import os
import socket
import time
from pathlib import Path

LONGEST = 4000  # bytes of a status line: the manager ignores messages of more than 4,096
BUSY = 0.5  # seconds that the manager may keep us waiting with what is said only once


def runtime_directory() -> Path | None:
    """Where what need not survive a boot goes (RuntimeDirectory=, systemd.exec(5); the first of a list), if given."""
    given = os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    return Path(given) if given else None


class Systemd:
    """Talks to the service manager that started us; without one it says nothing to nobody."""

    def __init__(self) -> None:
        # WatchdogSec= in microseconds; of another process of the service it is not ours (sd_watchdog_enabled(3)).
        ours = os.environ.get("WATCHDOG_PID") in (None, str(os.getpid()))
        usec = os.environ.get("WATCHDOG_USEC", "")
        self.watchdog = int(usec) / 1e6 if ours and usec.isdecimal() else 0.0  # seconds; 0: none
        self._address = os.environ.get("NOTIFY_SOCKET", "")
        if self._address.startswith("@"):  # in the abstract namespace (unix(7))
            self._address = "\0" + self._address[1:]
        self._status = ""

    def ready(self) -> None:
        """Started, or done with a reload."""
        self._notify("READY=1", wait=BUSY)

    def reloading(self) -> None:
        """A reload begins; `ready` ends it. The stamp tells it from one before (systemd 253 and later want it)."""
        self._notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}", wait=BUSY)

    def stopping(self) -> None:
        """A stop begins."""
        self._notify("STOPPING=1", wait=BUSY)

    def alive(self) -> None:
        """To be said more often than each `watchdog` seconds."""
        self._notify("WATCHDOG=1")

    def status(self, line: str) -> None:
        """What `systemctl status` shows."""
        if line != self._status:
            self._status = line
            line = line.replace("\n", " ")  # it would be another assignment
            self._notify("STATUS=" + line.encode(errors="replace")[:LONGEST].decode(errors="ignore"))

    def _notify(self, state: str, wait: float = 0.0) -> None:
        """What is said again and again is left out when the manager is busy; what is said once waits a little."""
        if self._address:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
                manager.settimeout(wait)
                manager.sendto(state.encode(errors="replace"), self._address)
