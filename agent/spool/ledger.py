"""The gaps that are not told yet, kept on disk: one small file, written anew whenever they change.

It is written before what it names is dropped, so that no moment is without either; on a disk without a single free
block it is written right after. A gap that comes back with a restart is told again, which harms nobody: it names the
same records.
"""

import errno
from collections.abc import Sequence

from agent.spool import segment as codec
from agent.spool.area import Area
from agent.spool.files import Files, write_all
from agent.spool.reading import read_segment
from agent.spool.record import Gap, Origin
from agent.spool.segment import Block, Damaged

MAX_FILES = 8  # on a disk that lets nothing be removed


class Ledger:
    """The rows of one worker's spool."""

    def __init__(self, origin: Origin, files: Files) -> None:
        self._origin, self._files = origin, files
        self._names: list[tuple[Area, str]] = []
        self._said: tuple[Gap, ...] = ()  # all that are open, as the caller last said
        self._own: list[Gap] = []  # those that the caller has not seen yet
        self._seen = 0  # how many of ours it has
        self.due = False  # the file is not what it should be

    def read(self, area: Area, name: str) -> list[Gap]:
        """The gaps of a file that was found; it goes with the next `write`. Raises `OSError`."""
        self._names.append((area, name))
        blocks = read_segment(self._files, area.directory, name)
        gaps: list[Gap] = []
        for block in blocks if isinstance(blocks, list) else ():
            if isinstance(block, Block) and block.flags & codec.GAPS:
                try:
                    gaps += codec.decode_gaps(block)
                except Damaged:
                    continue  # written by nobody: the block's checks hold
        self._own += gaps
        self.due = self.due or not gaps  # what a full disk left of one is to go
        return gaps

    def areas(self) -> set[Area]:
        """Where its files are."""
        return {area for area, _ in self._names}

    def add(self, gaps: Sequence[Gap]) -> None:
        """Takes rows in that the caller does not know yet."""
        self._own += gaps
        self.due = True

    def say(self, gaps: tuple[Gap, ...], seen: int) -> None:
        """All that are open as the caller knows it, who has seen `seen` of those that came from here."""
        del self._own[: seen - self._seen]
        self._said, self._seen = gaps, seen
        self.due = True

    def write(self, area: Area, name: str) -> None:
        """Makes the file `name` of `area` what is to be kept, and removes the one before. Raises `OSError`."""
        rows = [*self._said, *self._own]
        if len(self._names) > MAX_FILES:
            stale, self._names = self._names[:-1], self._names[-1:]
            for was, old_name in stale:
                self._remove(was, old_name)
        if len(self._names) > MAX_FILES:
            raise OSError(errno.EIO, "old ones cannot be removed")
        if rows:
            self._write(area, name, codec.encode_gaps(self._origin, rows))
        old, self._names = self._names, [(area, name)] if rows else []
        self.due = False
        for was, old_name in old:
            self._remove(was, old_name)

    def _write(self, area: Area, name: str, data: bytes) -> None:
        file = self._files.create(area.directory, name)
        try:
            write_all(self._files, file, data)
            self._files.sync(file)
            self._files.sync_directory(area.directory)
        except OSError:
            self._remove(area, name)
            raise
        finally:
            self._files.close(file)

    def _remove(self, area: Area, name: str) -> None:
        try:
            self._files.unlink(area.directory, name)
        except FileNotFoundError:
            return
        except OSError:
            self._names.append((area, name))
            self.due = True
