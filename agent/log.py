"""Log lines on stderr: with `<N>` priorities where the journal reads them (sd-daemon(3)), for people elsewhere.

No flood gets through. Lines are of one kind when one place in the code writes them: `BURST` of a kind pass at once, and
one more a minute. Of what is left out the last is written within `MINUTE`, or at the exit, with the number of all. At
level `debug` nothing is left out.

What a caller may add by `extra=`: `trouble`, the name of one that may go on: it is said at once, and while it is heard
of once a minute. `over`, its name when it ended, so that it is said at once when it comes again: both are one kind.
`kind`, for lines of one place that are each of a kind of their own, such as the problems of a configuration.
`secrets_of`, configured data such as a target, whose secrets are masked.
"""

import contextlib
import logging
import math
import os
import sys
import threading
import time
from types import TracebackType
from typing import Any, Literal, TextIO

LEVELS = ("debug", "info", "warning", "error", "critical")
BURST = 10
MINUTE = 60.0  # seconds
KINDS = 200  # that are told apart at a time
TRACEBACK = 30  # lines of a traceback, its last ones
LONGEST = 2_000  # characters of a line
_PRIORITY = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


class _Formatter(logging.Formatter):
    def __init__(self, form: str, *, priorities: bool) -> None:
        super().__init__(form, "%Y-%m-%d %H:%M:%S")
        self._priorities = priorities

    def format(self, record: logging.LogRecord) -> str:
        """Each line gets the priority, or the journal would take a traceback's lines for plain news."""
        text = super().format(record)
        if (configured := getattr(record, "secrets_of", None)) is not None:
            from agent.config.masking import Mask  # with all of `agent.config`, for which `--help` need not wait

            text = Mask(configured).text(text)
        prefix = f"<{_PRIORITY.get(record.levelno, 6)}>" if self._priorities else ""
        return "\n".join(prefix + _printable(line) for line in text.splitlines())

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line itself, before the traceback."""
        line, left_out = super().formatMessage(record), getattr(record, "left_out", 0)
        return f"{line}; the last of {left_out} like it in the last minute" if left_out else line

    def formatException(self, ei: Any) -> str:
        """The end of it, which says what happened and where."""
        lines = super().formatException(ei).splitlines()
        if (more := len(lines) - TRACEBACK) > 0:
            lines[:more] = [f"… {more} lines of the traceback left out"]
        return "\n".join(lines)


def _printable(line: str) -> str:
    """journalctl shows a line with a control character in it as `[93B blob data]`."""
    if len(line) > LONGEST:
        line = line[:LONGEST] + "…"
    if line.isprintable():
        return line
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in line)


class _Kind:
    """Lines of one kind: how many may pass, and what waits to be told."""

    __slots__ = ("due", "left_out", "may_pass", "newest", "said_until", "since")

    def __init__(self, now: float) -> None:
        self.may_pass, self.since = float(BURST), now
        self.said_until = 0.0  # until when a trouble that is heard of again is nothing new
        self.left_out = 0
        self.newest: logging.LogRecord | None = None  # of what was left out
        self.due = math.inf  # when that is told

    def refill(self, now: float) -> None:
        self.may_pass, self.since = min(self.may_pass + (now - self.since) / MINUTE, BURST), now

    def takes(self, record: logging.LogRecord, now: float) -> Literal["written", "left out", "known"]:
        """What is to become of it."""
        is_trouble = hasattr(record, "trouble")
        if is_trouble and now < self.said_until:
            return "known"
        self.said_until = now + MINUTE if is_trouble else 0.0
        self.refill(now)
        if self.newest is None and self.may_pass >= 1:
            self.may_pass -= 1
            return "written"
        if self.newest is None:
            self.due = now + MINUTE
        self.newest = record
        self.left_out += 1
        return "left out"

    def tell(self, now: float) -> logging.LogRecord:
        """The newest of what was left out, with the number of all."""
        assert self.newest is not None
        self.refill(now)
        self.may_pass = max(self.may_pass - 1, 0.0)
        record = self.newest
        record.left_out = self.left_out
        self.left_out, self.newest, self.due = 0, None, math.inf
        return record


class _SparingHandler(logging.StreamHandler[TextIO]):
    """`emit` is called with the handler's lock held; a line that is left out is not formatted."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._kinds: dict[object, _Kind] = {}
        self._swept = -math.inf
        self._timer: threading.Timer | None = None

    def emit(self, record: logging.LogRecord) -> None:
        now = time.monotonic()
        kind = self._kind(record, now)
        fate = kind.takes(record, now)
        if fate == "written":
            super().emit(record)
        elif fate == "left out":
            self._tell_at(kind.due, now)

    def close(self) -> None:
        """Tells what is not told yet."""
        with contextlib.suppress(ValueError), self.lock or contextlib.nullcontext():
            self._tell(math.inf)
            if self._timer is not None:
                self._timer.cancel()
        super().close()

    def _kind(self, record: logging.LogRecord, now: float) -> _Kind:
        key = _key(record)
        if key not in self._kinds and len(self._kinds) >= KINDS:
            if now - self._swept >= MINUTE:
                self._sweep(now)
            if len(self._kinds) >= KINDS:
                key = None  # all others
        if (kind := self._kinds.get(key)) is None:
            kind = self._kinds[key] = _Kind(now)
        return kind

    def _sweep(self, now: float) -> None:
        """Forgets kinds that were quiet for so long that they are as new."""
        self._swept = now
        for kind in self._kinds.values():
            kind.refill(now)
        self._kinds = {key: kind for key, kind in self._kinds.items() if kind.newest or kind.may_pass < BURST}

    def _tell_at(self, due: float, now: float) -> None:
        if self._timer is None:
            timer = threading.Timer(max(due - now, 0.0), self._tell_in_time)
            timer.daemon = True
            with contextlib.suppress(RuntimeError):  # no threads any more: then the exit tells it, or the next line
                timer.start()
                self._timer = timer

    def _tell_in_time(self) -> None:
        with self.lock or contextlib.nullcontext():
            self._timer = None
            now = time.monotonic()
            self._tell(now)
            if (due := min((kind.due for kind in self._kinds.values()), default=math.inf)) < math.inf:
                self._tell_at(due, now)

    def _tell(self, now: float) -> None:
        due = [kind for kind in self._kinds.values() if kind.newest is not None and kind.due <= now]
        for kind in sorted(due, key=lambda kind: kind.newest.created if kind.newest else 0.0):
            super().emit(kind.tell(time.monotonic()))


