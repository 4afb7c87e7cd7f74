"""A recorder and a forwarder around a spool on a real disk, and a disk that can be held up."""

import asyncio
import os
import threading

from agent.spool.files import Files
from agent.spool.spool import Spool
from agent.spool.store import Store
from tests.spool.records import EVENTS, ORIGIN, a_record

MIB = 1 << 20


class Agent:
    """A recorder and a forwarder around a spool; what arrived is in `arrived`."""

    def __init__(self, directory, origin=ORIGIN, *, volatile=None, files=None, strict=False, memory=4 * MIB, **options):
        self.store = Store(directory, origin, volatile=volatile, files=files, **options)
        self.spool = Spool(self.store, self.tell, strict=strict, max_memory=memory, last_resort=4 * memory)
        self.origin = origin
        self.told = {}
        self.events = 0
        self.arrived = []

    def tell(self, gap):
        self.events += 1
        record = a_record(self.events, EVENTS, self.origin)
        self.told[record.id] = gap
        return record

    def append(self, records):
        for record in records:
            self.spool.append(record)

    async def turn(self):
        """One turn, and what comes of it."""
        self.spool.tell_gaps()
        self.spool.turn()
        if self.spool._underway is not None:
            await asyncio.wait([self.spool._underway], timeout=10)
            await asyncio.sleep(0)

    def take(self, limit=10_000):
        """What may be sent now, live first."""
        records = []
        for topic in self.spool.topics():
            records += self.spool.take(topic, limit)
            records += self.spool.take_backlog(topic, limit)
        return records

    def deliver(self, limit=10_000):
        records = self.take(limit)
        self.arrived += records
        self.spool.acknowledge(records)
        return records

    async def deliver_all(self):
        """Until nothing is left, in memory or on disk; what arrived."""
        start = len(self.arrived)
        idle = 0
        while idle < 3:
            await self.turn()
            idle = 0 if self.deliver() else idle + 1
        await self.turn()
        return self.arrived[start:]

    def gaps(self):
        """What was told by those that arrived."""
        return [self.told[record.id] for record in self.arrived if record.id in self.told]

    async def kill(self):
        """As kill -9 does."""
        spool = self.spool
        if spool._underway is not None:
            await asyncio.wait([spool._underway])
        spool._disk.end()
        kill(self.store)


def kill(store):
    """As kill -9 does to a store: nothing is synced or closed in order, but descriptors go."""
    for segment in store._segments.values():
        if segment.file is not None:
            os.close(segment.file)
    for area in (store._area, store._volatile):
        if area is not None:
            area.close()


class Watched(Files):
    """Counts syncs, and may hold them up or refuse them."""

    def __init__(self):
        self.syncs = 0
        self.go_on = threading.Event()
        self.go_on.set()
        self.error = None

    def write(self, file, data):
        self.go_on.wait(20)
        if self.error:
            raise self.error
        return super().write(file, data)

    def sync(self, file):
        self.syncs += 1
        if self.error:
            raise self.error
        super().sync(file)


def files(directory):
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())
