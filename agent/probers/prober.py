"""What a prober is."""

from typing import Protocol

from agent.probers.result import Result


class Prober(Protocol):
    """Measures one target. `type` is what records call it."""

    type: str

    async def probe(self, deadline: float) -> Result:
        """Measures once, until `deadline` (seconds of `time.monotonic`) at most.

        Returns a `Result` for everything the world can do to it; only cancellation passes through.
        """
