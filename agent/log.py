"""Log lines on stderr: with `<N>` priorities where the journal reads them (sd-daemon(3)), for people elsewhere."""

import logging
import os
import sys

LEVELS = ("debug", "info", "warning", "error", "critical")
_PRIORITY = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


class _JournalFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """Each line gets the priority, or the journal would take a traceback's lines for plain news."""
        prefix = f"<{_PRIORITY.get(record.levelno, 6)}>"
        return "\n".join(prefix + line for line in super().format(record).splitlines())


def set_up(level: str) -> None:
    """Sends the log to stderr from `level` on, one of `LEVELS`."""
    stream = logging.StreamHandler(sys.stderr)
    if _read_by_journal():
        stream.setFormatter(_JournalFormatter("%(message)s"))
    else:
        stream.setFormatter(logging.Formatter("%(asctime)s %(levelname)-8s %(message)s", "%Y-%m-%d %H:%M:%S"))
    logging.basicConfig(level=level.upper(), handlers=[stream], force=True)


def _read_by_journal() -> bool:
    """Is stderr the very stream that `$JOURNAL_STREAM` names as `device:inode` (systemd.exec(5))?"""
    try:
        stderr = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{stderr.st_dev}:{stderr.st_ino}"
