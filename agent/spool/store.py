"""The spool's directory and every operation on it, one turn at a time, on whatever thread calls it.

The set of files *is* the queue and unlink *is* the acknowledgement: there is no index and no counter that could
disagree with it. A segment belongs to one topic, is appended to by one run only, and is removed when all of it was
acknowledged. It begins *live*: its records are in memory too, and go to Kafka from there. Handed over, or found at
the start, it is *backlog*: read back block by block, in the order of its number.

Two places. Written to a file system on flash, even what is unlinked a moment later costs a journal of the names: about
5 KB a second on ext4 whatever the rate, 65 bytes a record at 100 records a second. So live blocks go to the *volatile*
directory first, if there is one (a tmpfs, as systemd's RuntimeDirectory= is): it survives the death of the process as
well as the page cache does, and costs flash nothing. What is not acknowledged soon is settled: several blocks as one,
compressed, into the directory proper, and synced.

Disk trouble never raises out of a turn: it is said in the response, and the caller keeps the records in memory.
"""

import errno
import logging
import os
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from agent.device.clock import boottime
from agent.spool import segment as codec
from agent.spool.area import LAST_NUMBER, LINK, Area, Aside, Found, Segment, SpoolInUse
from agent.spool.files import Files
from agent.spool.gaps import joined
from agent.spool.ledger import Ledger
from agent.spool.reading import read_segment, within
from agent.spool.record import Gap, Origin, Record
from agent.spool.segment import Block, Damage, Damaged, Newer
from agent.spool.turn import HandOver, Loaded, New, Request, Response
from agent.spool.writer import Writer

log = logging.getLogger(__name__)

SEGMENT = 256 << 10  # bytes at which a segment is full
BLOCK = 512 << 10  # bytes of values in a block
SHARE = 16  # a segment, or a block, is at most this part of max_size: what cannot be dropped just now stays small
VOLATILE = 4 << 20  # bytes of memory that the volatile directory may take
SYNCED_AT_ONCE = 16  # files of a run that was killed that are synced at the start; the others follow, each turn
SYNCED_A_TURN = 64
SPARE = 10.0  # seconds without another drop for that when it did not help
DROPS = 2  # segments that are dropped for one block on a disk that is full
READ_AGAIN = 30.0  # seconds until a file that could not be read is tried again: a descriptor may have been wanting
LOOK_AGAIN = 1.0  # seconds between two looks at the directory itself
FULL = (errno.ENOSPC, errno.EDQUOT)


class Full(OSError):
    """No room within max_size and min_free, and nothing that may be dropped."""