def _key(record: logging.LogRecord) -> object:
    for name in ("trouble", "over", "kind"):
        if hasattr(record, name):
            return record.name, getattr(record, name)
    return record.pathname, record.lineno


def set_up(level: str) -> None:
    """Sends the log to stderr from `level` on, one of `LEVELS`."""
    stream = logging.StreamHandler(sys.stderr) if level == "debug" else _SparingHandler(sys.stderr)
    by_journal = _read_by_journal()
    form = "%(message)s" if by_journal else "%(asctime)s %(levelname)-8s %(message)s"
    stream.setFormatter(_Formatter(form, priorities=by_journal))
    logging.basicConfig(level=level.upper(), handlers=[stream], force=True)
    if by_journal:  # or the lines of a crash had no priority
        sys.excepthook = _crashed
        threading.excepthook = lambda told: _crashed(told.exc_type, told.exc_value, told.exc_traceback)


def _crashed(kind: type[BaseException], error: BaseException | None, traceback: TracebackType | None) -> None:
    if error is not None:
        logging.critical("uptime-agent: a fault of its own", exc_info=(kind, error, traceback))


def _read_by_journal() -> bool:
    """Is stderr the very stream that `$JOURNAL_STREAM` names as `device:inode` (systemd.exec(5))?"""
    try:
        stderr = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{stderr.st_dev}:{stderr.st_ino}"
