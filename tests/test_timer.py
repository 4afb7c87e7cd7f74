"""The timer rings on time on both loops, never early, and only for what was set last."""

import asyncio
import gc
import math
import os
import time

import pytest
import uvloop

from agent.timer import Timer

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
CLOCKS = {"boot": time.CLOCK_BOOTTIME, "monotonic": time.CLOCK_MONOTONIC}


@pytest.fixture(params=LOOPS)
def runner(request):
    with asyncio.Runner(loop_factory=LOOPS[request.param]) as running:
        yield running


@pytest.mark.parametrize("clock", CLOCKS)
def test_rings_at_its_time(runner, clock):
    """Each time it is set it rings once, not before, and soon after."""
    late = []

    async def ringing():
        rang = asyncio.Event()
        timer = Timer(CLOCKS[clock], rang.set)
        for wait in (0.0, 0.0003, 0.01, 0.1):
            when = time.clock_gettime(CLOCKS[clock]) + wait
            timer.set(when)
            await asyncio.wait_for(rang.wait(), 5)
            late.append(time.clock_gettime(CLOCKS[clock]) - when)
            rang.clear()
        await asyncio.sleep(0.05)
        assert not rang.is_set()
        timer.close()

    runner.run(ringing())
    assert min(late) >= 0
    assert sorted(late)[1] < 0.05


def test_what_was_set_last_counts(runner):
    """Set anew it rings for the new moment, earlier or later; at once for one that is over, and never for never."""

    async def ringing():
        rang = []
        timer = Timer(time.CLOCK_BOOTTIME, lambda: rang.append(time.clock_gettime(time.CLOCK_BOOTTIME)))
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        timer.set(now + 0.02)
        timer.set(now + 0.2)
        await asyncio.sleep(0.1)
        assert rang == []
        timer.set(now + 0.11)
        await asyncio.sleep(0.3)
        assert len(rang) == 1
        timer.set(now + 0.5)
        timer.set(math.inf)
        await asyncio.sleep(0.2)
        assert len(rang) == 1
        for over in (now, 0.0, -1.0):
            timer.set(over)
            await asyncio.sleep(0.05)
        assert len(rang) == 4
        timer.set(now + 0.9)
        timer.close()
        timer.close()
        await asyncio.sleep(0.2)
        assert len(rang) == 4

    runner.run(ringing())


@pytest.mark.parametrize("loop", LOOPS)
def test_leaves_no_descriptor(loop):
    """A timer that nobody closed goes with its loop."""

    async def made():
        Timer(time.CLOCK_BOOTTIME, lambda: None).set(time.clock_gettime(time.CLOCK_BOOTTIME) + 60)

    def once():
        with asyncio.Runner(loop_factory=LOOPS[loop]) as running:
            running.run(made())
        gc.collect()

    once()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        once()
    assert len(os.listdir("/proc/self/fd")) <= before
