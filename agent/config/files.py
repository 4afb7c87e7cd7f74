"""What a configuration is read from: files of the disk, each read once so that an edit of any is noticed, or of memory.

Looked at by path and by turns, not by inotify: an editor, Ansible and git replace files by rename, links are swapped,
and a file that is missing may come. A look costs a `stat` for each file.
"""

import errno
import glob
import os
import stat
from pathlib import Path
from typing import NamedTuple, Protocol

MOST_KEPT = 16 << 20  # bytes of what was read, four times what the YAML files may have; of more nothing is kept


class Seen(NamedTuple):
    """How a file stood: different when it was written, replaced, or given another mode."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int


class Footprint:
    """The files and patterns of one loading, as they were just before each was read.

    `patterns`: the names that each matched, sorted and relative to its base, by base and pattern.
    """

    def __init__(self) -> None:
        self.patterns: dict[tuple[str, str], list[str]] = {}
        self.files: dict[str, Seen | None] = {}

    def look(self, file: str) -> Seen | None:
        """To be called before a file is opened. None for one that is not there, or not for us."""
        if file not in self.files:
            self.files[file] = _look(file)
        return self.files[file]

    def matched(self, base: str, pattern: str) -> list[str]:
        """The names that a pattern matches."""
        names = sorted(glob.glob(pattern, root_dir=base))
        self.patterns[base, pattern] = names
        return names

    def now(self) -> "Footprint":
        """The same files and patterns as they are now: equal, if nothing was edited."""
        now = Footprint()
        for file in self.files:
            now.look(file)
        for base, pattern in self.patterns:
            now.matched(base, pattern)
        return now

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Footprint) and (self.files, self.patterns) == (other.files, other.patterns)

    __hash__ = None  # type: ignore[assignment]  # it changes


class Files(Protocol):
    """The files that one loading reads."""

    def stat(self, file: Path) -> os.stat_result:
        """As `os.stat`. Raises OSError."""

    def read(self, file: Path, most: int) -> bytes:
        """A regular file's first `most` bytes. Raises OSError, with EINVAL or EISDIR for what is no regular file."""

    def matching(self, base: Path, pattern: str) -> list[str]:
        """The names that a pattern matches, sorted and relative to `base`."""

    def leave(self, file: Path) -> None:
        """Leaves a file to Kafka's client. To be called before that opens it."""


class DiskFiles:
    """The files of the disk, as they are when the loading comes to them.

    `content`: what they held, by absolute path, so that the same can be loaded again: all but the credentials of
    systemd, which are given anew with each start. None when it is more than `MOST_KEPT`. `of_client`: how those stood
    that Kafka's client reads, by absolute path: an edit of them is noticed, and their content is not kept.
    """

    def __init__(self) -> None:
        self.footprint = Footprint()
        self.content: dict[str, bytes] | None = {}
        self.of_client: dict[str, Seen | None] = {}
        self._left = MOST_KEPT

    def stat(self, file: Path) -> os.stat_result:
        """As `os.stat`. Raises OSError."""
        self.footprint.look(_absolute(file))
        return os.stat(file)

    def read(self, file: Path, most: int) -> bytes:
        """A file's content; the same when it is read again. Raises OSError."""
        name = _absolute(file)
        if self.content is not None and name in self.content:
            return self.content[name]
        self.footprint.look(name)
        data = read_regular(file, most)
        if self.content is not None and not _is_credential(name):
            self._left -= len(data)
            if self._left < 0:
                self.content = None
            else:
                self.content[name] = data
        return data

    def matching(self, base: Path, pattern: str) -> list[str]:
        """What the pattern matches now."""
        return self.footprint.matched(_absolute(base), pattern)

    def leave(self, file: Path) -> None:
        """Notes in `of_client` how the file stands."""
        name = _absolute(file)
        self.of_client[name] = self.footprint.look(name)


class KeptFiles:
    """The files of an earlier loading, from memory: `content` and `patterns` as they were then, by absolute path."""

    def __init__(self, content: dict[str, bytes], patterns: dict[tuple[str, str], list[str]]) -> None:
        self._content = {name: (inode, data) for inode, (name, data) in enumerate(content.items(), 1)}
        self._patterns = patterns

    def stat(self, file: Path) -> os.stat_result:
        """A regular file that nobody else may read. Raises FileNotFoundError."""
        inode, data = self._of(file)
        return os.stat_result((stat.S_IFREG | 0o600, inode, 0, 1, 0, 0, len(data), 0, 0, 0))

    def read(self, file: Path, most: int) -> bytes:
        """What was kept of a file; a credential as it is now. Raises OSError."""
        return read_regular(file, most) if _is_credential(_absolute(file)) else self._of(file)[1][:most]

    def matching(self, base: Path, pattern: str) -> list[str]:
        """What the pattern matched."""
        return self._patterns.get((_absolute(base), pattern), [])

    def leave(self, file: Path) -> None:
        """Nothing: the client reads the disk."""

    def _of(self, file: Path) -> tuple[int, bytes]:
        try:
            return self._content[_absolute(file)]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, "Is not among what was kept", str(file)) from None


def read_regular(file: Path, most: int) -> bytes:
    """A regular file's first `most` bytes. Raises OSError, with EINVAL or EISDIR for what is no regular file."""
    # Opening a pipe would wait for its writer, and a device may never end.
    with open(os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as opened:
        if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
            raise OSError(errno.EINVAL, "Is not a regular file")
        return opened.read(most)


def _absolute(file: Path) -> str:
    """One name for a file wherever the agent is started; `..` stays, as links may stand before it."""
    return str(file.absolute())


def _is_credential(file: str) -> bool:
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    return bool(directory) and Path(os.path.realpath(file)).is_relative_to(os.path.realpath(str(directory)))


def _look(file: str) -> Seen | None:
    try:
        found = os.stat(file)
    except (OSError, ValueError):  # a NUL in the path, which reading it tells
        return None
    return Seen(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
