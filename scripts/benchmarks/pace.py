"""A minimal clock for peers that have none: calls on an even grid, whatever became of the calls before."""

import asyncio
import signal
import time
from collections.abc import Callable

LATEST = 1.0  # seconds: a call that is later is left out, as the agent does it
# uvloop's timers step by 1 ms, and a shorter one would turn the loop without rest: what is due within half a step is
# called now, so that waiting costs nothing and the error is half a step at most.
STEP = 0.001


async def pace(rate: float, call: Callable[[int, float], None]) -> None:
    """Calls `call(number, due)` `rate` times a second until SIGTERM; `due` is in seconds since 1970."""
    loop = asyncio.get_running_loop()
    base, number, since_1970 = time.monotonic() + 0.1, 0, time.time() - time.monotonic()

    def turn() -> None:
        nonlocal number
        now = time.monotonic()
        while (due := base + number / rate) <= now + STEP / 2:
            if now - due < LATEST:
                call(number, due + since_1970)
            number += 1
        loop.call_later(max(due - now, STEP), turn)

    stopped = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    turn()
    await stopped.wait()
