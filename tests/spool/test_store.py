"""The directory is the queue: what was appended is there after any end, until it was acknowledged."""

import errno
import os
import stat

import pytest

from agent.spool import store as module
from agent.spool.area import SpoolInUse
from agent.spool.files import Files
from agent.spool.record import Origin
from agent.spool.store import Store
from agent.spool.turn import HandOver, Loaded, New, Request
from tests.spool.agent import files, kill
from tests.spool.records import EARLIER, EVENTS, ORIGIN, RESULTS, a_gap, seqs, some

KIB, MIB = 1 << 10, 1 << 20


class Queue:
    """Drives a store the simplest way: every turn appends, or reads everything."""

    def __init__(self, directory, origin=ORIGIN, **options):
        self.store = Store(directory, origin, **options)
        self.keys = 0
        self.opened = self.store.open()
        self.lost = list(self.opened.lost)

    def turn(self, **wanted):
        response = self.store.turn(Request(**wanted))
        self.lost += response.lost
        return response

    def append(self, records, **wanted):
        """The segment that holds them."""
        self.keys += 1
        response = self.turn(new=[New(self.keys, records[0].topic, records)], **wanted)
        return response.placed.get(self.keys)

    def read(self, limit=1 << 30, held=frozenset()):
        """All backlog, acknowledged at once."""
        records = []
        while loaded := self.turn(load=limit, held=held).loaded:
            for each in loaded:
                records += each.records
                self.turn(acknowledged={each.segment: len(each.records)})
        return records

    def kill(self):
        """As kill -9 does."""
        kill(self.store)


@pytest.mark.parametrize("volatile", [False, True])
def test_killed(directory, tmp_path, volatile):
    """What was appended by a run that was killed is the backlog of the next, in order, and only once."""
    options = {"volatile": tmp_path / "volatile"} if volatile else {}
    queue = Queue(directory, EARLIER, **options)
    records = some(1, 30, origin=EARLIER)
    for start in range(0, 30, 10):
        queue.append(records[start : start + 10])
    queue.kill()
    queue = Queue(directory, **options)
    assert queue.read() == records
    assert queue.lost == []
    assert queue.read() == []
    assert files(tmp_path) == []
    queue.store.close()


@pytest.mark.parametrize("volatile", [False, True])
def test_acknowledged(directory, tmp_path, volatile):
    """When all of a segment is acknowledged its file is gone; half of it keeps it."""
    options = {"volatile": tmp_path / "volatile"} if volatile else {}
    queue = Queue(directory, **options)
    segment = queue.append(some(1, 10))
    assert segment == queue.append(some(11, 20))
    queue.turn(acknowledged={segment: 19})
    assert len(files(tmp_path)) == 1
    queue.turn(acknowledged={segment: 1})
    assert files(tmp_path) == []
    queue.store.close()


def test_topics_have_segments_of_their_own(directory):
    """A topic that nobody takes from does not hold the segments of another."""
    queue = Queue(directory)
    results, events = queue.append(some(1, 10)), queue.append(some(1, 3, EVENTS))
    assert results != events
    queue.store.close()
    queue = Queue(directory)
    assert {record.topic for record in queue.read(held=frozenset([RESULTS]))} == {EVENTS}
    assert len(files(directory)) == 1
    assert len(queue.read()) == 10


def test_order_over_runs(directory):
    """The backlog of all runs comes in the order it was made, also when the run counter began anew."""
    written = []
    for run, origin in enumerate([EARLIER, ORIGIN._replace(run=1), ORIGIN._replace(run=0)]):
        queue = Queue(directory, origin)
        records = some(1 + run * 100, 50 + run * 100, origin=origin)
        written += records
        for start in range(0, 50, 10):
            queue.append(records[start : start + 10])
        queue.store.close()
    assert Queue(directory).read() == written


