"""What a configuration was read from, so that an edit of any of it is noticed.

Looked at by path and by turns, not by inotify: an editor, Ansible and git replace files by rename, links are swapped,
and a file that is missing may come. A look costs a `stat` for each file.
"""

import glob
import os
from pathlib import Path
from typing import NamedTuple


class _Seen(NamedTuple):
    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int


class Footprint:
    """The files and patterns of one loading, as they were just before each was read."""

    def __init__(self) -> None:
        self._files: dict[str, _Seen | None] = {}
        self._patterns: dict[tuple[str, str], list[str]] = {}

    def read(self, file: Path) -> None:
        """To be called before a file is opened."""
        self._files.setdefault(str(file), _look(str(file)))

    def matched(self, base: Path, pattern: str) -> list[str]:
        """The names that a pattern matches, sorted and relative to `base`."""
        names = sorted(glob.glob(pattern, root_dir=base))
        self._patterns[str(base), pattern] = names
        return names

    def now(self) -> "Footprint":
        """The same files and patterns as they are now: equal, if nothing was edited."""
        now = Footprint()
        now._files = {file: _look(file) for file in self._files}
        for base, pattern in self._patterns:
            now.matched(Path(base), pattern)
        return now

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Footprint) and (self._files, self._patterns) == (other._files, other._patterns)

    __hash__ = None  # type: ignore[assignment]  # it changes


def _look(file: str) -> _Seen | None:
    """None for a file that is not there, or not for us."""
    try:
        found = os.stat(file)
    except (OSError, ValueError):  # a NUL in the path, which reading it tells
        return None
    return _Seen(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
