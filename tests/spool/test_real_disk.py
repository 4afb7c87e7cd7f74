"""Real disks that lose power, are full, cannot be written to, or fail."""

import asyncio
import os
import signal
import time
from pathlib import Path
from random import Random

import pytest

from agent.spool import spool as spool_module
from agent.spool import store as store_module
from tests.spool.agent import MIB, Agent, files
from tests.spool.image import command, disks, disks_work, fill, unmount
from tests.spool.records import EARLIER, ORIGIN, RESULTS, seqs, some
from tests.spool.test_killed import NEXT, the_process
from tests.spool.witnessed import Witness

__all__ = ["disks", "disks_work"]

CUTS = int(os.environ.get("SPOOL_CUTS", "6"))


def stop(process):
    """SIGSTOP, and waits until no thread of it is within a call any more."""
    process.send_signal(signal.SIGSTOP)
    tasks = Path(f"/proc/{process.pid}/task")
    while not all(task.joinpath("stat").read_text().rpartition(")")[2].split()[0] == "T" for task in tasks.iterdir()):
        time.sleep(0.001)


def at_one_moment(image):
    """The bytes of an image that the kernel may still write to: what two readings agree on."""
    before = b""
    while (now := image.read_bytes()) != before:
        before = now
    return now


async def after_power_cuts(disks, sync):
    """Power cuts of a spool at random moments; all that was said to be synced and is not found after one."""
    image, random = disks.image(size=8 * MIB), Random(CUTS)
    disk = disks.mount(image)
    gone, kept, unsafe = set(), 0, 0
    with the_process(disks.path, disks.path / "volatile", sync=sync, spool=disk / "spool") as process:
        try:
            async with asyncio.timeout(60):
                while not (disks.path / "witness").exists():  # a busy machine takes its time to start the process
                    await asyncio.sleep(0.05)
            for cut in range(CUTS):
                await asyncio.sleep(random.uniform(0.3, 0.6))
                stop(process)
                medium, witness = at_one_moment(image), Witness(disks.path / "witness")
                process.send_signal(signal.SIGCONT)
                (disks.path / f"medium{cut}").write_bytes(medium)
                found = disks.mount(disks.path / f"medium{cut}", f"found{cut}")
                agent = Agent(found / "spool", NEXT)
                await agent.spool.open()
                await agent.deliver_all()
                await agent.spool.close(5)
                unmount(found)
                kept += len(witness.synced - witness.arrived.keys())
                unsafe += len(witness.kept - witness.synced - witness.arrived.keys())
                witness.hear(agent)
                gone |= witness.missing() & witness.synced
        finally:
            process.kill()
    assert kept
    assert unsafe
    return gone


async def test_power_cut(disks):
    """After a power cut at any moment, what was said to be synced is there, unless it had arrived; none is made up."""
    assert await after_power_cuts(disks, sync="with") == set()


async def test_power_cut_without_sync(disks):
    """The same finds records missing when nothing is synced: the disk that loses power here really does."""
    assert await after_power_cuts(disks, sync="without") != set()


@pytest.fixture
def hurried(monkeypatch):
    """Seconds become hundredths."""
    for module, name in ((spool_module, "YOUNG"), (spool_module, "SYNC"), (store_module, "LOOK_AGAIN")):
        monkeypatch.setattr(module, name, getattr(module, name) / 100)
    monkeypatch.setattr(store_module, "SPARE", 0.1)


@pytest.fixture(params=["volatile", "without"])
def volatile(request, tmp_path):
    return tmp_path / "volatile" if request.param == "volatile" else None


