"""A disk in memory that may do at a power cut all that a file system is allowed to do, and fails when it is told to.

What was not synced is there afterwards in part: any of its sectors may be zeros, the length may be any in between, and
each name that was made, moved or removed may have been or not. A sync that fails leaves what it should have kept as
clean, so that the next sync says yes and keeps nothing of it. A volatile directory is empty after a power cut.
"""

import errno
import os

from agent.spool.files import Entry

SECTOR = 512


class Crash(BaseException):
    """The process ends here."""


class Inode:
    def __init__(self):
        self.data = bytearray()
        self.kept = b""  # what is on the medium for certain
        self.forgotten = []  # ranges that a failed sync left as clean
        self.links = 1

    def copy(self):
        new = Inode()
        new.data, new.kept = bytearray(self.data), bytes(self.kept)
        return new


class Directory:
    def __init__(self, volatile=False):
        self.names = {}
        self.kept = {}
        self.undone = []  # (name, inode or None) in order, that are not synced
        self.volatile = volatile
        self.owner = None

    def put(self, name, inode):
        if inode is None:
            del self.names[name]
        else:
            self.names[name] = inode
        self.undone.append((name, inode))


class TornDisk:
    """Stands in for `agent.spool.files.Files`. `volatile`: paths that a power cut empties."""

    def __init__(self, volatile=(), capacity=1 << 30):
        self.directories = {}
        self.volatile = set(volatile)
        self.capacity = capacity
        self.open = {}  # descriptor: directory or inode
        self.next = 1000
        self.calls = 0
        self.crash_at = None
        self.fails = {}  # name of a call: error number
        self.troubled = False  # it ever failed or was full
        self.hopeless = False  # it failed to keep what nobody has in memory

    # What a test does to it

    def kill(self):
        """The process is gone; the machine is not."""
        self.open.clear()
        for directory in self.directories.values():
            directory.owner = None
        self.crash_at = None

    def power_cut(self, random):
        """The machine stopped: what was not synced is there or not, as `random` will have it."""
        self.kill()
        for directory in self.directories.values():
            if directory.volatile:
                directory.names, directory.kept, directory.undone = {}, {}, []
                continue
            names = dict(directory.kept)
            for name, inode in directory.undone:
                if random.random() < 0.5:
                    if inode is None:
                        names.pop(name, None)
                    else:
                        names[name] = inode
            for name, inode in names.items():
                names[name] = self._torn(inode, random)
            directory.names, directory.kept, directory.undone = names, dict(names), []

    def _torn(self, inode, random):
        new = Inode()
        kept = bytearray(inode.kept)
        rest = inode.data[len(kept) :]
        if rest and random.random() < 0.8:
            length = random.randint(0, len(rest)) if random.random() < 0.7 else len(rest)
            for start in range(len(kept) // SECTOR * SECTOR, len(kept) + length, SECTOR):
                if random.random() < 0.4:
                    first, last = max(start, len(kept)), min(start + SECTOR, len(kept) + length)
                    rest[first - len(inode.kept) : last - len(inode.kept)] = bytes(last - first)
            kept += rest[:length]
        for first, last in inode.forgotten:
            kept[first:last] = bytes(len(kept[first:last]))
        new.data, new.kept = kept, bytes(kept)
        return new

    def bytes(self):
        return sum(
            len(inode.data)
            for directory in self.directories.values()
            if not directory.volatile
            for inode in directory.names.values()
        )

    # The interface

    def _call(self, name):
        self.calls += 1
        if self.crash_at is not None and self.calls >= self.crash_at:
            raise Crash
        self.troubled = self.troubled or bool(self.fails) or self.capacity < 1 << 30
        if name in self.fails:
            number = self.fails[name]
            raise OSError(number, os.strerror(number))

    def _opened(self, what):
        self.next += 1
        self.open[self.next] = what
        return self.next

    def _named(self, directory, name):
        if name not in self.open[directory].names:
            raise FileNotFoundError(name)
        return self.open[directory].names[name]

    def open_directory(self, path, parent=None, create=True):
        if parent is not None:
            path = next(p for p, d in self.directories.items() if d is self.open[parent]) + "/" + path
        if path not in self.directories:
            if not create:
                raise FileNotFoundError(path)
            self._call("mkdir")
            self.directories[path] = Directory(path in self.volatile)
        return self._opened(self.directories[path])

    def lock(self, directory):
        if self.open[directory].owner is not None:
            return False
        self.open[directory].owner = directory
        return True

    def leads_to(self, path, directory):
        return self.directories.get(path) is self.open[directory]

    def list(self, directory):
        return [Entry(name, len(inode.data), True) for name, inode in self.open[directory].names.items()]

    def create(self, directory, name):
        self._call("create")
        if name in self.open[directory].names:
            raise FileExistsError(name)
        inode = Inode()
        self.open[directory].put(name, inode)
        return self._opened(inode)

    def read(self, directory, name, limit, offset=0):
        return bytes(self._named(directory, name).data[offset : offset + limit])

    def write(self, file, data):
        inode = self.open[file]
        if self.crash_at is not None and self.calls + 1 >= self.crash_at:
            inode.data += data[: len(data) // 2]
        self._call("write")
        room = self.capacity - self.bytes()
        if room <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        inode.data += data[:room]
        return min(len(data), room)

    def unlinked(self, file):
        return not any(self.open[file] in d.names.values() for d in self.directories.values())

    def truncate(self, file, size):
        self._call("truncate")
        inode = self.open[file]
        del inode.data[size:]
        inode.kept = inode.kept[:size]

    def sync(self, file):
        inode = self.open[file]
        try:
            self._call("sync")
        except OSError:
            inode.forgotten.append((len(inode.kept), len(inode.data)))
            raise
        inode.kept = bytes(inode.data)

    def sync_named(self, directory, name):
        try:
            self._call("sync_named")
        except OSError:
            self.hopeless = True
            raise
        inode = self._named(directory, name)
        inode.kept = bytes(inode.data)

    def sync_directory(self, directory):
        self._call("sync_directory")
        found = self.open[directory]
        found.kept, found.undone = dict(found.names), []

    def close(self, descriptor):
        what = self.open.pop(descriptor)
        if isinstance(what, Directory) and what.owner == descriptor:
            what.owner = None

    def unlink(self, directory, name):
        self._call("unlink")
        self._named(directory, name)
        self.open[directory].put(name, None)

    def move(self, directory, name, to):
        self._call("move")
        inode = self._named(directory, name)
        self.open[to].put(name, inode)
        self.open[directory].put(name, None)

    def point(self, directory, name, to):
        self._call("point")

    def free(self, directory):
        return self.capacity - self.bytes()
