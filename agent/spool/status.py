"""A spool as people see it: what waits, without taking anything, also while an agent runs.

No lock is needed and none is taken: files that vanish meanwhile were acknowledged, and a block that is half written is
not there yet.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from agent.spool import segment as codec
from agent.spool.area import Found, own_files
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

    segments: int = 0
    bytes: int = 0
    topics: dict[str, Topic] = {}
    gaps: list[Gap] = []
    damaged_bytes: int = 0
    newer_segments: int = 0  # of a newer agent, left alone
    unreadable_segments: int = 0
    rejected_records: int = 0
    quarantined_files: int = 0


class Dumped(NamedTuple):
    """A record in a spool; `rejected`: one that Kafka will not take."""

    record: Record
    rejected: bool


def status(directories: Sequence[Path]) -> Status:
    """What waits in a spool's directories, the volatile one among them, and how much. Reads all of it.

    A directory that is not there is an empty one. Raises `OSError` for one that cannot be read.
    """
    found = Status()
    for directory in directories:
        for file, content in _contents(directory):
            found.bytes += file.size
            found.segments += file.kind == "seg"
            _count(found, content)
        for _, content in _contents(directory / "rejected"):
            found.rejected_records += sum(each.header.count for each in _blocks(content))
        found.quarantined_files += len(_files(directory / "quarantine"))
    return found


def dump(directories: Sequence[Path]) -> Iterator[Dumped]:
    """Every record in a spool's directories, oldest first, and then the rejected ones. Raises as `status`."""
    for folder, rejected in (("", False), ("rejected", True)):
        for directory in directories:
            for _, content in _contents(directory / folder):
                for block in _blocks(content):
                    # `status` counts damage that can happen; what is damaged behind its checks is forged.
                    with contextlib.suppress(Damaged):
                        for record in codec.decode(block):
                            yield Dumped(record, rejected)


_Content = list[Block | Damage] | Newer | None


def _count(found: Status, content: _Content) -> None:
    if content is None:
        found.unreadable_segments += 1
        return
    if isinstance(content, Newer):
        found.newer_segments += 1
        return
    found.damaged_bytes += sum(each.length for each in content if isinstance(each, Damage) and not each.torn)
    for each in content:
        if isinstance(each, Block) and each.flags & codec.GAPS:
            with contextlib.suppress(Damaged):
                found.gaps += codec.decode_gaps(each)
    for block in _blocks(content):
        header = block.header
        topic = found.topics.setdefault(header.topic, Topic(0, header.first_at, header.last_at))
        topic.records += header.count
        topic.oldest = min(topic.oldest, header.first_at)
        topic.newest = max(topic.newest, header.last_at)


def _blocks(content: _Content) -> list[Block]:
    """Blocks of records."""
    found = content if isinstance(content, list) else []
    return [each for each in found if isinstance(each, Block) and not each.flags & codec.GAPS]


def _files(directory: Path) -> list[Found]:
    files = Files()
    try:
        opened = files.open_directory(str(directory), create=False)
    except FileNotFoundError:
        return []
    try:
        return own_files(files, opened)
    finally:
        files.close(opened)


def _contents(directory: Path) -> Iterator[tuple[Found, _Content]]:
    """Each file with what is in it; None when it cannot be read."""
    files = Files()
    try:
        opened = files.open_directory(str(directory), create=False)
    except FileNotFoundError:
        return
    try:
        for found in own_files(files, opened):
            try:
                yield found, read_segment(files, opened, found.name)
            except FileNotFoundError:
                continue
            except OSError:
                yield found, None
    finally:
        files.close(opened)
