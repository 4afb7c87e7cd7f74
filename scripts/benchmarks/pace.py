"""A minimal clock for peers that have none: calls on an even grid, whatever became of the calls before."""

import asyncio
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

LATEST = 1.0  # seconds: a call that is later is left out, as the agent does it


class Check(NamedTuple):
    """One check as the peer reports it. Stamps: seconds since 1970; `reported_ms`: what it says the answer took."""

    target: int
    scheduled: float
    started: float
    reported_ms: float


async def pace(rate: float, call: Callable[[int, float], None]) -> None:
    """Calls `call(number, due)` `rate` times a second until SIGTERM; `due` is of the loop's clock."""
    loop = asyncio.get_running_loop()
    base, number = loop.time() + 0.1, 0

    def turn() -> None:
        nonlocal number
        now = loop.time()
        while (due := base + number / rate) <= now:
            if now - due < LATEST:
                call(number, due)
            number += 1
        loop.call_at(due, turn)

    stopped = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    turn()
    await stopped.wait()


def keep(checks: list[Check], file: Path) -> None:
    """Writes what a peer reported."""
    file.write_text(json.dumps(checks))
