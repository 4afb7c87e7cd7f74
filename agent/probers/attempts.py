"""Several tries of one measurement, around any prober: the option `attempts`.

A try that fails, for whatever reason, is followed by another one, until one is up or there were enough. Each has the
time that is left, divided by the tries that are left, so that one that fails early leaves more to those after it. What
failed at once is not asked again at once: whoever restarts is there a moment later, and nobody is hammered.
"""

import asyncio
import time

import msgspec

from agent.probers.prober import Prober
from agent.probers.result import Attempt, Result, ms

PAUSE = 1.0  # seconds from a try's beginning to the next one's at least; no more than half of the try's time


class Attempts:
    """Measures `most` times at most. `single` is the prober that makes one try."""

    def __init__(self, single: Prober, most: int) -> None:
        self.single, self._most = single, most
        self.type = single.type

    async def probe(self, deadline: float) -> Result:
        """Measures until `deadline` (seconds of `time.monotonic`); see `Prober`. The result is the last try's."""
        begun = began = time.monotonic()
        earlier: list[Attempt] = []
        number = 1
        while True:
            share = (deadline - began) / (self._most - number + 1)
            result = await self.single.probe(min(began + share, deadline))
            tried = [msgspec.structs.replace(each, attempt=number) for each in result.attempts]
            if result.error is None or number == self._most:
                break
            await asyncio.sleep(max(began + min(share / 2, PAUSE) - time.monotonic(), 0.0))
            if (now := time.monotonic()) >= deadline:
                break
            address = None if result.peer is None else result.peer.address
            earlier += [*tried, Attempt(address, result.phases_ms, result.error, number)]
            began, number = now, number + 1
        if number == 1:
            return result
        return msgspec.structs.replace(
            result,
            duration_ms=ms(time.monotonic() - begun),
            attempts=(*earlier, *tried),
            attempt=number,
            earlier_ms=ms(began - begun),
        )


def single(prober: Prober) -> Prober:
    """The same prober for one try."""
    return prober.single if isinstance(prober, Attempts) else prober
