"""What people and other programs do to the spool's directory, before the start and while it runs."""

import asyncio
import os
import shutil
import stat
import time

import pytest

from agent.spool import segment
from agent.spool import spool as spool_module
from agent.spool import store as store_module
from agent.spool.status import status
from tests.spool.agent import Agent, files
from tests.spool.records import EARLIER, ORIGIN, RESULTS, a_gap, seqs, some


@pytest.fixture
def hurried(monkeypatch):
    """Seconds become hundredths."""
    for module, name in ((spool_module, "YOUNG"), (spool_module, "SYNC"), (store_module, "LOOK_AGAIN")):
        monkeypatch.setattr(module, name, getattr(module, name) / 100)


async def measures_on(agent, first, last):
    """The agent looks at the directory when it has something to write there."""
    agent.append(some(first, last, origin=EARLIER))
    await turns(agent)


async def turns(agent, seconds=0.1):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        await agent.turn()
        await asyncio.sleep(0.005)


async def in_an_outage(directory, volatile):
    """An agent with 1,000 records of an outage, most of them on disk only."""
    agent = Agent(directory, EARLIER, volatile=volatile, memory=100_000)
    await agent.spool.open()
    agent.spool.broker_lost = True
    for first in range(1, 1_000, 20):
        agent.append(some(first, first + 19, origin=EARLIER))
        await agent.turn()
    await turns(agent)
    assert 0 < len(agent.spool) < 500
    return agent


async def goes_on(agent, directory, first, last):
    """Whether what is measured from now on, from `first` to `last`, is there for the next one after a kill."""
    agent.spool.broker_lost = True
    await measures_on(agent, first, last)
    await agent.kill()
    next_one = Agent(directory)
    await next_one.spool.open()
    arrived = await next_one.deliver_all()
    await next_one.spool.close(5)
    return seqs(arrived) == list(range(first, last + 1))


async def test_removed(directory, volatile, hurried):
    """After `rm -r` of the spool the agent makes it anew: what memory has is in it, the rest is named."""
    agent = await in_an_outage(directory, volatile)
    live = {record.seq for block in agent.spool._blocks.values() for record in agent.spool._left_of(block)}
    shutil.rmtree(directory)
    await measures_on(agent, 1_001, 1_020)
    agent.spool.broker_lost = False
    await agent.deliver_all()
    arrived = {record.seq for record in agent.arrived if record.topic == RESULTS}
    named = {seq for gap in agent.gaps() for seq in range(gap.first_seq, gap.last_seq + 1)}
    assert arrived >= live
    assert arrived | named == set(range(1, 1_021))
    assert not arrived & named
    assert {gap.reason for gap in agent.gaps()} == {"spool_removed"}
    assert await goes_on(agent, directory, 1_021, 1_040)


@pytest.mark.parametrize("then", ["nothing", "empty"])
async def test_moved_away(directory, volatile, hurried, then):
    """A spool that is moved while it is used, whatever comes in its place: all of it arrives, and it begins anew."""
    agent = await in_an_outage(directory, volatile)
    directory.rename(directory.parent / "moved")
    if then == "empty":
        directory.mkdir()
    await measures_on(agent, 1_001, 1_020)
    assert any(name.endswith("seg") for name in files(directory))
    agent.spool.broker_lost = False
    assert sorted(seqs(await agent.deliver_all())) == list(range(1, 1_021))
    assert agent.gaps() == []
    assert [name for name in files(directory.parent) if name.endswith("seg")] == []
    assert await goes_on(agent, directory, 1_021, 1_040)


async def test_replaced_by_a_file(directory, volatile, hurried, caplog):
    """With a file in its place records go on from memory, the file stays; when it is gone they are on disk again."""
    agent = await in_an_outage(directory, volatile)
    directory.rename(directory.parent / "moved")
    directory.write_text("mine")
    await measures_on(agent, 1_001, 1_100)
    assert directory.read_text() == "mine"
    assert "in memory (room for" in caplog.text
    agent.spool.broker_lost = False
    assert sorted(seqs(await agent.deliver_all())) == list(range(1, 1_101))
    directory.unlink()
    assert await goes_on(agent, directory, 1_101, 1_120)


async def test_moved_away_and_back(directory, volatile, hurried):
    """When it is where it was before again, what the agent left in it goes on as if nothing had been."""
    agent = await in_an_outage(directory, volatile)
    directory.rename(directory.parent / "moved")
    await measures_on(agent, 1_001, 1_020)
    directory.rename(directory.parent / "between")
    (directory.parent / "moved").rename(directory)
    await measures_on(agent, 1_021, 1_040)
    assert agent.spool._on_disk.trouble == ""
    assert {block.place for block in agent.spool._blocks.values()} == {"synced"}
    agent.spool.broker_lost = False
    arrived = await agent.deliver_all()
    assert set(seqs(arrived)) == set(range(1, 1_041))
    assert agent.gaps() == []
    assert await goes_on(agent, directory, 1_041, 1_060)


@pytest.mark.parametrize("how", ["moved", "removed"])
async def test_gaps_move_with_the_spool(directory, volatile, hurried, how):
    """What is to be told is in the new directory as soon as the old one is gone, and leaves it when it was told."""
    agent = Agent(directory, EARLIER, volatile=volatile)
    await agent.spool.open()
    agent.spool._gaps.add([a_gap(1, 5, "queue_full", origin=EARLIER)])
    agent.spool.turn()
    await turns(agent)
    if how == "moved":
        directory.rename(directory.parent / "moved")
    else:
        shutil.rmtree(directory)
    agent.append(some(11, 11, origin=EARLIER))
    await turns(agent)
    assert [gap.first_seq for gap in status(directory).gaps] == [1]
    await agent.deliver_all()
    await turns(agent)
    assert [gap.first_seq for gap in agent.gaps()] == [1]
    assert [name for name in files(directory.parent) if name.endswith("gaps")] == []
    assert agent.spool._on_disk.again is False
    await agent.spool.close(5)