class Store:
    """The files of one worker of one run. `volatile`: a directory that need not survive a power cut, None without.

    `block`: the most bytes of values that are to be in one block, or to be read ahead of a topic.
    """

    def __init__(
        self,
        directory: Path,
        origin: Origin,
        *,
        max_size: int = 1 << 30,
        min_free: int = 0,
        volatile: Path | None = None,
        files: Files | None = None,
    ) -> None:
        one = volatile is not None and os.path.realpath(str(volatile)) == os.path.realpath(str(directory))
        self._path, self._volatile_path = directory, None if one else volatile
        self.origin = origin
        self._max_size, self._min_free = max_size, min_free
        self.block = min(BLOCK, max_size // SHARE)
        self._files = files or Files()
        self._writer = Writer(self._files, min(SEGMENT, max_size // SHARE))
        self._area: Area | None = None
        self._volatile: Area | None = None
        self._left: set[Area] = set()  # directories that were moved away or removed
        self._ledger = Ledger(origin, self._files)
        self._quarantine = Aside("quarantine", self._files, max_size // 16)
        self._rejected = Aside("rejected", self._files, max_size // 16)
        self._ceiling: int | None = None
        self._spare_until = 0.0  # boot time
        self._names_unproved = False
        self._looked = 0.0
        self._response = Response()

    @property
    def _segments(self) -> dict[int, Segment]:
        return self._writer.segments

    # The turn

    def open(self) -> Response:
        """Locks and lists the directories. Raises `SpoolInUse`, and nothing else: what is wrong is in the response."""
        self._response = Response()
        if self._volatile_path is not None:
            try:
                self._volatile = Area(self._volatile_path, self._files, volatile=True)
            except (OSError, SpoolInUse) as error:
                log.warning("spool: %s cannot be used, and flash is worn more: %s", self._volatile_path, error)
        self._look_for_directory()
        if self._volatile is not None:
            try:
                self._take_in(self._volatile, self._volatile.found())
            except OSError as error:
                self._trouble(str(self._volatile_path), error)
            self._rescue()
        self._looked = boottime()
        return self._answer()

    def turn(self, request: Request) -> Response:
        """Does what is wanted, as far as the disk lets it."""
        self._response = Response()
        if boottime() - self._looked >= LOOK_AGAIN:
            self._look()
        self._prove(SYNCED_A_TURN)
        leaving = {each.segment for each in request.hand_over} | {each.segment for each in request.settle}
        for key in leaving & self._segments.keys():
            self._writer.detach(self._segments[key])  # what is new goes elsewhere
        for refused in request.refused:
            self._set_aside(refused)
        # Acknowledged first: mostly that removes the segment, and the next block begins a new one. But what tells of
        # a refused record is written before it goes.
        steps = [self._acknowledge_all, self._keep_all, self._keep_what_is_lost]
        for step in reversed(steps) if request.refused else steps:
            step(request)
        self._settle(request.settle)
        if request.strict or request.sync:
            self._sync()
        for each in request.hand_over:
            self._hand_over(each)
        if request.load > 0:
            self._load(request.load, request.held)
        return self._answer()

    def close(self) -> None:
        """Syncs what is not synced and lets go of everything."""
        self._sync()
        if self._ledger.due:
            self._keep_gaps()
        for segment in self._segments.values():
            if segment.file is not None:
                self._files.close(segment.file)
        for area in (*self._left, self._area, self._volatile):
            if area is not None:
                area.close()

    def _answer(self) -> Response:
        response = self._response
        if self._writer.unsafe:
            response.unsafe = set(self._writer.unsafe)
            response.trouble = response.trouble or next(iter(self._writer.unsafe.values()))
            self._writer.unsafe.clear()
        response.bytes = self._bytes()
        now = boottime()
        waiting = [s for s in self._segments.values() if s.state == "backlog"]
        if unread := [s.name for s in waiting if s.unread_until > now]:
            response.trouble = response.trouble or f"{unread[0]} cannot be taken in yet"
        response.again = bool(
            self._area is None
            or self._ledger.due
            or self._names_unproved
            or self._writer.unproved
            or self._stranded()
            or any(segment.state == "over" for segment in self._segments.values())
        )
        response.more = any(s.unread_until <= now if s.blocks is None else s.blocks for s in waiting)
        return response

    def _volatile_bytes(self) -> int:
        return sum(segment.size for segment in self._segments.values() if segment.area.volatile)

    def _bytes(self) -> int:
        on_disk = sum(segment.size for segment in self._segments.values() if not segment.area.volatile)
        return on_disk + self._quarantine.bytes + self._rejected.bytes

    def _trouble(self, what: str, error: OSError) -> None:
        if not self._response.trouble:
            self._response.trouble = f"{what}: {error.strerror or error}"

    # Finding

    def _look(self) -> None:
        """Once a second: is the directory still there, are the files, and can now be removed what could not be?"""
        self._looked = boottime()
        if self._area is not None and self._is_replaced(self._area):
            for key, segment in self._segments.items():
                if segment.state == "live" and segment.area is self._area:
                    self._writer.give_up(key, f"{self._path} was moved or replaced")
            self._response.trouble = f"{self._path} was moved or replaced"
            self._left.add(self._area)  # what is in it is read on
            self._area, self._ledger.due = None, True
        if self._area is None:
            self._look_for_directory()
        elif self._names_unproved:
            self._prove_names(self._area)
        for key, segment in list(self._segments.items()):
            if segment.state == "over":
                self._remove(key)
            elif segment.state == "live" and segment.file is not None and self._is_gone(segment.file):
                self._writer.give_up(key, f"{segment.name} was removed")
        if self._ledger.due:
            self._keep_gaps()
        if self._stranded():
            self._rescue()
        for area in self._left - {segment.area for segment in self._segments.values()} - self._ledger.areas():
            self._left.discard(area)
            area.close()

    def _is_replaced(self, area: Area) -> bool:
        try:
            return area.replaced()
        except OSError as error:
            self._trouble(str(area.path), error)
            return False

    def _is_gone(self, file: int) -> bool:
        try:
            return self._files.unlinked(file)
        except OSError:
            return True

    def _look_for_directory(self) -> None:
        """Opens the directory proper and takes in what is there; without it, records stay in memory."""
        found: Sequence[Found] = ()
        try:
            area = next((left for left in self._left if not left.replaced()), None)
            if area is not None:
                self._left.remove(area)  # it is back, with all that is known of it
            else:
                area, found = self._open_directory()
        except OSError as error:
            self._trouble(str(self._path), error)
            return
        except SpoolInUse:
            if self._looked:
                self._response.trouble = f"{self._path}: another uptime-agent uses it"
                return
            raise
        self._area = area
        self._quarantine.look(area)
        self._rejected.look(area)
        self._show_volatile(area)
        self._take_in(area, found)

    def _open_directory(self) -> tuple[Area, list[Found]]:
        """Raises `OSError` and `SpoolInUse`."""
        area = Area(self._path, self._files)
        try:
            return area, area.found()
        except OSError:
            area.close()
            raise

    def _show_volatile(self, area: Area) -> None:
        """Whoever looks at the spool finds the volatile directory by a link in it."""
        try:
            to = None if self._volatile is None else os.path.abspath(str(self._volatile.path))
            self._files.point(area.directory, LINK, to)
        except OSError as error:
            log.debug("spool: %s/%s: %s", area.path, LINK, error)

    def _take_in(self, area: Area, found: Sequence[Found]) -> None:
        older = {}
        for each in found:
            if each.number < LAST_NUMBER:
                self._writer.number = max(self._writer.number, each.number)
            if each.kind == "gaps":
                self._read_gaps(area, each.name)
                continue
            older[self._writer.key()] = Segment(area, each.name, each.number, None, "", each.size)
        in_order = sorted({**self._segments, **older}.items(), key=lambda item: item[1].number)
        self._writer.segments = dict(in_order)
        for key, segment in older.items():
            if segment.size == 0:
                self._remove(key)
        if not area.volatile and older:
            self._writer.unproved += older
            self._prove(SYNCED_AT_ONCE)
            self._prove_names(area)

    def _prove_names(self, area: Area) -> None:
        self._names_unproved = True
        try:
            self._files.sync_directory(area.directory)
            self._names_unproved = False
        except OSError as error:
            self._trouble(f"{self._path} cannot be synced", error)

    def _prove(self, limit: int) -> None:
        if (error := self._writer.prove(limit)) is not None:
            self._trouble("segments that were found cannot be synced", error)

    def _rescue(self) -> None:
        """What a killed run left in the volatile directory goes to the directory proper, as the youngest backlog."""
        for key in self._stranded():
            new: set[int] = set()
            try:
                self._copy(key, new)
                self._sync()
            except (OSError, Damaged) as error:
                log.warning("spool: %s: stays in %s for now: %s", self._segments[key].name, self._volatile_path, error)
                rescued = False
            else:
                rescued = not new & self._writer.unsafe.keys()
            for each in new:
                segment = self._segments[each]
                self._writer.rotate(segment)
                segment.state, segment.left, segment.blocks = "backlog", 0, None
            if not rescued:
                self._segments[key].unread_until = boottime() + READ_AGAIN
            for each in [key] if rescued else new:
                self._remove(each)

    def _stranded(self) -> list[int]:
        """Segments of the volatile directory that an earlier run left, untouched."""
        return [
            key
            for key, segment in self._segments.items()
            if segment.area.volatile
            and segment.state == "backlog"
            and not segment.left
            and segment.unread_until <= boottime()
        ]

    def _copy(self, key: int, new: set[int]) -> None:
        """Writes the records of a segment again, to `new` ones in the directory proper. Raises `OSError`, `Damaged`."""
        if self._area is None:
            raise OSError(errno.ENOENT, f"{self._path} is not there")
        segment = self._segments[key]
        if not self._read(segment):
            raise OSError(errno.EIO, f"{segment.name} cannot be read")
        for block in segment.blocks or ():
            records = codec.decode(block)
            new.add(self._writer.append(self._area, block.origin, block.header.topic, records, self._make_room))

    # Writing

    def _keep_what_is_lost(self, request: Request) -> None:
        if request.gaps is not None:
            self._ledger.say(request.gaps, request.gaps_seen)
            self._keep_gaps()

    def _keep_all(self, request: Request) -> None:
        for new in request.new:
            self._keep([new], None if request.strict else self._volatile)

    def _keep(self, group: Sequence[New], volatile: Area | None) -> None:
        """Writes records of one topic as one block; where it cannot, they are not in the response."""
        records = [record for new in group for record in new.records]
        topic, key = group[0].topic, 0
        if volatile is not None and self._volatile_bytes() < VOLATILE:
            try:
                key = self._writer.append(volatile, self.origin, topic, records)
                self._response.volatile |= {new.key for new in group}
            except OSError as error:
                log.debug("spool: %s: %s", volatile.path, error)  # then to the directory proper
        if not key:
            try:
                key = self._append_proper(topic, records)
            except Full:
                self._response.full = True
                return
            except OSError as error:
                self._trouble(f"{self._path} cannot be written", error)
                return
        for new in group:
            self._response.placed[new.key] = key

    def _append_proper(self, topic: str, records: Sequence[Record]) -> int:
        """To the directory proper; on a full disk the oldest make room. Raises `OSError`."""
        drops = 0
        while True:
            if self._area is None:
                raise OSError(errno.ENOENT, "the directory is not there")
            try:
                return self._writer.append(self._area, self.origin, topic, records, self._make_room)
            except Full:
                raise
            except OSError as error:
                if error.errno not in FULL or self._spare_until > boottime():
                    raise
                drops += 1
                if drops > DROPS or not self._drop_oldest():
                    self._spare_until = boottime() + SPARE
                    raise

    def _make_room(self, size: int) -> None:
        """Drops the oldest segments until `size` more bytes are within the bounds. Raises `Full`, and `OSError`.

        Where something else has taken what should stay free, the spool does not grow, but it does not shrink for it
        either: as journald with its SystemKeepFree= (journald.conf(5)).
        """
        assert self._area is not None
        bound = self._max_size
        if self._files.free(self._area.directory) - size < self._min_free:
            self._ceiling = self._bytes() if self._ceiling is None else self._ceiling
            bound = min(bound, self._ceiling)
        else:
            self._ceiling = None
        while self._bytes() + size > bound:
            if not self._drop_oldest():
                raise Full(errno.ENOSPC, "no room")

    def _sync(self) -> None:
        self._writer.sync()
        self._response.synced = True

    def _settle(self, wanted: Sequence[New]) -> None:
        """Writes live records again, in fewer and larger blocks, and syncs them; only then the old ones may go."""
        groups: dict[str, list[New]] = {}
        for new in wanted:
            group = groups.setdefault(new.topic, [])
            if group and sum(len(r.value) for n in (*group, new) for r in n.records) > self.block:
                self._keep(group, None)
                group.clear()
            group.append(new)
        for group in groups.values():
            self._keep(group, None)
        if wanted:
            self._sync()
        for new in wanted:
            placed = self._response.placed.get(new.key)
            if placed is not None and placed in self._writer.unsafe:
                del self._response.placed[new.key]
                self._acknowledge(placed, len(new.records))
            elif placed is not None:
                self._acknowledge(new.segment, len(new.records))

    # Forgetting

    def _acknowledge_all(self, request: Request) -> None:
        for key, count in request.acknowledged.items():
            self._acknowledge(key, count)

    def _acknowledge(self, key: int, count: int) -> None:
        segment = self._segments.get(key)
        if segment is None:
            return
        segment.left -= count
        if segment.left <= 0 and (segment.state == "live" or (segment.blocks is not None and not segment.blocks)):
            self._remove(key)

    def _remove(self, key: int) -> None:
        """Acknowledged or told as lost: it goes. A damaged one is kept aside for people."""
        segment = self._segments[key]
        keep = segment.damaged and segment.area is self._area
        error = self._writer.remove(key, self._keep_damaged if keep else None)
        if error is not None:
            self._trouble(f"{segment.name} cannot be removed", error)  # tried again once a second

    def _keep_damaged(self, segment: Segment) -> None:
        try:
            self._quarantine.move_in(segment.area, segment.name)
        except OSError as error:
            log.warning("spool: %s: cannot be kept in %s: %s", segment.name, self._quarantine.name, error)
            self._files.unlink(segment.area.directory, segment.name)

    def _set_aside(self, refused: Loaded) -> None:
        """Keeps records for people that Kafka will not take."""
        try:
            if self._area is None:
                raise OSError(errno.ENOENT, f"{self._path} is not there")
            name, data = self._writer.set_aside(refused.origin, refused.topic, refused.records)
            self._rejected.write(self._area, name, data)
        except OSError as error:
            self._trouble(f"{self._rejected.name} cannot be written", error)

    def _drop_oldest(self) -> bool:
        """Makes room: what is kept for people first, then the oldest segment; False when there is nothing to drop."""
        if self._area is None:
            return False
        try:
            for aside in (self._quarantine, self._rejected):
                if aside.bytes:
                    aside.empty(self._area)
                    return True
        except OSError as error:
            self._trouble(f"{aside.name} cannot be emptied", error)
        for key, segment in list(self._segments.items()):
            if segment.area is not self._area or segment.state != "backlog" or segment.left:
                continue
            # One that cannot be read cannot be named, and stays; one that cannot be removed ends it: nor can the next.
            if segment.unread_until <= boottime() and (segment.blocks is not None or self._read(segment)):
                return self._drop(key, segment)
        return False

    def _drop(self, key: int, segment: Segment) -> bool:
        """Whether it is gone. Its gaps are on disk before it is, unless there is room for them only then."""
        gaps = joined(
            row for block in segment.blocks or () for row in within(block.header.gap("spool_full"), segment.wanted)
        )
        self._lose(gaps)
        segment.damaged = False
        self._remove(key)
        if self._ledger.due:
            self._keep_gaps()
        return key not in self._segments

    # Gaps

    def _lose(self, gaps: Sequence[Gap]) -> None:
        if gaps:
            self._response.lost += gaps
            self._ledger.add(gaps)
            self._keep_gaps()

    def _keep_gaps(self) -> None:
        try:
            if self._area is None:
                raise OSError(errno.ENOENT, f"{self._path} is not there")
            self._ledger.write(self._area, self._writer.name(self.origin, "gaps"))
        except OSError as error:
            self._trouble("gaps cannot be kept", error)

    def _read_gaps(self, area: Area, name: str) -> None:
        try:
            self._response.lost += self._ledger.read(area, name)
        except OSError as error:
            self._trouble(f"{name} cannot be read", error)

    # Backlog

    def _hand_over(self, wanted: HandOver) -> None:
        key, segment = wanted.segment, self._segments.get(wanted.segment)
        if segment is None or segment.area.volatile:
            return
        if segment.dirty or segment.named:
            self._sync()
        if key in self._writer.unsafe:
            return
        self._writer.shut(segment)
        segment.state, segment.left, segment.wanted = "backlog", wanted.kept, wanted.wanted
        self._response.handed_over.add(key)

    def _load(self, limit: int, held: frozenset[str]) -> None:
        """Reads until `limit` bytes of values are loaded, or as much was read in vain: a topic is known by reading."""
        in_vain = 0
        for key, segment in list(self._segments.items()):
            if limit <= 0 or in_vain >= self.block:
                self._response.cut_short = limit > 0
                return
            if segment.state != "backlog" or segment.topic in held or segment.unread_until > boottime():
                continue
            if segment.blocks is None and not self._read(segment):
                continue
            if segment.topic in held:
                segment.blocks = None  # the bytes are read again when they are wanted
                in_vain += segment.size
                continue
            while segment.blocks and limit > 0:
                limit -= self._load_block(key, segment, segment.blocks.popleft())
            if not segment.blocks and segment.left <= 0:
                self._remove(key)

    def _load_block(self, key: int, segment: Segment, block: Block) -> int:
        """Bytes of values that were loaded."""
        try:
            records = codec.decode(block)
        except Damaged as error:
            log.warning("spool: %s: a block is damaged: %s", segment.name, error)
            segment.damaged = True
            self._lose(within(block.header.gap("damaged"), segment.wanted))
            return 0
        if segment.wanted is not None:
            records = [r for r in records if any(first <= r.seq <= last for first, last in segment.wanted)]
        if records:
            segment.left += len(records)
            self._response.loaded.append(Loaded(key, block.origin, block.header.topic, records))
        return sum(len(record.value) for record in records)

    def _read(self, segment: Segment) -> bool:
        """Whether its blocks are there to be taken; what is damaged is told."""
        try:
            found = read_segment(self._files, segment.area.directory, segment.name, segment.size)
        except FileNotFoundError:
            log.warning("spool: %s: it was removed by someone", segment.name)
            self._lose(segment.all_of_it("spool_removed"))
            found = []
        except OSError as error:
            self._trouble(f"{segment.name} cannot be read", error)
            if not segment.unread_until:
                log.warning("spool: %s: cannot be read, and is tried again: %s", segment.name, error)
            segment.unread_until = boottime() + READ_AGAIN
            return False
        if isinstance(found, Newer):
            log.warning("spool: %s: of a newer agent (version %d): left alone", segment.name, found.version)
            segment.state = "alone"
            return False
        segment.blocks = deque(each for each in found if isinstance(each, Block))
        if segment.blocks:
            segment.topic = segment.blocks[0].header.topic
        for damage in (each for each in found if isinstance(each, Damage)):
            log.warning("spool: %s: %d bytes at %d are damaged", segment.name, damage.length, damage.offset)
            segment.damaged = segment.damaged or not damage.torn
            self._lose([row for gap in damage.lost for row in within(gap, segment.wanted)])
        return True
