"""A process with a spool that tells a witness all it does, and ends without a warning; and what the witness knows.

`python -m tests.spool.witnessed` makes runs on one spool that are killed one after the other, each forked from one
process that has imported everything: so thousands take minutes. The witness is a file: what was written to it is there
when the process is not. It hears of a record before the spool does, and of an arrival before the spool does, too.
"""

import asyncio
import json
import os
import signal
import sys
import time
import zlib
from pathlib import Path
from random import Random

from agent.spool import spool as spool_module
from agent.spool.files import Files
from agent.spool.record import Origin
from tests.spool.agent import Agent
from tests.spool.records import EVENTS, RESULTS, a_record, some

TICK = 0.005


def origin_of(run):
    return Origin(run, f"{run:016x}", 0)


class Measuring(Agent):
    """An agent that tells the witness."""

    def __init__(self, directory, run, witness, **options):
        super().__init__(directory, origin_of(run), **options)
        self.run, self.seq = run, 0
        self.witness = os.open(witness, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.places = {}  # by number of a block, as told

    def say(self, *what):
        os.write(self.witness, json.dumps(what).encode() + b"\n")

    def tell(self, gap):
        self.say("made", self.run, EVENTS, self.events + 1, self.events + 1)
        return super().tell(gap)

    def measure(self, results, events):
        for topic, count, before in ((RESULTS, results, self.seq), (EVENTS, events, self.events)):
            if count:
                self.say("made", self.run, topic, before + 1, before + count)
                self.append(some(before + 1, before + count, topic, self.origin))
        self.seq += results
        self.events += events

    def tell_places(self):
        """What is written, and what is synced."""
        for number, block in self.spool._blocks.items():
            if block.place != self.places.get(number):
                self.places[number] = block.place
                if block.place != "memory":
                    first, last = block.records[0].seq, block.records[-1].seq
                    self.say("kept", self.run, block.topic, first, last, block.place == "synced")

    def deliver(self, limit=10_000):
        records = self.take(limit)
        if records:
            self.say("arrived", [(record.id, zlib.crc32(record.value)) for record in records])
            for gap in (self.told[record.id] for record in records if record.id in self.told):
                self.say("gap", gap.run_id, gap.topic, gap.first_seq, gap.last_seq, gap.reason)
            self.spool.acknowledge(records)
        return records


async def measure_on(agent, random):
    """Healthy hours and outages, some longer than what the spool holds, in a hurry."""
    await agent.spool.open()
    while True:
        agent.spool.broker_lost = random.random() < 0.7
        for _ in range(random.randint(1, 30)):
            agent.say("tick")
            agent.measure(random.choice([0, 20, 40]), random.choice([0, 0, 2]))
            await agent.turn()
            agent.tell_places()
            if not agent.spool.broker_lost:
                agent.deliver(random.choice([3, 30, 1000]))
            await asyncio.sleep(TICK)


def runs(directory, volatile, witness, kills, seed, max_size):
    """`kills` runs that are killed; with none, one that is not."""
    # Seconds become hundredths.
    spool_module.YOUNG, spool_module.SYNC = 0.04, 0.02
    random = Random(seed)
    for run in range(1, max(kills, 1) + 1):
        lasts, inner = random.uniform(0.0, 0.15), Random(random.random())
        child = os.fork() if kills else 0
        if child == 0:
            agent = Measuring(
                directory, run, witness, volatile=volatile, memory=min(max_size // 2, 100_000), max_size=max_size
            )
            asyncio.run(measure_on(agent, inner))
        time.sleep(lasts)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), "it ended by itself"


class Witness:
    """What the file says. Records are (run_id, topic, seq)."""

    def __init__(self, file):
        self.made, self.kept, self.synced, self.told = set(), set(), set(), set()
        self.arrived = {}  # record: how often
        self.tick = 0  # of all runs
        self.ticks = {}  # record: the one in which it was made
        self.reasons = set()
        data = Path(file).read_bytes()
        for line in data[: data.rfind(b"\n") + 1].splitlines():
            self.read(*json.loads(line))

    def read(self, what, *said):
        if what == "tick":
            self.tick += 1
        elif what == "made":
            records = ranged(origin_of(said[0]).run_id, *said[1:])
            assert not self.made & records
            self.made |= records
            self.ticks |= dict.fromkeys(records, self.tick)
        elif what == "kept":
            records = ranged(origin_of(said[0]).run_id, *said[1:4])
            self.kept |= records
            self.synced |= records if said[4] else set()
        elif what == "arrived":
            for record_id, crc in said[0]:
                self.arrive(record_id, crc)
        else:
            run_id, topic, first, last, reason = said
            self.gap(ranged(run_id, topic, first, last), reason)

    def arrive(self, record_id, crc):
        record = named(record_id)
        run_id, topic, seq = record
        assert record in self.made, "invented"
        assert crc == zlib.crc32(a_record(seq, topic, Origin(int(run_id, 16), run_id, 0)).value), "changed"
        self.arrived[record] = self.arrived.get(record, 0) + 1

    def gap(self, records, reason):
        assert records <= self.made, "a gap of records that never were"
        self.told |= records
        self.reasons.add(reason)

    def hear(self, agent):
        """What another agent, who found the spool, delivered."""
        for record in agent.arrived:
            if record.id in agent.told:
                gap = agent.told[record.id]
                self.gap(ranged(gap.run_id, gap.topic, gap.first_seq, gap.last_seq), gap.reason)
            else:
                self.arrive(record.id, zlib.crc32(record.value))

    def missing(self):
        """What neither arrived nor is told."""
        return self.made - self.arrived.keys() - self.told


def ranged(run_id, topic, first, last):
    return {(run_id, topic, seq) for seq in range(first, last + 1)}


def named(record_id):
    _, run_id, _, mark = record_id.split("/")
    return run_id, EVENTS if mark.startswith("e") else RESULTS, int(mark.removeprefix("e"))


if __name__ == "__main__":
    spool, volatile, witness, kills, seed, max_size, sync = sys.argv[1:]
    if sync == "without":
        Files.sync = lambda self, file: None
    runs(Path(spool), Path(volatile) if volatile else None, witness, int(kills), int(seed), int(max_size))
