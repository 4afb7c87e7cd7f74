"""The queue as the forwarder sees it: nothing blocks, nothing is lost, memory is bounded."""

import asyncio
import os
import re
import time

import pytest

from agent.spool import spool as module
from agent.spool.area import SpoolInUse
from tests.spool.agent import MIB, Agent, Watched, files
from tests.spool.records import EARLIER, EVENTS, ORIGIN, RESULTS, a_record, at, seqs, some
from tests.written import written_log

MS = float(os.environ.get("TEST_TIME_FACTOR", "1")) / 1000


async def test_in_health(tmp_path, directory, volatile):
    """Records may be taken once they are written, in order, and leave no file when they arrived."""
    agent = Agent(directory, volatile=volatile)
    await agent.spool.open()
    agent.append(some(1, 5))
    assert agent.spool.topics() == []
    await agent.turn()
    assert agent.spool.ready.is_set()
    assert len(files(tmp_path)) == 1
    assert agent.spool.topics() == [RESULTS]
    taken = agent.spool.take(RESULTS, 3)
    assert seqs(taken) == [1, 2, 3]
    assert agent.spool.taken(RESULTS) == 3
    assert len(agent.spool) == 5
    agent.spool.acknowledge(taken)
    agent.spool.acknowledge(agent.spool.take(RESULTS, 3))
    assert len(agent.spool) == 0
    await agent.turn()
    assert files(tmp_path) == []
    assert await agent.spool.close(5) == 0


async def test_killed(directory, volatile):
    """A run that is killed leaves all it had written to the next one, which sends it as it was."""
    agent = Agent(directory, EARLIER, volatile=volatile)
    await agent.spool.open()
    agent.append(some(1, 20, origin=EARLIER))
    agent.append(some(1, 2, EVENTS, EARLIER))
    await agent.turn()
    await agent.kill()
    agent = Agent(directory, volatile=volatile)
    await agent.spool.open()
    agent.append(some(1, 3))
    await agent.turn()
    taken = agent.take()
    assert {agent.spool.origin(record).run for record in taken} == {EARLIER.run, ORIGIN.run}
    agent.spool.give_back(taken)
    arrived = await agent.deliver_all()
    assert [r for r in arrived if r.topic == EVENTS] == some(1, 2, EVENTS, EARLIER)
    assert sorted(r for r in arrived if r.topic == RESULTS) == sorted([*some(1, 3), *some(1, 20, origin=EARLIER)])
    assert files(directory) == []
    await agent.spool.close(5)


async def test_stopped(directory, volatile):
    """A stop with the broker away leaves everything in the directory proper, also what was on its way."""
    agent = Agent(directory, EARLIER, volatile=volatile)
    await agent.spool.open()
    agent.append(some(1, 20, origin=EARLIER))
    await agent.turn()
    agent.take(5)
    agent.append(some(21, 30, origin=EARLIER))
    assert await agent.spool.close(5) == 0
    agent = Agent(directory)
    await agent.spool.open()
    assert await agent.deliver_all() == some(1, 30, origin=EARLIER)
    await agent.spool.close(5)


async def test_given_back(directory):
    """What did not arrive waits again in its old place, backlog and live each with its own."""
    agent = Agent(directory, EARLIER)
    await agent.spool.open()
    agent.append(some(1, 10, origin=EARLIER))
    await agent.spool.close(5)
    agent = Agent(directory)
    await agent.spool.open()
    agent.append(some(1, 10))
    await agent.turn()
    live, backlog = agent.spool.take(RESULTS, 6), agent.spool.take_backlog(RESULTS, 6)
    agent.spool.give_back([live[4], live[2], backlog[5], backlog[0]])
    assert seqs(agent.spool.take(RESULTS, 3)) == [3, 5, 7]
    assert seqs(agent.spool.take_backlog(RESULTS, 3)) == [1, 6, 7]
    agent.spool.give_all_back()
    assert seqs(agent.spool.take(RESULTS, 100)) == list(range(1, 11))
    assert seqs(agent.spool.take_backlog(RESULTS, 100)) == list(range(1, 11))
    await agent.spool.close(5)


