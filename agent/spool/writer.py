"""Appends blocks to segments, syncs them and removes them: the half of the store that changes files.

A segment is appended to as long as it is *current*: one for each directory and topic. It is never opened again.
"""

import logging
from collections.abc import Callable, Sequence

import zstandard

from agent.spool import segment as codec
from agent.spool.area import Area, Segment
from agent.spool.files import Files, write_all
from agent.spool.record import Origin, Record

log = logging.getLogger(__name__)

UNSYNCED = 8  # full segments that may wait for the next sync with their file open


class Writer:
    """`segments`, by a key of their own and in order of their number; `limit`: bytes at which one is full."""

    def __init__(self, files: Files, limit: int) -> None:
        self._files, self._limit = files, limit
        self.segments: dict[int, Segment] = {}
        self.number = 0  # the highest of any file
        self.unsafe: dict[int, str] = {}  # segments whose sync failed, and how; emptied by who has read it
        self.unproved: list[int] = []  # segments that were found, and may not have been synced; the newest last
        self._current: dict[tuple[Area, str], int] = {}
        self._keys = 0
        self._compressor = zstandard.ZstdCompressor(level=1)

    def key(self) -> int:
        """A new key."""
        self._keys += 1
        return self._keys

    def name(self, origin: Origin, kind: str) -> str:
        """A new name for a file."""
        self.number += 1
        return f"{origin.run}-{self.number}.{kind}"

    def append(
        self,
        area: Area,
        origin: Origin,
        topic: str,
        records: Sequence[Record],
        make_room: Callable[[int], None] | None = None,
    ) -> int:
        """Appends a block to the current segment or a new one, compressed unless it is `area.volatile`; its key.

        `make_room` is given the bytes that are needed. Raises `OSError`, and then nothing was appended.
        """
        key = self._current.get((area, topic), 0)
        segment = self.segments.get(key)
        if segment is not None and (segment.size >= self._limit or segment.origin != origin):
            self.rotate(segment)
            segment = None
        before = 0 if segment is None else segment.records
        data = codec.encode(origin, topic, records, before, None if area.volatile else self._compressor)
        if make_room is not None:
            make_room(len(data))
        if segment is None:
            key, segment = self._create(area, origin, topic)
        try:
            self._write(segment, data)
        except OSError:
            self.rotate(segment)
            if segment.size == 0:
                self.remove(key)
            raise
        segment.note(records)
        return key

    def set_aside(self, origin: Origin, topic: str, records: Sequence[Record]) -> tuple[str, bytes]:
        """Name and bytes of a file of its own with these records."""
        return self.name(origin, "seg"), codec.encode(origin, topic, records, 0, self._compressor)

    def _create(self, area: Area, origin: Origin, topic: str) -> tuple[int, Segment]:
        segment = Segment(area, self.name(origin, "seg"), self.number, origin, topic)
        segment.file = self._files.create(area.directory, segment.name)
        segment.state, segment.named = "live", True
        key = self._current[area, topic] = self.key()
        self.segments[key] = segment
        return key, segment

    def _write(self, segment: Segment, data: bytes) -> None:
        assert segment.file is not None
        segment.dirty = True
        try:
            write_all(self._files, segment.file, data)
        except OSError:
            try:
                self._files.truncate(segment.file, segment.size)
            except OSError as error:
                log.warning("spool: %s: a torn block stays at its end: %s", segment.name, error)
            raise
        segment.size += len(data)

    def detach(self, segment: Segment) -> None:
        """Nothing is appended to it any more."""
        self._current = {at: key for at, key in self._current.items() if self.segments[key] is not segment}

    def rotate(self, segment: Segment) -> None:
        """As `detach`; its file stays open until it is synced or removed, and not too many do."""
        self.detach(segment)
        if segment.area.volatile or not segment.dirty:
            self.shut(segment)
        elif sum(1 for s in self.segments.values() if s.file is not None) > UNSYNCED + len(self._current):
            self.sync()

    def shut(self, segment: Segment) -> None:
        """Closes its file, if it is open."""
        if segment.file is not None:
            file, segment.file = segment.file, None
            try:
                self._files.close(file)
            except OSError as error:  # what close(2) could tell was asked of fdatasync(2) where it matters
                log.debug("spool: %s: %s", segment.name, error)

    def sync(self) -> None:
        """Everything that is not volatile survives a power cut after this, or is unsafe.

        A sync that failed is not tried again: the kernel has marked the pages clean and would say yes (fsyncgate).
        """
        for key, segment in list(self.segments.items()):
            if segment.file is None or segment.area.volatile:
                continue
            try:
                if segment.dirty:
                    self._files.sync(segment.file)
            except OSError as error:
                self.give_up(key, f"{segment.name} cannot be synced: {error.strerror or error}")
                continue
            segment.dirty = False
            if key not in self._current.values():
                self.shut(segment)
        unnamed = [(key, s) for key, s in self.segments.items() if s.named and not s.area.volatile]
        for area in {segment.area for _, segment in unnamed}:
            self._sync_names(area, [(key, segment) for key, segment in unnamed if segment.area is area])

    def _sync_names(self, area: Area, unnamed: Sequence[tuple[int, Segment]]) -> None:
        try:
            self._files.sync_directory(area.directory)
        except OSError as error:
            for key, _ in unnamed:
                self.give_up(key, f"{area.path} cannot be synced: {error.strerror or error}")
        else:
            for _, segment in unnamed:
                segment.named = False

    def prove(self, limit: int) -> OSError | None:
        """Syncs some of what was found: a run that was killed may have left files that only the page cache has.

        They are not tried again, as nobody has a copy of them; the error of the last that failed.
        """
        failed = None
        for _ in range(min(limit, len(self.unproved))):
            segment = self.segments.get(self.unproved.pop())
            if segment is None or segment.state == "over":
                continue
            try:
                self._files.sync_named(segment.area.directory, segment.name)
            except OSError as error:
                failed = error
        return failed

    def give_up(self, key: int, why: str) -> None:
        """It may not survive: its records are to be written elsewhere, from memory."""
        segment = self.segments[key]
        self.unsafe[key] = why
        segment.dirty = segment.named = False
        self.detach(segment)
        self.shut(segment)

    def remove(self, key: int, to: Callable[[Segment], None] | None = None) -> OSError | None:
        """Unlinks a segment, or gives it to `to`; what kept it from that, and then it is `over` and still there."""
        segment = self.segments[key]
        self.detach(segment)
        self.shut(segment)
        segment.state, segment.blocks = "over", None
        try:
            if to is not None:
                to(segment)
            else:
                self._files.unlink(segment.area.directory, segment.name)
        except FileNotFoundError:
            pass
        except OSError as error:
            return error
        del self.segments[key]
        return None
