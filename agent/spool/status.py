"""A spool as people see it: what waits, without taking anything, also while an agent runs.

No lock is needed and none is taken: files that vanish meanwhile were acknowledged, and a block that is half written is
not there yet. A segment stays until all of it was acknowledged, so some of what is seen here may have arrived.
"""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from agent.spool import segment as codec
from agent.spool.area import LINK, Found, own_files
from agent.spool.files import Files
from agent.spool.reading import read_segment
from agent.spool.record import Gap, Record
from agent.spool.segment import Block, Damage, Damaged, Newer


class Topic(msgspec.Struct):
    """What waits of one topic. `oldest`, `newest`: stamps of records."""

    records: int
    oldest: str
    newest: str


class Status(msgspec.Struct):
    """What waits in a spool. `gaps`: records that will never come, and it is not told yet."""

    directory: str
    exists: bool = False
    volatile_directory: str | None = None
    segments: int = 0
    bytes: int = 0
    topics: dict[str, Topic] = {}
    gaps: list[Gap] = []
    damaged_bytes: int = 0
    newer_segments: int = 0  # of a newer agent, left alone
    unreadable_segments: int = 0
    rejected_records: int = 0
    quarantined_files: int = 0


class CannotRead(Exception):
    """A directory cannot be read: the text names it and the mend."""


def status(directory: Path) -> Status:
    """What waits in a spool, in its volatile directory too, and how much. Reads all of it.

    A directory that is not there is an empty one. Raises `CannotRead`.
    """
    volatile = _volatile(directory)
    found = Status(str(directory), os.path.exists(directory), None if volatile is None else str(volatile))
    # The volatile one first: what is settled meanwhile is seen twice rather than not at all.
    for each in (directory,) if volatile is None else (volatile, directory):
        for file, content in _contents(each):
            found.bytes += file.size
            found.segments += file.kind == "seg"
            _count(found, content)
    for _, content in _contents(directory, "rejected"):
        found.rejected_records += sum(block.header.count for block in _blocks(content))
    found.quarantined_files = sum(1 for _ in _contents(directory, "quarantine"))
    return found


def dump(directory: Path) -> Iterator[Record | str]:
    """Every record in a spool, oldest first, and as a text what cannot be shown. Raises `CannotRead`."""
    # Read before the rest, as it may be settled meanwhile: a few MiB at most.
    volatile = _volatile(directory)
    young = [] if volatile is None else list(_records(volatile))
    left = {record.id for record in young if isinstance(record, Record)}
    for record in _records(directory):
        if isinstance(record, Record):
            left.discard(record.id)
        yield record
    yield from (record for record in young if isinstance(record, str) or record.id in left)


def dump_rejected(directory: Path) -> Iterator[Record | str]:
    """As `dump`, the records that Kafka will not take."""
    return _records(directory, "rejected")


def _volatile(directory: Path) -> Path | None:
    """Where an agent that has, or had, this spool keeps what is young: the store leaves a link there."""
    try:
        return directory / os.readlink(directory / LINK)
    except OSError:
        return None  # what is wrong with the directory itself comes out when it is read


_Content = list[Block | Damage] | Newer | OSError


def _count(found: Status, content: _Content) -> None:
    if isinstance(content, OSError):
        found.unreadable_segments += 1
        return
    if isinstance(content, Newer):
        found.newer_segments += 1
        return
    found.damaged_bytes += _damaged(content)
    for block in content:
        if not isinstance(block, Block):
            continue
        if block.flags & codec.GAPS:
            try:
                found.gaps += codec.decode_gaps(block)
            except Damaged:  # behind its checks: forged
                found.damaged_bytes += block.length
            continue
        header = block.header
        topic = found.topics.setdefault(header.topic, Topic(0, header.first_at, header.last_at))
        topic.records += header.count
        topic.oldest = min(topic.oldest, header.first_at)
        topic.newest = max(topic.newest, header.last_at)


def _records(directory: Path, folder: str = "") -> Iterator[Record | str]:
    for file, content in _contents(directory, folder):
        path = directory / folder / file.name
        if isinstance(content, OSError):
            yield f"{path} cannot be read: {content.strerror or content}"
            continue
        if isinstance(content, Newer):
            yield f"{path} is of a newer agent (version {content.version}); use that one to read it"
            continue
        damaged = _damaged(content)
        for block in _blocks(content):
            try:
                yield from codec.decode(block)
            except Damaged:
                damaged += block.length
        if damaged:
            yield f"{path}: {damaged} bytes are damaged and not shown"


def _damaged(content: list[Block | Damage]) -> int:
    """Bytes; the end of what a crash interrupted, or is being written just now, is no damage."""
    return sum(each.length for each in content if isinstance(each, Damage) and not each.torn)


def _blocks(content: _Content) -> list[Block]:
    """Blocks of records."""
    found = content if isinstance(content, list) else []
    return [each for each in found if isinstance(each, Block) and not each.flags & codec.GAPS]


def _open(directory: Path, folder: str = "") -> int | None:
    """A descriptor of a directory, or of a folder in it; None when it is not there."""
    files = Files()
    try:
        opened = files.open_directory(str(directory), create=False)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _cannot_read(directory, error) from None
    if not folder:
        return opened
    try:
        return files.open_directory(folder, opened, create=False)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None  # or something foreign has its name
        raise _cannot_read(directory / folder, error) from None
    finally:
        files.close(opened)


def _list(directory: Path, opened: int) -> list[Found]:
    try:
        return own_files(Files(), opened)
    except OSError as error:
        raise _cannot_read(directory, error) from None


def _contents(directory: Path, folder: str = "") -> Iterator[tuple[Found, _Content]]:
    """Each file with what is in it, or what kept it from being read; one at a time is in memory."""
    opened = _open(directory, folder)
    if opened is None:
        return
    try:
        for found in _list(directory / folder, opened):
            content = _read(opened, found.name)
            if content is not None:
                yield found, content
    finally:
        os.close(opened)


def _read(opened: int, name: str) -> _Content | None:
    try:
        return read_segment(Files(), opened, name)
    except FileNotFoundError:
        return None
    except OSError as error:
        return error


def _cannot_read(directory: Path, error: OSError) -> CannotRead:
    if isinstance(error, PermissionError):
        return CannotRead(f"{directory}: {error.strerror}; run this as the agent's user, or with sudo")
    if isinstance(error, NotADirectoryError):
        return CannotRead(f"{directory}: is not a directory; name the directory of the spool")
    return CannotRead(f"{directory}: cannot be read: {error.strerror or error}; look at the disk, with dmesg")