FOREIGN = ("notes.txt", "1-2.seg.bak", "1-1.seg", "1-3.seg", "1-4.seg", "1-5.gaps", "1-999999999999.seg")


def make_foreign_things(directory):
    """Whatever may have the name of a segment and is none, and other things."""
    outside = directory.parent / "outside"
    outside.mkdir()
    (outside / "1-1.seg").write_bytes(b"outside")
    directory.mkdir()
    (directory / "notes.txt").write_text("mine")
    (directory / "1-2.seg.bak").write_text("mine")
    (directory / "1-1.seg").mkdir()
    (directory / "1-1.seg" / "1-1.seg").write_text("mine")
    (directory / "1-3.seg").symlink_to(outside / "1-1.seg")
    os.mkfifo(directory / "1-4.seg")
    (directory / "1-5.gaps").symlink_to(outside)
    (directory / "1-999999999999.seg").write_bytes(b"not of this spool")
    return outside


def looks_of(directory, names):
    return {name: (directory / name).lstat()[:2] for name in names}


async def test_foreign_things(directory, volatile, hurried):
    """Directories, links, pipes and files that are not the spool's are neither read nor moved, through a whole life."""
    outside = make_foreign_things(directory)
    newer = directory / "20-9.seg"
    newer.write_bytes(segment.MAGIC + b"\x02" + bytes(range(100)))
    before = looks_of(directory, [*FOREIGN, newer.name])
    agent = Agent(directory, volatile=volatile, memory=50_000, max_size=1 << 20)
    await agent.spool.open()
    agent.spool.broker_lost = True
    for first in range(1, 2_000, 20):
        agent.append([record._replace(value=os.urandom(1_000)) for record in some(first, first + 19)])
        await agent.turn()
    agent.spool.broker_lost = False
    await agent.deliver_all()
    named = {seq for gap in agent.gaps() for seq in range(gap.first_seq, gap.last_seq + 1) if gap.topic == RESULTS}
    arrived = {record.seq for record in agent.arrived if record.topic == RESULTS}
    assert named
    assert arrived | named == set(range(1, 2_001))
    await agent.spool.close(5)
    assert looks_of(directory, [*FOREIGN, newer.name]) == before
    assert newer.read_bytes() == segment.MAGIC + b"\x02" + bytes(range(100))
    assert (outside / "1-1.seg").read_bytes() == b"outside"
    assert files(outside) == ["1-1.seg"]


@pytest.mark.parametrize("kind", ["file", "link", "dangling link"])
async def test_foreign_folders(directory, volatile, hurried, kind):
    """With something else in the place of the folders for people, they stay empty, and all else goes its way."""
    outside = directory.parent / "outside"
    outside.mkdir()
    (outside / "1-1.seg").write_text("mine")
    directory.mkdir()
    for name in ("quarantine", "rejected"):
        if kind == "file":
            (directory / name).write_text("mine")
        else:
            (directory / name).symlink_to(outside if kind == "link" else directory / "none")
    (directory / "16-7.seg").write_bytes(b"damaged" * 100)
    agent = Agent(directory, volatile=volatile)
    await agent.spool.open()
    agent.append(some(1, 20))
    await agent.turn()
    taken = agent.take()
    agent.spool.refuse(taken[0], "record_too_large")
    agent.spool.give_back(taken[1:])
    arrived = await agent.deliver_all()
    assert [record.seq for record in arrived if record.topic == RESULTS] == list(range(2, 21))
    await turns(agent)
    assert agent.spool._on_disk.trouble == ""
    assert await agent.spool.close(5) == 0
    assert files(outside) == ["1-1.seg"]
    for name in ("quarantine", "rejected"):
        mode = (directory / name).lstat().st_mode
        assert stat.S_ISREG(mode) if kind == "file" else stat.S_ISLNK(mode)
    assert [name for name in files(directory) if name.endswith(("seg", "gaps"))] == []


async def test_damaged_segments(directory, volatile):
    """Segments with damage of every kind cost what was damaged, which is named; a bounded part is kept for people."""
    records = some(1, 1_200, size=300, origin=EARLIER)
    directory.mkdir()
    for number in range(1, 121):
        ten = [records[at : at + 5] for at in (number * 10 - 10, number * 10 - 5)]
        blocks = [segment.encode(EARLIER, RESULTS, each, 5 * at) for at, each in enumerate(ten)]
        data = bytearray(b"".join(blocks))
        middle = len(blocks[0]) - 100
        if number % 4 == 1:
            data[middle : middle + 3] = b"???"
        elif number % 4 == 2:
            data[middle : middle + 64] = bytes(64)
        elif number % 4 == 3:
            data[:50] = os.urandom(50)
        else:
            del data[middle : middle + 10]
        (directory / f"16-{number}.seg").write_bytes(data)
    agent = Agent(directory, ORIGIN, volatile=volatile)
    await agent.spool.open()
    await agent.deliver_all()
    arrived = {record.seq for record in agent.arrived if record.topic == RESULTS}
    named = {seq for gap in agent.gaps() for seq in range(gap.first_seq, gap.last_seq + 1)}
    assert arrived == {record.seq for record in records if (record.seq - 1) % 10 >= 5}
    assert arrived | named == set(range(1, 1_201))
    assert not arrived & named
    await agent.spool.close(5)
    kept = files(directory)
    assert len(kept) == 100
    assert all(name.startswith("quarantine/") for name in kept)