def test_rotation(directory):
    """A segment that is full is closed, and the queue is many files of a bounded size."""
    queue = Queue(directory, max_size=MIB)
    records = [record._replace(value=os.urandom(1000)) for record in some(1, 500)]
    for start in range(0, 500, 20):
        queue.append(records[start : start + 20])
    sizes = [path.stat().st_size for path in directory.glob("*.seg")]
    assert len(sizes) == 7
    assert all(size < MIB // 16 + 25_000 for size in sizes)
    queue.store.close()
    queue = Queue(directory)
    assert queue.read(limit=10_000) == records


def fill(queue, first, count, size=1000):
    """Appends `count` blocks of ten records that do not compress, each handed over at once."""
    written = []
    for start in range(first, first + count * 10, 10):
        records = [record._replace(value=os.urandom(size)) for record in some(start, start + 9)]
        segment = queue.append(records)
        if segment is not None:
            written += records
            queue.turn(hand_over=[HandOver(segment, ((start, start + 9),))])
    return written


def test_full(directory):
    """Beyond max_size the oldest go, whole segments at a time, and exactly they are named."""
    queue = Queue(directory, max_size=MIB)
    written = fill(queue, 1, 150)
    assert sum(path.stat().st_size for path in directory.glob("*.seg")) <= MIB
    assert {gap.reason for gap in queue.lost} == {"spool_full"}
    lost = {seq for gap in queue.lost for seq in range(gap.first_seq, gap.last_seq + 1)}
    assert sum(gap.count for gap in queue.lost) == len(lost)
    left = queue.read()
    assert lost | set(seqs(left)) == set(seqs(written))
    assert not lost & set(seqs(left))
    assert min(seqs(left)) > max(lost)
    assert len(left) > 800


def test_gaps_outlive_the_run(directory):
    """Gaps are on disk before what they name is gone: a run that is killed at once tells them with the next."""
    queue = Queue(directory, max_size=MIB)
    fill(queue, 1, 150)
    queue.kill()
    again = Queue(directory)
    assert again.lost == queue.lost
    again.turn(gaps=tuple(again.lost), gaps_seen=len(again.lost))
    again.kill()
    third = Queue(directory)
    assert third.lost == again.lost
    third.turn(gaps=(), gaps_seen=len(third.lost))
    third.kill()
    assert Queue(directory).lost == []


def test_gaps_that_the_caller_has_not_seen(directory):
    """A gap is not forgotten because the caller spoke of its gaps before it had heard of this one."""
    queue = Queue(directory)
    earlier = a_gap(1, 5)
    queue.turn(gaps=(earlier,))
    queue.store._lose([a_gap(6, 9, "spool_full")])
    queue.turn(gaps=(earlier,), gaps_seen=0)
    queue.kill()
    assert Queue(directory).lost == [earlier, a_gap(6, 9, "spool_full")]


def test_what_should_stay_free(directory):
    """Below min_free the spool does not grow and says so, and it drops nothing for what others took."""
    queue = Queue(directory)
    written = fill(queue, 1, 30)
    size = sum(path.stat().st_size for path in directory.glob("*.seg"))
    queue.store._min_free = 1 << 60
    fill(queue, 301, 11)
    assert sum(path.stat().st_size for path in directory.glob("*.seg")) <= size
    lost = {seq for gap in queue.lost for seq in range(gap.first_seq, gap.last_seq + 1)}
    assert lost
    assert len(lost) <= 140
    assert set(seqs(queue.read())) | lost == set(range(1, 411))
    assert written


def test_nothing_fits(directory):
    """With no room at all and nothing to drop, records are not placed, and the store says that it is full."""
    queue = Queue(directory, min_free=1 << 60)
    response = queue.turn(new=[New(1, RESULTS, some(1, 3))])
    assert response.full
    assert response.placed == {}
    assert files(directory) == []
    queue.store._min_free = 0
    assert queue.append(some(1, 3))


def test_second_agent(directory):
    """A second agent on one spool is told so."""
    queue = Queue(directory)
    with pytest.raises(SpoolInUse, match="another uptime-agent uses this spool"):
        Store(directory, ORIGIN).open()
    queue.store.close()
    Store(directory, ORIGIN).open()


def test_foreign_things_are_left_alone(directory):
    """What is not the spool's stays as it is, whatever its name; links are not followed."""
    directory.mkdir()
    outside = directory.parent / "outside"
    outside.write_bytes(b"outside")
    (directory / "notes.txt").write_text("mine")
    (directory / "1-2.seg.bak").write_text("mine")
    (directory / "1-1.seg").mkdir()
    (directory / "1-3.seg").symlink_to(outside)
    os.mkfifo(directory / "1-4.seg")
    (directory / "1-999999999999.seg").write_bytes(b"not of this spool")
    before = {path.name: stat.S_IFMT(path.lstat().st_mode) for path in directory.iterdir()}
    queue = Queue(directory, max_size=MIB)
    assert queue.read() == []
    fill(queue, 1, 150)
    queue.read()
    queue.turn(gaps=(), gaps_seen=len(queue.lost))
    queue.store.close()
    assert {path.name: stat.S_IFMT(path.lstat().st_mode) for path in directory.iterdir()} == before
    assert outside.read_bytes() == b"outside"


def test_newer_agents_files(directory, caplog):
    """Segments of a newer agent are left alone, and the log says so; the others are read."""
    queue = Queue(directory, EARLIER)
    queue.append(some(1, 3, origin=EARLIER))
    queue.store.close()
    theirs = directory / "20-9.seg"
    theirs.write_bytes(b"\xffUA\xfe\x02" + bytes(range(100)))
    queue = Queue(directory)
    assert len(queue.read()) == 3
    assert theirs.exists()
    assert "newer agent (version 2)" in caplog.text
    assert queue.append(some(1, 1))


def damage(path, at, data):
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def test_damaged(directory):
    """A damaged block costs itself and is named; its file is kept in quarantine when the rest is done with."""
    queue = Queue(directory, EARLIER)
    records = some(1, 30, origin=EARLIER)
    for start in range(0, 30, 10):
        queue.append(records[start : start + 10])
    queue.store.close()
    (path,) = directory.glob("*.seg")
    damage(path, path.stat().st_size // 2, b"damage")
    queue = Queue(directory)
    assert queue.read() == [*records[:10], *records[20:]]
    assert queue.lost == [a_gap(11, 20, origin=EARLIER)]
    queue.turn(gaps=(), gaps_seen=1)
    assert files(directory) == ["quarantine/" + path.name]


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 5000, b"\xffUA", os.urandom(3000)], ids=["empty", "zeros", "torn", "?"]
)
def test_files_without_a_block(directory, content):
    """Files that a power cut emptied, and rubbish, stop nothing."""
    directory.mkdir()
    (directory / "3-7.seg").write_bytes(content)
    queue = Queue(directory)
    assert queue.append(some(1, 3))
    assert queue.read() == []
    assert queue.lost == []
    assert not (directory / "3-7.seg").exists()


