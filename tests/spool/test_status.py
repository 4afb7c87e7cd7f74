"""People may look at a spool at any time, and nothing changes for it."""

import os

import pytest

from agent.spool import status as module
from agent.spool.files import Files
from agent.spool.record import Record
from agent.spool.status import CannotRead, Status, dump, dump_rejected, status
from tests.spool.agent import MIB, Agent, files
from tests.spool.records import EARLIER, EVENTS, RESULTS, at, some


async def test_while_an_agent_runs(tmp_path):
    """Status and dump show what waits, in memory only or on disk, and take neither the lock nor a record."""
    directory, volatile = tmp_path / "spool", tmp_path / "volatile"
    agent = Agent(directory, EARLIER, volatile=volatile)
    await agent.spool.open()
    agent.append(some(1, 10, origin=EARLIER))
    await agent.spool.close(5)
    agent = Agent(directory, volatile=volatile)
    await agent.spool.open()
    agent.append(some(1, 20))
    agent.append(some(1, 2, EVENTS))
    await agent.turn()
    before = files(tmp_path)
    found = status(directory)
    assert (found.exists, found.volatile_directory) == (True, str(volatile))
    assert found.topics[RESULTS].records == 30
    assert found.topics[EVENTS].records == 2
    assert (found.topics[RESULTS].oldest, found.topics[RESULTS].newest) == (at(1), at(20))
    assert found.segments == 3
    assert found.bytes == sum(path.stat().st_size for path in tmp_path.rglob("*.seg"))
    assert [r for r in dump(directory) if r.topic == RESULTS] == [*some(1, 10, origin=EARLIER), *some(1, 20)]
    assert files(tmp_path) == before
    assert len(await agent.deliver_all()) == 32
    await agent.spool.close(5)


async def test_settled_while_it_is_looked_at(tmp_path):
    """A record that moves from the volatile directory to the disk during a dump is shown exactly once."""
    directory, volatile = tmp_path / "spool", tmp_path / "volatile"
    agent = Agent(directory, EARLIER)
    await agent.spool.open()
    agent.append(some(1, 5, origin=EARLIER))
    await agent.spool.close(5)
    agent = Agent(directory, volatile=volatile)
    await agent.spool.open()
    agent.append(some(1, 10))
    agent.append(some(1, 10, EVENTS))
    await agent.turn()
    agent.spool.acknowledge(agent.spool.take(EVENTS, 100))
    looking = dump(directory)
    seen = [next(looking)]
    agent.spool.broker_lost = True
    agent.spool._synced = 0.0
    await agent.turn()
    assert files(volatile) == []
    seen += looking
    assert sorted(record for record in seen if record.topic == RESULTS) == sorted(
        [*some(1, 5, origin=EARLIER), *some(1, 10)]
    )
    await agent.spool.close(5)


async def test_the_volatile_directory_is_found(tmp_path):
    """A link in the spool leads to the volatile directory in use, and to none when there is none."""
    directory, one, other = tmp_path / "spool", tmp_path / "one", tmp_path / "other"
    link = directory / "volatile"
    for volatile in (one, one, other, None, one):
        agent = Agent(directory, volatile=volatile)
        await agent.spool.open()
        assert os.path.lexists(link) == (volatile is not None)
        assert volatile is None or os.readlink(link) == str(volatile)
        await agent.spool.close(5)


@pytest.mark.parametrize("kind", ["link to the spool", "link to elsewhere", "directory", "file"])
async def test_foreign_things_named_volatile(tmp_path, kind):
    """Whatever has the name of the link, and wherever it leads, nothing there is read as ours, moved or removed."""
    directory, elsewhere = tmp_path / "spool", tmp_path / "elsewhere"
    agent = Agent(elsewhere, EARLIER)
    await agent.spool.open()
    agent.append(some(1, 5, origin=EARLIER))
    await agent.spool.close(5)
    (elsewhere / "1-1.seg").write_bytes(b"damaged" * 100)
    directory.mkdir()
    foreign = directory / "volatile"
    if kind == "directory":
        elsewhere.rename(foreign)
        elsewhere = foreign
    elif kind == "file":
        foreign.write_text("mine")
    else:
        foreign.symlink_to(directory if kind == "link to the spool" else elsewhere)
    before = {path: path.read_bytes() for path in elsewhere.iterdir()}
    for volatile in (None, tmp_path / "volatile"):
        agent = Agent(directory, volatile=volatile)
        await agent.spool.open()
        agent.append(some(1, 5))
        assert len(await agent.deliver_all()) == 5
        await agent.spool.close(5)
    assert {path: path.read_bytes() for path in elsewhere.iterdir()} == before
    assert foreign.is_symlink() == kind.startswith("link")
    assert kind != "file" or foreign.read_text() == "mine"


async def test_trouble_is_shown(tmp_path):
    """Refused, damaged, newer and dropped things are counted, and named by dump; refused records are dumped whole."""
    directory = tmp_path / "spool"
    agent = Agent(directory, max_size=MIB)
    await agent.spool.open()
    agent.append(some(1, 3))
    await agent.turn()
    taken = agent.take()
    agent.spool.refuse(taken[0], "record_too_large")
    agent.spool.give_back(taken[1:])
    await agent.turn()
    agent.store._lose([agent.spool._gap(taken[1], "spool_full")])
    await agent.spool.close(5)
    (directory / "1-2.seg").write_bytes(b"x" * 5_000)
    (directory / "1-3.seg").write_bytes(b"\xffUA\xfe\x09" + bytes(200))
    (directory / "quarantine").mkdir()
    (directory / "quarantine" / "1-4.seg").write_bytes(b"x")
    found = status(directory)
    assert (found.rejected_records, found.quarantined_files, found.newer_segments) == (1, 1, 1)
    assert found.damaged_bytes == 5_000
    assert [gap.reason for gap in found.gaps] == ["record_too_large", "spool_full"]
    assert list(dump_rejected(directory)) == some(1, 1)
    assert [each for each in dump(directory) if isinstance(each, str)] == [
        f"{directory}/1-2.seg: 5000 bytes are damaged and not shown",
        f"{directory}/1-3.seg is of a newer agent (version 9); use that one to read it",
    ]


def test_no_spool(tmp_path):
    """Where there is no spool, nothing waits, and none is made."""
    assert status(tmp_path / "none") == Status(str(tmp_path / "none"))
    assert list(dump(tmp_path / "none")) == list(dump_rejected(tmp_path / "none")) == []
    assert not (tmp_path / "none").exists()


def test_no_directory(tmp_path):
    """With a file in its place, the error names it and the mend; a file in place of a folder in it is nothing."""
    (tmp_path / "rejected").write_text("a file")
    (tmp_path / "quarantine").symlink_to(tmp_path)
    assert status(tmp_path).rejected_records == 0
    with pytest.raises(CannotRead, match="rejected: is not a directory; name the directory of the spool"):
        status(tmp_path / "rejected")


async def test_files_that_vanish(tmp_path, monkeypatch):
    """A segment that is acknowledged while it is looked for is no error."""
    agent = Agent(tmp_path, EARLIER)
    await agent.spool.open()
    agent.append(some(1, 5, origin=EARLIER))
    await agent.spool.close(5)
    real = module.own_files

    def vanishing(files, opened):
        found = real(files, opened)
        for each in found:
            Files().unlink(opened, each.name)
        return found

    monkeypatch.setattr(module, "own_files", vanishing)
    assert list(dump(tmp_path)) == []
    assert not any(isinstance(each, Record) for each in dump(tmp_path))
