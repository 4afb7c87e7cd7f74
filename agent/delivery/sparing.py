"""A log for trouble that goes on: each kind is said at once, and then no more often than a minute apart."""

import logging

from agent.device.clock import boottime

SAY_AGAIN = 60.0


class SparingLog:
    """Writes to `log`. The caller keeps the number of kinds small: each is remembered."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._said: dict[object, float] = {}

    def say(self, kind: object, level: int, text: str, *arguments: object) -> None:
        """Logs, unless this kind of trouble was said within the last minute."""
        now = boottime()
        if now - self._said.get(kind, -SAY_AGAIN) >= SAY_AGAIN:
            self._said[kind] = now
            self._log.log(level, text, *arguments)

    def over(self, kind: object) -> bool:
        """This kind is over, and is said at once when it comes again. Whether it had been said."""
        return self._said.pop(kind, None) is not None
