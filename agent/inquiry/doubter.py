"""What may put a failure down to somebody else than the target: a question that is asked when a target failed."""

from collections.abc import Mapping
from typing import Protocol

from agent.config.model import Target
from agent.probers.result import Result
from agent.schedule import Measurement
from agent.verdict.found import Doubt


class Doubter(Protocol):
    """Remembers how it was while all was well, and asks when something failed. Times are seconds since boot."""

    def note(self, target: Target, result: Result, at: float) -> None:
        """A target was up."""

    def keep_only(self, targets: Mapping[str, Target]) -> None:
        """Forgets other targets than these (by id), and what these are not any more."""

    def known(self, measurement: Measurement, now: float) -> Doubt:
        """What is to be thought of a failure without asking; it is open if it takes that."""
        ...

    def learned(self, measurement: Measurement, now: float) -> Doubt:
        """The same, while it is asked: what was asked for others may have told by now."""
        return self.known(measurement, now)

    async def ask(self, measurement: Measurement, at: float) -> Doubt:
        """Asks, of a failure that was told `at`. Whose is `path` when it is to be judged like silence."""
        ...

    def end(self) -> None:
        """Asks nobody any more."""
        return