class BadSector(Files):
    """A disk that cannot read one place."""

    def __init__(self, first, last):
        self.first, self.last = first, last

    def read(self, directory, name, limit, offset=0):
        data = super().read(directory, name, limit, offset)
        if offset < self.last and offset + len(data) > self.first:
            raise OSError(errno.EIO, "Input/output error")
        return data


def test_a_bad_sector(directory):
    """A place of the disk that cannot be read costs the block it is in, which is named; what is behind it arrives."""
    queue = Queue(directory, EARLIER)
    records = some(1, 90, size=1000, origin=EARLIER)
    for start in range(0, 90, 30):
        queue.append(records[start : start + 30])
    queue.store.close()
    (path,) = directory.glob("*.seg")
    middle = path.stat().st_size // 2
    queue = Queue(directory, files=BadSector(middle, middle + 512))
    assert queue.read() == [*records[:30], *records[60:]]
    assert queue.lost == [a_gap(31, 60, origin=EARLIER)]


def test_quarantine_is_bounded(directory):
    """However much is damaged, what is kept of it is bounded, and the oldest goes first."""
    directory.mkdir()
    for number in range(1, 151):
        (directory / f"3-{number}.seg").write_bytes(os.urandom(100))
    Queue(directory).read()
    kept = files(directory)
    assert len(kept) == 100
    assert "quarantine/3-150.seg" in kept
    assert "quarantine/3-50.seg" not in kept


def test_rejected(directory):
    """A refused record is kept by itself, readable, bounded, and its neighbours are not touched."""
    queue = Queue(directory, max_size=MIB)
    records = some(1, 10)
    segment = queue.append(records)
    queue.turn(refused=[Loaded(0, ORIGIN, RESULTS, [records[4]])])
    queue.turn(acknowledged={segment: 1})
    assert [name.split("/")[0] for name in files(directory) if "/" in name] == ["rejected"]
    for number in range(20):
        big = records[0]._replace(value=os.urandom(10_000), seq=number)
        queue.turn(refused=[Loaded(0, ORIGIN, RESULTS, [big])])
    assert sum(path.stat().st_size for path in (directory / "rejected").iterdir()) <= MIB // 16
    queue.store.close()
    assert Queue(directory).read() == records