async def until(agent, condition, seconds=20):
    """Turns until something holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        await agent.turn()
        await asyncio.sleep(0.01)


def all_synced(agent):
    return lambda: not agent.spool._new and all(block.place == "synced" for block in agent.spool._blocks.values())


async def opened(directory, origin=ORIGIN, **options):
    agent = Agent(directory, origin, **options)
    await agent.spool.open()
    return agent


def accounted(agent, first, last):
    """Whether each record arrived, or is named in a gap that did."""
    arrived = {record.seq for record in agent.arrived if record.topic == RESULTS}
    told = {seq for gap in agent.gaps() for seq in range(gap.first_seq, gap.last_seq + 1) if gap.topic == RESULTS}
    return arrived | told == set(range(first, last + 1)) and not arrived & told


async def test_full_at_the_start(disks, caplog, hurried, volatile):
    """On a disk that is full, records go from memory; as soon as there is room, what is left of them is on disk."""
    disk = disks.mount(disks.image(size=4 * MIB))
    ballast = fill(disk)
    agent = await opened(disk / "spool", EARLIER, volatile=volatile)
    agent.append(some(1, 500, origin=EARLIER))
    await agent.turn()
    assert seqs(agent.deliver(200)) == list(range(1, 201))
    agent.spool.broker_lost = True
    for _ in range(5):
        await agent.turn()
        await asyncio.sleep(0.02)
    assert "No space left on device" in caplog.text
    assert len(agent.spool) == 300
    ballast.unlink()
    await until(agent, all_synced(agent))
    await agent.kill()
    agent = await opened(disk / "spool", volatile=volatile)
    assert seqs(await agent.deliver_all()) == list(range(201, 501))
    assert agent.gaps() == []
    await agent.spool.close(5)


async def test_fills_up(disks, hurried, volatile):
    """While something else fills the disk up, the oldest make room; each record arrives or is named; it recovers."""
    disk = disks.mount(disks.image(size=4 * MIB))
    agent = await opened(disk / "spool", volatile=volatile, memory=100_000)
    agent.spool.broker_lost = True
    ballast, seq = None, 0
    while seq < 6_000:
        agent.append(some(seq + 1, seq + 50, size=300))
        seq += 50
        await agent.turn()
        if seq == 2_000:
            ballast = fill(disk, leave=4096)
        if seq == 4_000:
            ballast.unlink()
    agent.spool.broker_lost = False
    await agent.deliver_all()
    assert accounted(agent, 1, 6_000)
    assert agent.gaps()
    await until(agent, lambda: [name for name in files(disk / "spool") if name.endswith("seg")] == [])
    assert await agent.spool.close(5) == 0


async def test_remounted_read_only(disks, caplog, hurried, volatile):
    """While the disk is mounted read-only, records go from memory; when it is writable again, they are on disk."""
    disk = disks.mount(disks.image(size=4 * MIB))
    agent = await opened(disk / "spool", EARLIER, volatile=volatile)
    agent.append(some(1, 100, origin=EARLIER))
    agent.spool.broker_lost = True
    await until(agent, all_synced(agent))
    agent.spool.broker_lost = False
    await agent.deliver_all()
    command("mount", "-o", "remount,ro", disk)
    agent.append(some(101, 200, origin=EARLIER))
    agent.spool.broker_lost = True
    for _ in range(5):
        await agent.turn()
        await asyncio.sleep(0.02)
    assert "Read-only file system" in caplog.text
    assert seqs(agent.deliver(50)) == list(range(101, 151))
    command("mount", "-o", "remount,rw", disk)
    await until(agent, all_synced(agent))
    await agent.kill()
    agent = await opened(disk / "spool", volatile=volatile)
    assert seqs(await agent.deliver_all()) == list(range(151, 201))
    assert agent.gaps() == []
    await agent.spool.close(5)


async def test_read_only_at_the_start(disks, caplog, hurried, volatile):
    """On a disk that is read-only the start is not refused; the backlog that is there is sent, once, and goes later."""
    image = disks.image(size=4 * MIB)
    disk = disks.mount(image)
    agent = await opened(disk / "spool", EARLIER)
    agent.append(some(1, 100, origin=EARLIER))
    await agent.spool.close(5)
    command("mount", "-o", "remount,ro", disk)
    agent = await opened(disk / "spool", volatile=volatile)
    agent.append(some(1, 10))
    arrived = await agent.deliver_all()
    assert "Read-only file system" in caplog.text
    assert sorted(arrived) == sorted([*some(1, 100, origin=EARLIER), *some(1, 10)])
    command("mount", "-o", "remount,rw", disk)
    await until(agent, lambda: files(disk / "spool") == [])
    assert await agent.deliver_all() == []
    assert await agent.spool.close(5) == 0


async def test_syncs_that_fail(disks, caplog, hurried):
    """What was on a disk whose fdatasync fails is not believed to be there: once it works, a power cut takes nothing.

    The image is sparse, and what it lies on is full: writing goes well, and bringing it to the disk does not.
    """
    memory = disks.tmpfs(6 * MIB)
    image = disks.image("memory/image", 16 * MIB)
    disk = disks.mount(image)
    agent = await opened(disk / "spool", EARLIER)
    agent.spool.broker_lost = True
    ballast, seq = fill(memory), 0
    for _ in range(30):
        agent.append(some(seq + 1, seq + 20, size=1000, origin=EARLIER))
        seq += 20
        await agent.turn()
        await asyncio.sleep(0.01)
    assert "cannot be synced" in caplog.text
    assert not all_synced(agent)()
    ballast.unlink()
    await until(agent, all_synced(agent))
    medium = disks.path / "medium"
    medium.write_bytes(at_one_moment(image))
    found = disks.mount(medium, "found")
    next_one = await opened(found / "spool")
    await next_one.deliver_all()
    assert {record.seq for record in next_one.arrived} == set(range(1, seq + 1))
    await next_one.spool.close(5)
    await agent.kill()


async def test_dies(disks, caplog, hurried, volatile):
    """A disk that answers nothing but I/O errors stops nobody; with another in its place, records are on disk again."""
    image = disks.image(size=4 * MIB)
    disk = disks.mount(image)
    agent = await opened(disk / "spool", EARLIER, volatile=volatile)
    agent.append(some(1, 100, origin=EARLIER))
    agent.spool.broker_lost = True
    await until(agent, all_synced(agent))
    shrink(disk, image, 64 << 10)
    agent.append(some(101, 200, origin=EARLIER))
    for _ in range(10):
        await agent.turn()
        await asyncio.sleep(0.02)
    assert "Input/output error" in caplog.text
    assert seqs(agent.deliver(150)) == list(range(1, 151))
    command("umount", "-l", disk)
    disks.mount(disks.image("another", 4 * MIB))
    await until(agent, all_synced(agent))
    await agent.kill()
    agent = await opened(disk / "spool", volatile=volatile)
    assert seqs(await agent.deliver_all()) == list(range(151, 201))
    await agent.spool.close(5)


async def test_bad_sectors(disks, caplog):
    """Of a file that the disk can read only in part, what can be read arrives, and the rest is named."""
    image = disks.image("image", 8 * MIB, "-O", "^has_journal")
    disk = disks.mount(image)
    agent = await opened(disk / "spool", EARLIER)
    for first, last in ((1, 100), (101, 200), (201, 300)):
        agent.append(some(first, last, size=400, origin=EARLIER))
        await agent.turn()
    await agent.spool.close(5)
    (name,) = files(disk / "spool")
    size = (disk / "spool" / name).stat().st_size
    unmount(disk)
    block = int(command("debugfs", "-R", f"bmap /spool/{name} {(size - 10_000) // 1024}", image).split()[-1])
    disk = disks.mount(image, options="loop,ro")
    shrink(disk, image, block * 1024)
    with pytest.raises(OSError, match="Input/output error"):
        (disk / "spool" / name).read_bytes()
    agent = await opened(disk / "spool")
    await agent.deliver_all()
    assert accounted(agent, 1, 300)
    assert [(gap.first_seq, gap.last_seq, gap.reason) for gap in agent.gaps()] == [(201, 300, "damaged")]
    assert "are damaged" in caplog.text
    await agent.kill()


def shrink(disk, image, size):
    """From now on, what is beyond `size` bytes of a mounted disk cannot be read or written: EIO."""
    device = command("findmnt", "-no", "SOURCE", disk).strip()
    os.truncate(image, size)
    command("losetup", "-c", device)
