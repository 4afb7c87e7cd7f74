"""Every file operation of the spool, as plain calls of the operating system.

One object, so that a test can stand a disk in its place that forgets what was not synced, tears a write or fails any
call. All names are relative to an open directory: one that is moved or replaced meanwhile is not followed by accident.
Each method raises `OSError`.
"""

import fcntl
import os
import stat
from collections.abc import Iterator
from typing import NamedTuple

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # a FIFO does not hold the opening up
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC


class Entry(NamedTuple):
    """A name in a directory. `size` in bytes; `regular`: a file, and not a link, a directory or a pipe."""

    name: str
    size: int
    regular: bool


class Files:
    """The operating system's file operations."""

    def open_directory(self, path: str, parent: int | None = None, create: bool = True) -> int:
        """A descriptor of the directory `path` (below `parent`); made, and what it is in synced, if it is not there."""
        if create:
            self._make_directory(path, parent)
        # The spool's own directory may be a link that the operator made; what is in it may not.
        follow = 0 if parent is None else os.O_NOFOLLOW
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | follow, dir_fd=parent)

    def _make_directory(self, path: str, parent: int | None) -> None:
        try:
            os.mkdir(path, 0o700, dir_fd=parent)
        except FileExistsError:
            return
        except FileNotFoundError:
            if parent is not None or os.path.dirname(path) in ("", path):
                raise
            self._make_directory(os.path.dirname(path), None)
            os.mkdir(path, 0o700)
        if parent is not None:
            os.fsync(parent)
        else:
            above = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(above)
            finally:
                os.close(above)

    def lock(self, directory: int) -> bool:
        """Locks a directory until its descriptor is closed; False when another process has it (flock(2))."""
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def leads_to(self, path: str, directory: int) -> bool:
        """Whether `path` is still the open directory."""
        try:
            there = os.stat(path)
        except FileNotFoundError:
            return False
        here = os.fstat(directory)
        return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)

    def list(self, directory: int) -> list[Entry]:
        """What is in a directory, in no order; what vanishes meanwhile is left out."""
        return list(_entries(directory))

    def create(self, directory: int, name: str) -> int:
        """A descriptor of a new file, to be appended to."""
        return os.open(name, _CREATE, 0o600, dir_fd=directory)

    def read(self, directory: int, name: str, limit: int, offset: int = 0) -> bytes:
        """At most `limit` bytes of a regular file."""
        file = os.open(name, _READ, dir_fd=directory)
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise FileNotFoundError(f"{name} is no file")
            pieces = []
            # One that is short may end before a bad sector: the next call tells.
            while limit > 0 and (piece := os.pread(file, limit, offset)):
                pieces.append(piece)
                limit, offset = limit - len(piece), offset + len(piece)
            return b"".join(pieces)
        finally:
            os.close(file)

    def write(self, file: int, data: bytes | memoryview) -> int:
        """Appends some of `data`; returns how many bytes."""
        return os.write(file, data)

    def unlinked(self, file: int) -> bool:
        """Whether an open file has no name any more."""
        return os.fstat(file).st_nlink == 0

    def truncate(self, file: int, size: int) -> None:
        """Cuts a file back to `size` bytes."""
        os.ftruncate(file, size)

    def sync(self, file: int) -> None:
        """Until this returns, a power cut may take what was written (fdatasync(2))."""
        os.fdatasync(file)

    def sync_named(self, directory: int, name: str) -> None:
        """As `sync`, of a file that is not open; without anything to write it costs some microseconds."""
        file = os.open(name, _READ, dir_fd=directory)
        try:
            os.fdatasync(file)
        finally:
            os.close(file)

    def sync_directory(self, directory: int) -> None:
        """The same for names that were made or moved (fsync(2))."""
        os.fsync(directory)

    def close(self, descriptor: int) -> None:
        """Closes a file or directory, and gives its lock up."""
        os.close(descriptor)

    def unlink(self, directory: int, name: str) -> None:
        """Removes a file."""
        os.unlink(name, dir_fd=directory)

    def move(self, directory: int, name: str, to: int) -> None:
        """Moves a file to another directory of the same file system, in place of one that has its name."""
        os.rename(name, name, src_dir_fd=directory, dst_dir_fd=to)

    def point(self, directory: int, name: str, to: str | None) -> None:
        """Makes a name a symbolic link, or removes the link; what has the name and is none stays as it is."""
        try:
            now = os.readlink(name, dir_fd=directory)
        except FileNotFoundError:
            now = None
        if now is not None and now != to:
            os.unlink(name, dir_fd=directory)
        if to is not None and now != to:
            os.symlink(to, name, dir_fd=directory)

    def free(self, directory: int) -> int:
        """Bytes that are free, for anyone, on a directory's file system (statvfs(3))."""
        system = os.fstatvfs(directory)
        return system.f_bavail * system.f_frsize


def write_all(files: Files, file: int, data: bytes) -> None:
    """Appends all of `data`. Raises `OSError`, and then some of it may be there."""
    rest = memoryview(data)
    while rest:
        rest = rest[files.write(file, rest) :]


def _entries(directory: int) -> Iterator[Entry]:
    with os.scandir(directory) as entries:
        for entry in entries:
            try:
                found = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            yield Entry(entry.name, found.st_size, stat.S_ISREG(found.st_mode))
