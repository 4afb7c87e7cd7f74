"""The log as the agent writes it, for tests of what is in it and what is left out."""

import contextlib
import io
import logging
import re
from collections.abc import Iterator

from agent import log


class Written(io.StringIO):
    """What was written so far."""

    @property
    def messages(self) -> list[str]:
        """Its lines, without time and level."""
        return [re.sub(r"^[-\d]+ [:\d]+ [A-Z]+ +", "", line) for line in self.getvalue().splitlines()]


@contextlib.contextmanager
def written_log() -> Iterator[Written]:
    """The log of this process, from level `info` on, beside what pytest makes of it."""
    root, written = logging.getLogger(), Written()
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()  # or they would be closed
    with contextlib.redirect_stderr(written):
        log.set_up("info")
    (ours,) = root.handlers
    root.handlers += handlers
    try:
        yield written
    finally:
        root.removeHandler(ours)
        ours.close()
        root.setLevel(level)
