"""The oracle: what was measured arrives, or a gap names it, or it was within what a crash may take; nothing else."""

import asyncio

from agent.spool import spool as spool_module
from agent.spool import store as store_module
from agent.spool.record import Origin
from agent.spool.spool import Spool
from agent.spool.store import Store
from tests.spool.records import EVENTS, RESULTS, a_record

from .torn_disk import Crash, TornDisk

SPOOL, VOLATILE = "spool", "volatile"
TICK = 0.25


class InlineDisk:
    """Does on the spot what the thread would do."""

    def __init__(self):
        self.loop = asyncio.get_running_loop()

    def call(self, function):
        future = self.loop.create_future()
        future.set_result(function())
        return future

    def end(self):
        pass


class World:
    """Runs of an agent on one disk, with a broker and a witness."""

    def __init__(self, monkeypatch, volatile, **options):
        self.now, self.step = 1000.0, 0.0
        monkeypatch.setattr(spool_module, "boottime", self.clock)
        monkeypatch.setattr(store_module, "boottime", self.clock)
        monkeypatch.setattr(spool_module, "RETRY", 0.0)
        monkeypatch.setattr(store_module, "READ_AGAIN", 0.0)
        monkeypatch.setattr(spool_module, "Disk", InlineDisk)
        self.loop = asyncio.new_event_loop()
        self.disk = TornDisk([VOLATILE])
        self.volatile, self.options = volatile, options
        self.made = {}  # id: record
        self.born = {}  # id: when it was made
        self.arrived = {}  # id: how often
        self.may_be_lost = set()  # ids
        self.gaps = {}  # id of the record that tells it: gap
        self.told = []  # gaps that arrived
        self.runs = 0
        self.spool = None
        self.placed = set()  # ids that were written before the last turn ended
        self.start()

    def clock(self):
        self.now += self.step
        return self.now

    def stop(self):
        self.step = 0.001  # so that what waits for a time comes to an end
        left = self.do(self.spool.close(5))
        self.step = 0.0
        return left

    def do(self, coroutine):
        return self.loop.run_until_complete(coroutine)

    def start(self):
        self.runs += 1
        self.origin = Origin(self.runs, f"{self.runs:016x}", 0)
        self.seqs = {RESULTS: 0, EVENTS: 0}
        options = {"max_size": 1 << 20, "max_memory": 40_000, "last_resort": 160_000} | self.options
        memory = {name: options.pop(name) for name in ("max_memory", "last_resort")}
        self.store = Store(
            _Path(SPOOL), self.origin, volatile=_Path(VOLATILE) if self.volatile else None, files=self.disk, **options
        )
        self.spool = Spool(self.store, self.tell, **memory)
        self.do(self.spool.open())

    def record(self, topic, size=100):
        self.seqs[topic] += 1
        record = a_record(self.seqs[topic], topic, self.origin, size)
        self.made[record.id] = record
        self.born[record.id] = self.now
        return record

    def tell(self, gap):
        record = self.record(EVENTS)
        self.gaps[record.id] = gap
        return record

    def append(self, count, topic=RESULTS, size=100):
        for _ in range(count):
            self.spool.append(self.record(topic, size))

    def turn(self, seconds=TICK):
        self.now += seconds
        self.spool.tell_gaps()
        self.spool.turn()
        self.spool.turn()  # the disk has answered, and nobody has heard it yet
        self.do(asyncio.sleep(0))

    def take(self, limit):
        return [
            record
            for topic in self.spool.topics()
            for record in [*self.spool.take(topic, limit), *self.spool.take_backlog(topic, limit)]
        ]

    def arrive(self, records):
        for record in records:
            assert self.made.get(record.id) == record, "invented, or changed"
            self.arrived[record.id] = self.arrived.get(record.id, 0) + 1
            if record.id in self.gaps:
                self.told.append(self.gaps[record.id])
        self.spool.acknowledge(records)

    # Ends

    def kill(self):
        """What no block holds yet may be lost: the current tick. The same for what a disk in trouble does not take."""
        self._may_lose({"memory"})
        self.disk.kill()

    def power_cut(self, random):
        """What the spool does not hold for synced may be lost."""
        self._may_lose({"memory", "volatile", "proper"})
        stranded = any(segment.area.volatile and segment.state != "live" for segment in self.store._segments.values())
        if self.disk.hopeless or self.store._names_unproved or stranded:  # a kill, and then a disk that fails
            self.may_be_lost |= self.made.keys() - self.arrived.keys()
        self.disk.power_cut(random)

    def _may_lose(self, places):
        self.may_be_lost |= {record.id for records in self.spool._new.values() for record in records}
        self.may_be_lost |= {i for i, block in self.spool._where.items() if block.place in places}
        ledger = self.store._ledger
        told, kept = self.ids(self.spool._gaps.rows()), self.ids([*ledger._said, *ledger._own])
        self.may_be_lost |= told - kept  # dropped when only memory had them, since the last turn
        if self.disk.troubled and ledger.due:  # it does not take the gaps
            self.may_be_lost |= told | kept

    def check(self):
        """After everything was delivered."""
        quiet = 0
        while quiet < 4:
            self.turn(1.0)
            records = self.take(10_000)
            self.arrive(records)
            quiet = 0 if records else quiet + 1
        named = set()
        for gap in self.told:
            ids = self.ids([gap])
            assert ids <= self.made.keys(), f"a gap of records that never were: {gap}"
            named |= ids
        missing = self.made.keys() - self.arrived.keys() - named - self.may_be_lost
        assert not missing, f"lost and not named: {sorted(missing)}"
        if self.runs == 1:  # a later one does not know what of a segment had arrived
            both = sorted(named & self.arrived.keys())
            assert not both, f"named as lost, and arrived: {both} of {self.told}"
        assert not self.disk.directories[SPOOL].names, f"left: {sorted(self.disk.directories[SPOOL].names)}"

    def ids(self, gaps):
        return {self.id_of(gap, seq) for gap in gaps for seq in range(gap.first_seq, gap.last_seq + 1)}

    def id_of(self, gap, seq):
        return f"ist-1-pi/{gap.run_id}/{gap.worker}/{'e' if gap.topic == EVENTS else ''}{seq}"

    def close(self):
        self.loop.close()


class _Path:
    """The name of a directory of the disk in memory."""

    def __init__(self, name):
        self.name = name

    def __str__(self):
        return self.name


__all__ = ["Crash", "World"]
