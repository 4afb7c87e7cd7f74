"""Reading segment files: for the backlog, and for people who look at a spool that an agent may be using."""

import errno

from msgspec.structs import replace

from agent.spool.files import Files
from agent.spool.record import Gap
from agent.spool.segment import Block, Damage, Newer, scan

MAX_FILE = 16 << 20  # bytes that are looked at: the size at which a segment is full and the largest block, and more
SECTOR = 4 << 10  # what is given up around a place that the disk cannot read


def read_segment(files: Files, directory: int, name: str, size: int = MAX_FILE) -> list[Block | Damage] | Newer:
    """What the first `size` bytes of a segment hold. Raises `OSError`; a place that cannot be read is damage."""
    size = min(size, MAX_FILE)
    try:
        data = files.read(directory, name, size)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        data = _around_bad_sectors(files, directory, name, size)
    return scan(data)


def _around_bad_sectors(files: Files, directory: int, name: str, size: int) -> bytes:
    pieces: list[bytes] = []
    for offset in range(0, size, SECTOR):
        try:
            piece = files.read(directory, name, min(SECTOR, size - offset), offset)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            piece = bytes(SECTOR)
        if not piece:
            break
        pieces.append(piece)
    return b"".join(pieces)


def within(gap: Gap, wanted: tuple[tuple[int, int], ...] | None) -> list[Gap]:
    """What of a gap is in ranges of seq; with None, all of it."""
    if wanted is None:
        return [gap]
    rows = []
    for first, last in wanted:
        first, last = max(first, gap.first_seq), min(last, gap.last_seq)
        if first <= last:
            count = min(gap.count, last - first + 1)
            rows.append(replace(gap, first_seq=first, last_seq=last, count=count))
    return rows