def test_directory_replaced(directory):
    """When the directory is moved away, the live records are to be settled in the new one, and the rest is read on."""
    queue = Queue(directory)
    backlog = fill(queue, 1, 3)
    records = some(31, 40)
    segment = queue.append(records)
    directory.rename(directory.parent / "moved")
    queue.store._looked -= 10
    response = queue.turn()
    assert segment in response.unsafe
    assert "moved or replaced" in response.trouble
    response = queue.turn(settle=[New(7, RESULTS, records, segment)])
    assert response.placed[7] != segment
    assert len(files(directory)) == 1
    assert queue.read() == backlog
    queue.kill()
    assert Queue(directory).read() == records


def test_directory_removed(directory):
    """When the directory is removed, measuring goes on in a new one, and what was only there is named."""
    queue = Queue(directory)
    fill(queue, 1, 3)
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()
    queue.store._looked -= 10
    queue.turn()
    assert queue.read() == []
    assert [(gap.first_seq, gap.last_seq, gap.reason) for gap in queue.lost] == [
        (1, 10, "spool_removed"),
        (11, 20, "spool_removed"),
        (21, 30, "spool_removed"),
    ]
    assert queue.append(some(31, 40))
    assert len(list(directory.glob("*.seg"))) == 1


def test_files_removed(directory):
    """When someone removes the file that is appended to, its records are to be settled in another."""
    queue = Queue(directory)
    segment = queue.append(some(1, 10))
    next(directory.glob("*.seg")).unlink()
    queue.store._looked -= 10
    assert segment in queue.turn().unsafe
    assert queue.append(some(11, 20)) != segment


@pytest.mark.parametrize("inside", ["file", "below a file"])
def test_no_directory_can_be_made(tmp_path, inside):
    """With a file where the directory should be, the store opens all the same, and takes the directory when it can."""
    path = tmp_path / "there"
    path.write_text("a file")
    directory = path if inside == "file" else path / "spool"
    queue = Queue(directory)
    assert queue.opened.trouble
    assert queue.append(some(1, 3)) is None
    path.unlink()
    queue.store._looked -= 10
    assert queue.append(some(1, 3))


def test_settled_together(directory, tmp_path):
    """What waits in the volatile directory is settled as one block, compressed and synced, and leaves it."""
    volatile = tmp_path / "volatile"
    queue = Queue(directory, volatile=volatile)
    new = [New(n, RESULTS, some(n * 10, n * 10 + 9)) for n in range(1, 5)]
    response = queue.turn(new=new)
    assert response.volatile == {1, 2, 3, 4}
    assert files(directory) == []
    for each in new:
        each.segment = response.placed[each.key]
    response = queue.turn(settle=new)
    assert response.synced
    assert response.volatile == set()
    assert files(volatile) == []
    (path,) = directory.glob("*.seg")
    assert path.stat().st_size < 2_000
    (segment,) = set(response.placed.values())
    queue.turn(acknowledged={segment: 40})
    assert files(directory) == []


def test_handed_over_in_part(directory):
    """Of a segment that is left to the disk, only what is still wanted is read again."""
    queue = Queue(directory)
    segment = queue.append(some(1, 10))
    queue.append(some(11, 20))
    queue.turn(acknowledged={segment: 7}, sync=True)
    assert queue.turn(hand_over=[HandOver(segment, ((5, 12), (16, 20)))]).handed_over == {segment}
    assert seqs(queue.read()) == [5, 6, 7, 8, 9, 10, 11, 12, 16, 17, 18, 19, 20]
    assert files(directory) == []


@pytest.mark.parametrize(
    "name", ["1-99999999999.seg", "1-100000000000.seg", "1-899999999999.seg", "9007199254740992-1.seg"]
)
def test_no_name_of_a_file_hides_what_is_written_later(directory, name):
    """A foreign file with the highest number there is, or a run counter gone wild: the next start finds all."""
    directory.mkdir()
    (directory / name).write_bytes(b"junk")
    wild = Origin(9007199254740992, "1" * 16, 0)
    store = Store(directory, wild)
    store.open()
    store.turn(Request(new=[New(1, RESULTS, some(1, 3, origin=wild))]))
    store.close()
    again = Store(directory, ORIGIN)
    again.open()
    (loaded,) = again.turn(Request(load=1 << 20)).loaded
    assert seqs(loaded.records) == [1, 2, 3]
    again.close()


@pytest.mark.parametrize("link", [False, True])
def test_one_directory_for_both(directory, link):
    """A volatile directory that is the directory proper is no other agent."""
    volatile = directory
    if link:
        directory.mkdir()
        volatile = directory.with_name("link")
        volatile.symlink_to(directory)
    store = Store(directory, ORIGIN, volatile=volatile)
    assert not store.open().trouble
    store.close()


