"""People may look at a spool at any time, and nothing changes for it."""

from agent.spool.area import own_files
from agent.spool.files import Files
from agent.spool.status import Status, dump, status
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
    found = status([directory, volatile])
    assert found.topics[RESULTS].records == 30
    assert found.topics[EVENTS].records == 2
    assert (found.topics[RESULTS].oldest, found.topics[RESULTS].newest) == (at(1), at(20))
    assert found.segments == 3
    assert found.bytes == sum(path.stat().st_size for path in tmp_path.rglob("*.seg"))
    records = [each.record for each in dump([directory, volatile])]
    assert [r for r in records if r.topic == RESULTS] == [*some(1, 10, origin=EARLIER), *some(1, 20)]
    assert files(tmp_path) == before
    assert len(await agent.deliver_all()) == 32
    await agent.spool.close(5)


async def test_trouble_is_shown(tmp_path):
    """Refused, damaged, newer and dropped things are counted; whole refused records are dumped as such."""
    directory = tmp_path / "spool"
    agent = Agent(directory, max_size=MIB)
    await agent.spool.open()
    agent.append(some(1, 3))
    await agent.turn()
    taken = agent.take()
    agent.spool.refuse(taken[0])
    agent.spool.give_back(taken[1:])
    await agent.turn()
    agent.store._lose([agent.spool._gap(taken[1], "spool_full")])
    await agent.spool.close(5)
    (directory / "1-2.seg").write_bytes(b"x" * 5_000)
    (directory / "1-3.seg").write_bytes(b"\xffUA\xfe\x09" + bytes(200))
    (directory / "quarantine").mkdir()
    (directory / "quarantine" / "1-4.seg").write_bytes(b"x")
    found = status([directory])
    assert (found.rejected_records, found.quarantined_files, found.newer_segments) == (1, 1, 1)
    assert found.damaged_bytes == 5_000
    assert [gap.reason for gap in found.gaps] == ["spool_full"]
    assert [each.record for each in dump([directory]) if each.rejected] == some(1, 1)


def test_no_spool(tmp_path):
    """Where there is no spool, nothing waits, and none is made."""
    assert status([tmp_path / "none"]) == Status()
    assert list(dump([tmp_path / "none"])) == []
    assert not (tmp_path / "none").exists()


def test_files_that_vanish(tmp_path, monkeypatch):
    """A segment that is acknowledged while it is looked for is no error."""
    directory = tmp_path / "spool"
    directory.mkdir()
    (directory / "1-1.seg").write_bytes(b"")
    real = own_files

    def vanishing(files, opened):
        found = real(files, opened)
        for each in found:
            Files().unlink(opened, each.name)
        return found

    monkeypatch.setattr("agent.spool.status.own_files", vanishing)
    assert status([directory]) == Status()