async def test_synced_when_it_matters(directory, volatile, monkeypatch):
    """In health nothing is synced; what is not acknowledged soon is, once; and at once when the broker is lost."""
    monkeypatch.setattr(module, "YOUNG", 200 * MS)
    monkeypatch.setattr(module, "SYNC", 50 * MS)
    disk = Watched()
    agent = Agent(directory, volatile=volatile, files=disk)
    await agent.spool.open()
    for seq in range(1, 6):
        agent.append(some(seq, seq))
        await agent.turn()
        agent.deliver()
    assert disk.syncs == 0
    agent.append(some(6, 6))
    for _ in range(10):
        await agent.turn()
        await asyncio.sleep(50 * MS)
    assert disk.syncs == 1
    agent.spool.broker_lost = True
    agent.append(some(7, 7))
    await asyncio.sleep(50 * MS)
    await agent.turn()
    await asyncio.sleep(50 * MS)
    await agent.turn()
    assert disk.syncs == 2
    await agent.spool.close(5)


async def test_strict(directory, volatile):
    """With durability strict every record is synced before it may be taken."""
    disk = Watched()
    agent = Agent(directory, volatile=volatile, files=disk, strict=True)
    await agent.spool.open()
    for seq in range(1, 4):
        agent.append(some(seq, seq))
        await agent.turn()
        assert disk.syncs == seq
        assert agent.take()
    await agent.spool.close(5)


async def test_long_outage(directory, volatile):
    """With the broker away, memory stays bounded, the disk has it all, and after its return it comes, live first."""
    agent = Agent(directory, volatile=volatile, memory=100_000)
    await agent.spool.open()
    agent.spool.broker_lost = True
    for start in range(1, 5_000, 50):
        agent.append(some(start, start + 49))
        await agent.turn()
    assert agent.spool._memory < 200_000
    assert len(agent.spool) < 700
    first = agent.take()
    agent.spool.broker_lost = False
    agent.spool.give_back(first)
    live = agent.spool.take(RESULTS, 10_000)
    assert live[-1].seq == 5_000
    agent.spool.acknowledge(live)
    arrived = [*live, *await agent.deliver_all()]
    assert sorted(seqs(arrived)) == list(range(1, 5_001))
    backlog = seqs(arrived)[len(live) :]
    assert backlog == sorted(backlog)
    assert files(directory) == []
    await agent.spool.close(5)


async def test_flapping(directory, volatile):
    """Half arrives, half comes back, again and again: in the end all arrived, and nothing arrived twice."""
    agent = Agent(directory, volatile=volatile, memory=50_000)
    await agent.spool.open()
    for start in range(1, 3_000, 30):
        agent.append(some(start, start + 29))
        agent.spool.broker_lost = start % 90 < 45
        await agent.turn()
        taken = agent.take(25)
        agent.arrived += taken[::2]
        agent.spool.acknowledge(taken[::2])
        agent.spool.give_back(taken[1::2])
    await agent.deliver_all()
    assert sorted(seqs(agent.arrived)) == list(range(1, 3_001))
    assert files(directory) == []
    await agent.spool.close(5)


async def test_a_topic_that_is_refused(directory, volatile):
    """Records of a topic that Kafka does not take pile up on disk; those of the other go on, and none goes twice."""
    agent = Agent(directory, volatile=volatile, memory=50_000)
    await agent.spool.open()
    events = []
    for start in range(1, 2_000, 20):
        agent.append(some(start, start + 19))
        agent.append(some(start, start, EVENTS))
        await agent.turn()
        taken = agent.spool.take(EVENTS, 100)
        agent.spool.acknowledge(taken)
        events += taken
    assert seqs(events) == list(range(1, 2_000, 20))
    arrived = await agent.deliver_all()
    assert seqs(sorted(arrived)) == list(range(1, 2_001))
    await agent.spool.close(5)