def test_what_cannot_be_read_for_a_moment_is_not_given_up(directory, monkeypatch):
    """A file for which no descriptor was left is read a little later, without a restart."""
    before = Store(directory, EARLIER)
    before.open()
    before.turn(Request(new=[New(1, RESULTS, some(1, 3, origin=EARLIER))]))
    before.close()
    monkeypatch.setattr(module, "READ_AGAIN", 0.0)
    files = Files()
    store = Store(directory, ORIGIN, files=files)
    store.open()
    with monkeypatch.context() as patch:

        def wanting(*_):
            raise OSError(errno.EMFILE, "Too many open files")

        patch.setattr(files, "read", wanting)
        assert not store.turn(Request(load=1 << 20)).loaded
    (loaded,) = store.turn(Request(load=1 << 20)).loaded
    assert seqs(loaded.records) == [1, 2, 3]
    store.close()


def test_a_file_that_cannot_be_read_does_not_keep_the_spool_full(directory, monkeypatch):
    """The next oldest goes in its place, and is named."""
    before = Store(directory, EARLIER, max_size=1 << 20)
    before.open()
    for number in range(16):
        before.turn(Request(new=[New(number, RESULTS, some(number * 9 + 1, number * 9 + 7, size=9_000))]))
    before.close()
    oldest = min(directory.glob("*.seg"), key=lambda path: int(path.stem.partition("-")[2])).name
    files = Files()
    real = files.read

    def dying(area, name, *of):
        if name == oldest:
            raise OSError(errno.EMFILE, "Too many open files")
        return real(area, name, *of)

    monkeypatch.setattr(files, "read", dying)
    store = Store(directory, ORIGIN, max_size=1 << 20, files=files)
    store.open()
    placed, lost = set(), []
    for number in range(12):
        response = store.turn(Request(new=[New(number, RESULTS, some(number * 9 + 1, number * 9 + 7, size=9_000))]))
        placed |= response.placed.keys()
        lost += response.lost
    assert placed == set(range(12))
    assert {gap.reason for gap in lost} == {"spool_full"}
    assert (directory / oldest).exists()
    store.close()


def test_one_file_that_cannot_be_rescued_holds_up_no_other(directory, tmp_path, monkeypatch):
    """What a newer agent left in the volatile directory stays there; the rest goes to the disk proper, once."""
    volatile = tmp_path / "volatile"
    before = Store(directory, EARLIER, volatile=volatile)
    before.open()
    for number in range(3):
        before.turn(Request(new=[New(number, (RESULTS, EVENTS)[number % 2], some(number * 9 + 1, number * 9 + 3))]))
    before.close()
    (volatile / "0-1.seg").write_bytes(b"\xffUA\xfe\x09" + bytes(200))
    files = Files()
    syncs = []
    real = files.sync
    monkeypatch.setattr(files, "sync", lambda file: (syncs.append(file), real(file)))
    monkeypatch.setattr(module, "LOOK_AGAIN", 0.0)
    store = Store(directory, ORIGIN, volatile=volatile, files=files)
    store.open()
    assert [path.name for path in volatile.iterdir()] == ["0-1.seg"]
    assert sum(len(each.records) for each in store.turn(Request(load=1 << 20)).loaded) == 9
    quiet = len(syncs)
    for _ in range(3):
        store.turn(Request())
    assert len(syncs) == quiet
    store.close()


def test_a_topic_that_is_not_wanted_is_not_read_whole(directory, monkeypatch):
    """Looking for the events among much backlog of results takes some turns, not one long one; none is missed."""
    before = Store(directory, EARLIER, max_size=1 << 20)
    before.open()
    for number in range(40):
        before.turn(Request(new=[New(number, RESULTS, some(number * 9 + 1, number * 9 + 3, size=9_000))]))
    before.turn(Request(new=[New(100, EVENTS, some(1, 1, EVENTS))]))
    before.close()
    files = Files()
    read = []
    real = files.read
    monkeypatch.setattr(files, "read", lambda *of: (read.append(of[1]), real(*of))[1])
    store = Store(directory, ORIGIN, max_size=1 << 20, files=files)
    store.open()
    response = store.turn(Request(load=1 << 20, held=frozenset({RESULTS})))
    assert response.cut_short
    assert len(set(read)) < 10
    for _ in range(60):
        if response.loaded:
            break
        response = store.turn(Request(load=1 << 20, held=frozenset({RESULTS})))
    assert [each.topic for each in response.loaded] == [EVENTS]
    store.close()
