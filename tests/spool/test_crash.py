"""A crash at any moment, of the process or of the machine, takes no more than what is promised."""

import errno
import os
from random import Random

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agent.spool import spool as spool_module
from tests.spool.conservation import World
from tests.spool.records import EVENTS, RESULTS

# Of each machine. The usual run takes the same ones every time; a long one, of thousands, takes others each time.
EXAMPLES = int(os.environ.get("SPOOL_EXAMPLES", "0"))
USUAL = 60
CALLS = ["create", "write", "truncate", "sync", "sync_directory", "unlink", "move", "mkdir", "sync_named"]


class Spooling(RuleBasedStateMachine):
    """Records, acknowledgements, outages and kills in any order."""

    beside = 4_000  # bytes of gaps

    def __init__(self):
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.world = None
        self.taken = []
        self.since_turn = self.asked = 0  # bytes that were made since the last turn, and that it asked to be written
        self.found = 0  # bytes that the last power cut left or brought back

    @initialize(volatile=st.booleans(), max_size=st.sampled_from([40_000, 1 << 20]))
    def begin(self, volatile, max_size):
        self.max_size = max_size
        self.world = World(self.patch, volatile, max_size=max_size)

    @rule(count=st.integers(1, 30), topic=st.sampled_from([RESULTS, RESULTS, EVENTS]), size=st.sampled_from([100, 800]))
    def measure(self, count, topic, size):
        self.world.append(count, topic, size)
        self.since_turn += count * (size + spool_module.OVERHEAD)

    @rule(seconds=st.sampled_from([0.02, 0.25, 0.25, 1.0, 3.0]))
    def turn(self, seconds):
        self.world.turn(seconds)
        self.since_turn, self.asked = 0, self.since_turn

    @rule()
    def some_seconds(self):
        for _ in range(16):
            self.world.append(2, size=300)
            self.world.turn(0.25)
        self.since_turn, self.asked = 0, 2 * (300 + spool_module.OVERHEAD)

    @rule(limit=st.sampled_from([1, 10, 1000]))
    def take(self, limit):
        self.taken += self.world.take(limit)

    @precondition(lambda self: self.taken)
    @rule(first=st.integers(0, 3), step=st.sampled_from([1, 1, 2, 3]))
    def arrive(self, first, step):
        arrived = self.taken[first::step]
        del self.taken[first::step]
        self.world.arrive(arrived)

    @precondition(lambda self: self.taken)
    @rule()
    def give_back(self):
        self.world.spool.give_back(self.taken)
        self.taken = []

    @rule(lost=st.booleans())
    def broker(self, lost):
        self.world.spool.broker_lost = lost

    @rule()
    def kill(self):
        self.world.kill()
        self.taken = []
        self.world.start()

    @rule()
    def stop(self):
        assert self.world.stop() == 0
        self.taken = []
        self.world.start()

    @invariant()
    def bounded(self):
        if self.world:
            assert self.world.disk.bytes() <= max(self.max_size, self.found) + self.beside
            assert self.world.spool._memory <= 160_000 + self.asked + self.since_turn

    def teardown(self):
        try:
            if self.world:
                self.world.spool.give_back(self.taken)
                self.world.check()
        finally:
            if self.world:
                self.world.close()
            self.patch.undo()


class LosingPower(Spooling):
    """The same, and the machine loses power: what was not synced is there in part, names come and go."""

    @rule(seed=st.integers(0, 1 << 32))
    def power_cut(self, seed):
        self.world.power_cut(Random(seed))
        self.found = self.world.disk.bytes()
        self.taken = []
        self.world.start()


class Failing(LosingPower):
    """The same, and any call may fail for a while."""

    beside = 20_000  # gaps that could not be removed

    @rule(
        calls=st.sets(st.sampled_from(CALLS), max_size=3),
        number=st.sampled_from([errno.EIO, errno.ENOSPC, errno.EROFS]),
    )
    def fail(self, calls, number):
        self.world.disk.fails = dict.fromkeys(calls, number)

    @rule(capacity=st.sampled_from([0, 20_000, 100_000, 1 << 30]))
    def fill_up(self, capacity):
        self.world.disk.capacity = capacity

    @rule()
    def stop(self):
        if not self.world.disk.fails and self.world.disk.capacity > 1 << 20:
            super().stop()

    def teardown(self):
        if self.world:
            self.world.disk.fails, self.world.disk.capacity = {}, 1 << 30
        super().teardown()


# What it found, by name.


def test_a_stop_right_after_a_disk_recovered(monkeypatch):
    """Gaps that a failing disk did not take are on it after a stop, however soon after its recovery."""
    world = World(monkeypatch, False, max_size=40_000)
    try:
        for number in range(112):
            world.disk.fails = {"sync": errno.EIO} if number >= 80 else {}
            world.append(2, size=300)
            world.turn()
        world.disk.fails = {}
        assert world.stop() == 0
        world.start()
        world.check()
        assert world.told
    finally:
        world.close()


BASE = settings(stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck))
TestKilled = Spooling.TestCase
TestLosingPower = LosingPower.TestCase
TestFailing = Failing.TestCase
TestKilled.settings = TestLosingPower.settings = TestFailing.settings = settings(
    BASE, max_examples=EXAMPLES or USUAL, derandomize=not EXAMPLES, print_blob=True
)