async def test_full(directory, volatile):
    """When the spool is full the oldest go; every record either arrives or is named in a gap that arrives."""
    agent = Agent(directory, volatile=volatile, memory=200_000, max_size=MIB)
    await agent.spool.open()
    agent.spool.broker_lost = True
    for start in range(1, 3_000, 10):
        agent.append([r._replace(value=os.urandom(1_000)) for r in some(start, start + 9)])
        await agent.turn()
    assert sum(path.stat().st_size for path in directory.rglob("*.seg")) <= MIB
    agent.spool.broker_lost = False
    await agent.deliver_all()
    arrived = {record.seq for record in agent.arrived if record.topic == RESULTS}
    told = {seq for gap in agent.gaps() for seq in range(gap.first_seq, gap.last_seq + 1) if gap.topic == RESULTS}
    assert arrived | told == set(range(1, 3_001))
    assert not arrived & told
    assert told
    await agent.turn()
    assert files(directory) == []
    await agent.spool.close(5)


async def test_gaps_outlive_a_stop(directory):
    """A gap whose telling did not arrive is told by the next run."""
    agent = Agent(directory, EARLIER, max_size=MIB, memory=100_000)
    await agent.spool.open()
    agent.spool.broker_lost = True
    for start in range(1, 2_000, 10):
        agent.append([r._replace(value=os.urandom(1_000)) for r in some(start, start + 9, origin=EARLIER)])
        await agent.turn()
    assert agent.told
    await agent.spool.close(5)
    again = Agent(directory)
    await again.spool.open()
    await again.deliver_all()
    told = {seq for gap in again.gaps() for seq in range(gap.first_seq, gap.last_seq + 1) if gap.topic == RESULTS}
    arrived = {record.seq for record in again.arrived if record.topic == RESULTS}
    assert arrived | told == set(range(1, 2_001))
    assert {gap.run_id for gap in again.gaps()} == {EARLIER.run_id}
    await again.spool.close(5)


async def test_refused_record(directory, volatile):
    """A record that Kafka never takes is set aside and named by a gap; the others arrive; it is not sent again."""
    agent = Agent(directory, volatile=volatile)
    await agent.spool.open()
    agent.append(some(1, 10))
    await agent.turn()
    taken = agent.take()
    agent.spool.refuse(taken[3], "record_too_large")
    agent.spool.acknowledge([*taken[:3], *taken[4:]])
    await agent.turn()
    assert [name.split("/")[0] for name in files(directory) if name.startswith("rejected")] == ["rejected"]
    assert [record.topic for record in await agent.deliver_all()] == [EVENTS]
    assert [(gap.first_seq, gap.count, gap.reason) for gap in agent.gaps()] == [(4, 1, "record_too_large")]
    assert len(files(directory)) == 1
    await agent.spool.close(5)


async def test_refused_gap(directory, monkeypatch):
    """A record that tells a gap and is refused is no end of it: the gap is told again."""
    monkeypatch.setattr(module, "TELL_AGAIN", 0.0)
    agent = Agent(directory)
    await agent.spool.open()
    agent.spool._gaps.add([agent.spool._gap(a_record(1), "queue_full")])
    await agent.turn()
    (telling,) = agent.take()
    agent.spool.refuse(telling, "record_too_large")
    await agent.turn()
    assert len(await agent.deliver_all()) == 2
    assert [(gap.topic, gap.first_seq, gap.count) for gap in agent.gaps()] == [(RESULTS, 1, 1), (EVENTS, 1, 1)]
    await agent.spool.close(5)


async def test_disk_hangs(directory):
    """A disk that does not answer stops nobody: the loop runs, and records go unwritten after a while."""
    disk = Watched()
    agent = Agent(directory, files=disk)
    await agent.spool.open()
    disk.go_on.clear()
    started = time.monotonic()
    agent.append(some(1, 10))
    agent.spool.turn()
    assert agent.take() == []
    agent.spool._asked -= module.PATIENCE
    agent.append(some(11, 20))
    agent.spool.turn()
    assert time.monotonic() - started < 5
    assert seqs(agent.deliver()) == list(range(1, 21))
    disk.go_on.set()
    assert await agent.deliver_all() == []
    assert files(directory) == []
    assert await agent.spool.close(5) == 0


async def test_disk_hangs_in_strict(directory):
    """With durability strict nothing is sent that the disk has not taken, however long it takes."""
    disk = Watched()
    agent = Agent(directory, files=disk, strict=True)
    await agent.spool.open()
    disk.go_on.clear()
    agent.append(some(1, 10))
    agent.spool.turn()
    agent.spool._asked -= module.PATIENCE
    agent.spool.turn()
    assert agent.take() == []
    disk.go_on.set()
    assert len(await agent.deliver_all()) == 10
    await agent.spool.close(5)


