"""The process or the machine ends within any one call to the disk, and again while the next run recovers."""

import contextlib
from random import Random

import pytest

from tests.spool.conservation import World
from tests.spool.records import EVENTS
from tests.spool.torn_disk import Crash


def a_day(world):
    """Health, an outage longer than memory, a spool that is full, a refused record, a stop and a start."""
    spool = world.spool
    for _ in range(3):
        world.append(3)
        world.turn()
        world.arrive(world.take(100))
    for number in range(12):
        spool.broker_lost = number > 2
        world.append(6, size=600)
        world.append(1, EVENTS)
        world.turn(0.7)
    spool.broker_lost = False
    taken = world.take(8)
    world.arrive(taken[:5])
    spool.refuse(taken[5], "record_too_large")
    spool.give_back(taken[6:])
    world.turn()
    dropped = world.spool._gaps_seen
    assert world.stop() == 0
    world.start()
    world.append(3)
    world.turn()
    world.arrive(world.take(20))
    world.turn()
    return dropped


def a_world(monkeypatch, volatile):
    return World(monkeypatch, volatile, max_size=25_000, max_memory=12_000, last_resort=80_000)


def calls_of_a_day(monkeypatch, volatile):
    world = a_world(monkeypatch, volatile)
    try:
        assert a_day(world), "nothing was dropped: the day proves too little"
        return world.disk.calls
    finally:
        world.close()


def end(world, power, seed):
    if power:
        world.power_cut(Random(seed))
    else:
        world.kill()


def ends(monkeypatch, volatile, at, power, seed=0):
    """One day that ends at the call `at`, and the days of the next runs, the first of which ends too."""
    world = a_world(monkeypatch, volatile)
    try:
        world.disk.crash_at = at
        with pytest.raises(Crash):
            a_day(world)
        end(world, power, seed + at)
        if at % 3:  # recovering ends too, at one of its first calls
            world.disk.crash_at = world.disk.calls + 1 + at % 7
            with contextlib.suppress(Crash):
                world.start()
                world.turn()
            end(world, power, seed + at + 1)
        world.start()
        world.check()
    finally:
        world.close()


@pytest.mark.parametrize("volatile", [True, False], ids=["volatile", "without"])
@pytest.mark.parametrize("power", [False, True], ids=["kill", "power cut"])
def test_every_call(monkeypatch, volatile, power):
    """Whichever call is the last one, no more is missing than what is promised, and nothing is made up."""
    calls = calls_of_a_day(monkeypatch, volatile)
    assert calls > 80
    for at in range(1, calls + 1):
        ends(monkeypatch, volatile, at, power)
