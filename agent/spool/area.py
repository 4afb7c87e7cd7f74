"""A directory of segment files: their names and states, the lock, and the folders for what is set aside.

Only regular files named `<run>-<n>.seg` and `<run>-<n>.gaps` are the spool's; everything else in the directory is left
alone, and no link is followed. `n` grows over all runs: it alone is the order, also when the run counter began anew.
"""

import contextlib
import re
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from agent.spool.files import Files, write_all
from agent.spool.reading import within
from agent.spool.record import Gap, Origin, Record
from agent.spool.segment import Block

LINK = "volatile"  # in the directory proper, to the volatile one: for people who look; nothing here follows it
LAST_NUMBER = 10**11  # new files do not go on from a higher one, which may be foreign: there would be no room left
HIGHEST = 9 * LAST_NUMBER  # and from here on none is ours
_NAME = re.compile(r"([0-9]{1,16})-([0-9]{1,12})\.(seg|gaps)")  # a run has at most 53 bits


class SpoolInUse(Exception):
    """Another agent has this spool."""


class Found(NamedTuple):
    """A file of the spool. `kind`: seg or gaps."""

    number: int
    run: int
    kind: str
    name: str
    size: int


class Area:
    """One open, locked directory; a volatile one need not survive a power cut.

    Raises `OSError`, or `SpoolInUse` when another process has locked it.
    """

    def __init__(self, path: Path, files: Files, volatile: bool = False) -> None:
        self.path, self.volatile = path, volatile
        self._files = files
        self.directory = files.open_directory(str(path))
        if not files.lock(self.directory):
            files.close(self.directory)
            raise SpoolInUse(f"{path}: another uptime-agent uses this spool")

    def close(self) -> None:
        """Gives up the lock."""
        self._files.close(self.directory)

    def replaced(self) -> bool:
        """Whether the path does not lead here any more."""
        return not self._files.leads_to(str(self.path), self.directory)

    def found(self) -> list[Found]:
        """The spool's own files, in order."""
        return own_files(self._files, self.directory)


def own_files(files: Files, directory: int) -> list[Found]:
    """The files of a spool in a directory, in order. Raises `OSError`."""
    found = []
    for entry in files.list(directory):
        named = _NAME.fullmatch(entry.name)
        if named and entry.regular and int(named[2]) < HIGHEST:
            found.append(Found(int(named[2]), int(named[1]), named[3], entry.name, entry.size))
    return sorted(found)


class Segment:
    """One file."""

    def __init__(self, area: Area, name: str, number: int, origin: Origin | None, topic: str, size: int = 0) -> None:
        self.area, self.name, self.number = area, name, number
        self.origin, self.topic = origin, topic  # None and "" until it is read
        self.size = size
        self.file: int | None = None  # while it is appended to, or waits for its sync
        self.records = 0  # that this run wrote to it
        self.left = 0  # in memory and not acknowledged
        # live: its records are in memory too; backlog: they are not; over: to be removed, as soon as the disk lets us;
        # alone: a newer agent's: not ours to touch
        self.state: Literal["live", "backlog", "over", "alone"] = "backlog"
        self.dirty = self.named = False  # bytes, or the name, wait for a sync
        self.blocks: deque[Block] | None = None  # still to be loaded; None until it is read
        self.wanted: tuple[tuple[int, int], ...] | None = None
        self.unread_until = 0.0  # boot time; then it is tried again
        self.damaged = False
        self._first: Record | None = None  # of what this run wrote, without their values
        self._last: Record | None = None

    def note(self, records: Sequence[Record]) -> None:
        """Records were written to it."""
        self._first = self._first or records[0]._replace(value=b"")
        self._last = records[-1]._replace(value=b"")
        self.records += len(records)
        self.left += len(records)

    def all_of_it(self, reason: str) -> list[Gap]:
        """What this run wrote to it and is still wanted, as records that will never come."""
        first, last, origin = self._first, self._last, self.origin
        if first is None or last is None or origin is None:
            return []
        gap = Gap(
            topic=self.topic,
            run_id=origin.run_id,
            worker=origin.worker,
            first_seq=first.seq,
            last_seq=last.seq,
            count=self.records,
            reason=reason,
            first_at=first.at,
            last_at=last.at,
        )
        return within(gap, self.wanted)


class Aside:
    """A folder in the spool for what is kept for people: at most `max_files` and `max_bytes`; the oldest go first."""

    def __init__(self, name: str, files: Files, max_bytes: int, max_files: int = 100) -> None:
        self.name = name
        self._files = files
        self._max_bytes, self._max_files = max_bytes, max_files
        self.bytes = 0

    def look(self, area: Area) -> None:
        """Finds out how much is there; nothing, if it cannot be opened or something foreign has its name."""
        self.bytes = 0
        with contextlib.suppress(OSError):
            folder = self._files.open_directory(self.name, area.directory, create=False)
            try:
                self.bytes = sum(found.size for found in own_files(self._files, folder))
            finally:
                self._files.close(folder)

    def move_in(self, area: Area, name: str) -> None:
        """Moves a segment of `area` here. Raises `OSError`."""
        folder = self._files.open_directory(self.name, area.directory)
        try:
            self._files.move(area.directory, name, folder)
            self._bound(folder, self._max_files, self._max_bytes)
        finally:
            self._files.close(folder)

    def write(self, area: Area, name: str, data: bytes) -> None:
        """Makes a file here. Raises `OSError`, and leaves nothing half made that is taken for whole: it is checked."""
        folder = self._files.open_directory(self.name, area.directory)
        try:
            file = self._files.create(folder, name)
            try:
                write_all(self._files, file, data)
            finally:
                self._files.close(file)
            self._bound(folder, self._max_files, self._max_bytes)
        finally:
            self._files.close(folder)

    def empty(self, area: Area) -> None:
        """Removes all of it: records that wait need the room. Raises `OSError`."""
        self.bytes = 0  # also when somebody has removed it
        folder = self._files.open_directory(self.name, area.directory, create=False)
        try:
            self._bound(folder, 0, 0)
        finally:
            self._files.close(folder)

    def _bound(self, folder: int, max_files: int, max_bytes: int) -> None:
        found = own_files(self._files, folder)
        self.bytes = sum(each.size for each in found)
        for each in found[: max(len(found) - max_files, 0)]:
            self._files.unlink(folder, each.name)
            self.bytes -= each.size
        for each in found[max(len(found) - max_files, 0) :]:
            if self.bytes <= max_bytes:
                break
            self._files.unlink(folder, each.name)
            self.bytes -= each.size