async def test_disk_hangs_for_good(directory):
    """A disk that never answers does not hold a stop up; what it did not take is counted."""
    disk = Watched()
    agent = Agent(directory, files=disk)
    await agent.spool.open()
    disk.go_on.clear()
    agent.append(some(1, 10))
    agent.spool.turn()
    started = time.monotonic()
    assert await agent.spool.close(0.2) == 10
    assert time.monotonic() - started < 5
    disk.go_on.set()


async def test_disk_fails(directory, caplog):
    """While nothing can be written, records go on from memory; afterwards what is left is written again."""
    disk = Watched()
    agent = Agent(directory, EARLIER, files=disk)
    await agent.spool.open()
    disk.error = OSError(5, "Input/output error")
    agent.append(some(1, 10, origin=EARLIER))
    await agent.turn()
    assert seqs(agent.deliver(5)) == [1, 2, 3, 4, 5]
    assert "cannot be written: Input/output error; 10 records in memory" in caplog.text
    disk.error = None
    agent.append(some(11, 12, origin=EARLIER))
    agent.spool._synced = 0.0
    await agent.turn()
    await agent.kill()
    agent = Agent(directory)
    await agent.spool.open()
    assert sorted(seqs(await agent.deliver_all())) == list(range(6, 13))
    await agent.spool.close(5)


async def test_trouble_is_said_sparingly_and_its_end(directory, monkeypatch):
    """A disk that fails is a line and no more when it is tried again; that it takes records again is one, too."""
    monkeypatch.setattr(module, "QUIET", 0.2)
    disk = Watched()
    agent = Agent(directory, files=disk)
    await agent.spool.open()
    with written_log() as written:
        for seq in range(1, 9):
            disk.error = OSError(5, "Input/output error") if seq % 2 else None
            agent.append(some(seq, seq))
            await agent.turn()
        assert ["cannot be written" in line for line in written.messages] == [True]
        await asyncio.sleep(0.2)
        agent.append(some(9, 9))
        await agent.turn()
        assert written.messages[1:] == ["spool: the disk takes records again"]
    await agent.spool.close(5)


async def test_trouble_lasts_until_it_is_over(directory, volatile, monkeypatch):
    """A directory that cannot be used is said at each look, though turns between those to it have no trouble."""
    monkeypatch.setattr(module, "QUIET", 0.5)
    directory.write_text("a file")
    agent = Agent(directory, volatile=volatile)
    await agent.spool.open()
    for seq in range(1, 31):
        agent.append(some(seq, seq))
        await agent.turn()
        agent.deliver()
        assert agent.spool.waiting().trouble
        await asyncio.sleep(0.05)
        if seq % 8 == 0:
            agent.store._looked -= 10  # a second went by
    directory.unlink()
    agent.store._looked -= 10
    await agent.turn()
    await asyncio.sleep(0.6)
    agent.append(some(31, 31))
    await agent.turn()
    assert not agent.spool.waiting().trouble
    await agent.spool.close(5)


def fails(*_):
    raise PermissionError(13, "Permission denied")


async def test_backlog_that_cannot_be_read_is_trouble(directory, monkeypatch):
    """As long as it waits to be tried again, which is longer than the disk needs to be well again."""
    monkeypatch.setattr(module, "QUIET", 0.0)
    agent = Agent(directory, EARLIER)
    await agent.spool.open()
    agent.append(some(1, 5, origin=EARLIER))
    await agent.spool.close(5)
    disk = Watched()
    agent = Agent(directory, files=disk)
    await agent.spool.open()
    with monkeypatch.context() as patch:
        patch.setattr(disk, "read", fails)
        await agent.turn()
    for seq in range(1, 4):
        agent.append(some(seq, seq))
        await agent.turn()
        assert "cannot be taken in yet" in agent.spool.waiting().trouble
    await agent.spool.close(5)


async def test_what_is_lost_is_in_the_log(directory):
    """However much it is: few lines, and the last of them has the sum."""
    disk = Watched()
    agent = Agent(directory, files=disk, memory=50_000)
    await agent.spool.open()
    with written_log() as written:
        disk.error = OSError(5, "Input/output error")
        for start in range(1, 4_001, 50):
            agent.append(some(start, start + 49))
            await agent.turn()
    lost = [line for line in written.messages if "will never come" in line]
    assert len(lost) == 11
    what = r"spool: (\d+) records? of uptime.results from (\S+) to \S+ will never come: queue_full"
    count, first, total = re.fullmatch(what + r" \((\d+) in all since the start\)", lost[0]).groups()
    assert (count, first) == (total, at(1))
    assert f"queue_full ({agent.spool.waiting().given_up} in all since the start); the last of" in lost[-1]
    await agent.spool.close(5)


async def test_memory_is_the_last_resort(directory):
    """Without a disk memory is bounded: the oldest are lost, and told when they can be."""
    disk = Watched()
    agent = Agent(directory, files=disk, memory=50_000)
    await agent.spool.open()
    disk.error = OSError(5, "Input/output error")
    for start in range(1, 2_001, 50):
        agent.append(some(start, start + 49))
        await agent.turn()
    assert agent.spool._memory <= 250_000
    disk.error = None
    await agent.deliver_all()
    arrived = {record.seq for record in agent.arrived if record.topic == RESULTS}
    (gap,) = agent.gaps()
    assert (gap.first_seq, gap.reason) == (1, "queue_full")
    assert set(range(gap.first_seq, gap.last_seq + 1)) | arrived == set(range(1, 2_001))
    assert gap.count == gap.last_seq == 2_000 - len(arrived)
    assert gap.last_at == at(gap.last_seq)
    await agent.spool.close(5)


async def test_failed_sync(directory, volatile):
    """A sync that failed is not believed when it is tried again: the records are written to another file."""
    disk = Watched()
    agent = Agent(directory, volatile=volatile, files=disk)
    await agent.spool.open()
    agent.append(some(1, 10))
    await agent.turn()
    before = files(directory)
    agent.spool.broker_lost = True
    disk.error = OSError(5, "Input/output error")
    for _ in range(3):
        agent.spool._synced = 0.0
        await agent.turn()
    disk.error = None
    agent.spool._synced = 0.0
    await agent.turn()
    assert {block.place for block in agent.spool._blocks.values()} == {"synced"}
    assert len(files(directory)) == 1
    assert files(directory) != before
    agent.spool.broker_lost = False
    assert seqs(await agent.deliver_all()) == list(range(1, 11))
    assert files(directory) == []
    await agent.spool.close(5)


async def test_second_agent(directory):
    """Two agents on one spool: the second is told so."""
    agent = Agent(directory)
    await agent.spool.open()
    with pytest.raises(SpoolInUse):
        await Agent(directory).spool.open()
    await agent.spool.close(5)


async def test_written_twice(directory):
    """A record that a crash left in two segments is sent once while both are in memory, and both go."""
    for _ in range(2):
        agent = Agent(directory, EARLIER)
        await agent.spool.open()
        agent.append(some(1, 10, origin=EARLIER))
        await agent.spool.close(5)
    agent = Agent(directory)
    await agent.spool.open()
    await agent.turn()
    assert len(agent.take()) == 10
    agent.spool.give_all_back()
    assert len(await agent.deliver_all()) == 10
    assert files(directory) == []
    await agent.spool.close(5)


async def test_too_large(directory):
    """A record that no block can hold is told as a gap, and harms no other."""
    agent = Agent(directory)
    await agent.spool.open()
    agent.append([a_record(1), a_record(2, size=5 * MIB), a_record(3)])
    await agent.deliver_all()
    assert seqs(record for record in agent.arrived if record.topic == RESULTS) == [1, 3]
    assert [(gap.first_seq, gap.reason) for gap in agent.gaps()] == [(2, "too_large")]
    await agent.spool.close(5)


async def test_a_fault_of_the_spool_is_not_swallowed(directory, monkeypatch):
    """An error in the spool's own code ends whoever turns it, and is not lost on a thread."""
    agent = Agent(directory)
    await agent.spool.open()
    monkeypatch.setattr(agent.store, "turn", lambda request: 1 // 0)
    agent.append(some(1, 1))
    await agent.turn()
    with pytest.raises(ZeroDivisionError):
        agent.spool.turn()
    await agent.spool.close(0.1)
