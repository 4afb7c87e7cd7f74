"""The bytes of a segment file: checked blocks, one after the other. No I/O; any bytes can be scanned, and none raise.

A block is what one topic has to say at one time:

    prefix   magic, version, flags, lengths of the three parts, CRC-32 of prefix and header
    header   msgpack: origin, topic, count, first and last `seq` and stamp, the count of records before it in the
             segment, CRC-32 of the payload
    payload  msgpack rows (seq, id, at, value), as they are or as one zstd frame

The header is readable without the payload, so what a damaged or a dropped block held can be named. `before` names
blocks of which nothing is left: the next one tells how many records are missing.

The magic has two bytes that never occur in UTF-8: no text that a target sends can look like a block. One topic in a
block, and not one tick of all topics: a topic that Kafka refuses for days must not hold back, nor send twice, another.

Lengths are bounded before anything is allocated (a zstd frame can claim any size), and the CRC is checked before
anything is decompressed. A newer agent raises VERSION; its first eight bytes stay, so that this one can say so.
"""

import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Annotated, NamedTuple

import msgspec
import zstandard
from msgspec import Meta

from agent.spool.record import Gap, Origin, Record

MAGIC = b"\xffUA\xfe"
VERSION = 1
COMPRESSED, GAPS = 1, 2  # flags
MAX_HEADER = 2 << 10  # bytes
MAX_RAW = 8 << 20  # bytes of a payload before compression: the largest record that can be kept is a little smaller

_PREFIX = struct.Struct("<4sBBHIII")  # magic, version, flags, header, payload, raw; CRC
_CHECKED = _PREFIX.size - 4

_Number = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
_Count = Annotated[int, Meta(ge=1, le=MAX_RAW)]


class Damaged(ValueError):
    """A block's payload is not what its header says."""


class Header(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a block says of its records, readable when they are not."""

    run: _Number
    run_id: str
    worker: _Number
    topic: str
    count: _Count
    before: _Number
    first_seq: _Number
    last_seq: _Number
    first_at: str
    last_at: str
    payload_crc: _Number

    def gap(self, reason: str) -> Gap:
        """The block's records as ones that will never come."""
        return Gap(
            topic=self.topic,
            run_id=self.run_id,
            worker=self.worker,
            first_seq=self.first_seq,
            last_seq=self.last_seq,
            count=self.count,
            reason=reason,
            first_at=self.first_at,
            last_at=self.last_at,
        )


class Block(NamedTuple):
    """A block whose checks hold. `length` in bytes, all of it."""

    offset: int
    length: int
    flags: int
    raw_length: int
    header: Header
    payload: memoryview

    @property
    def origin(self) -> Origin:
        """Who numbered its records."""
        return Origin(self.header.run, self.header.run_id, self.header.worker)


class Damage(NamedTuple):
    """Bytes that are no block. `lost` is what is known of the records that were there.

    `torn`: the end of a write that a crash interrupted, which says nothing against the disk.
    """

    offset: int
    length: int
    torn: bool
    lost: tuple[Gap, ...]


class Newer(NamedTuple):
    """The whole segment was written by a newer agent."""

    version: int


_encode = msgspec.msgpack.Encoder().encode
_decode_header = msgspec.msgpack.Decoder(Header).decode
_decode_rows = msgspec.msgpack.Decoder(list[tuple[_Number, str, str, bytes]]).decode
_decode_gaps = msgspec.msgpack.Decoder(list[Gap]).decode


def encode(
    origin: Origin,
    topic: str,
    records: Sequence[Record],
    before: int = 0,
    compressor: zstandard.ZstdCompressor | None = None,
) -> bytes:
    """A block of `records`, in order and at least one; `before`: how many the segment holds already.

    Raises `ValueError` when they are more than a block can hold.
    """
    raw = _encode([(seq, record_id, at, value) for _, seq, record_id, at, value in records])
    first, last = records[0], records[-1]
    summary = (topic, len(records), before, first.seq, last.seq, first.at, last.at)
    return _block(origin, summary, raw, 0, compressor)


def encode_gaps(origin: Origin, gaps: Sequence[Gap]) -> bytes:
    """A block that keeps `gaps`, at least one, until they were told."""
    return _block(origin, ("", len(gaps), 0, 0, 0, "", ""), _encode(gaps), GAPS, zstandard.ZstdCompressor(level=1))


def _block(
    origin: Origin,
    summary: tuple[str, int, int, int, int, str, str],
    raw: bytes,
    flags: int,
    compressor: zstandard.ZstdCompressor | None,
) -> bytes:
    if len(raw) > MAX_RAW:
        raise ValueError(f"{len(raw)} bytes do not fit in a block")
    payload = raw if compressor is None else compressor.compress(raw)
    flags |= 0 if compressor is None else COMPRESSED
    header = _encode(Header(origin.run, origin.run_id, origin.worker, *summary, zlib.crc32(payload)))
    if len(header) > MAX_HEADER:
        raise ValueError("names and stamps do not fit in a block's header")
    prefix = _PREFIX.pack(MAGIC, VERSION, flags, len(header), len(payload), len(raw), 0)[:_CHECKED]
    crc = zlib.crc32(header, zlib.crc32(prefix))
    return b"".join((prefix, crc.to_bytes(4, "little"), header, payload))


def decode(block: Block) -> list[Record]:
    """The records of a block. Raises `Damaged` when they are not as the header says, which only a forger achieves."""
    topic, header = block.header.topic, block.header
    try:
        rows = _decode_rows(_raw(block))
    except (zstandard.ZstdError, msgspec.DecodeError) as error:
        raise Damaged(str(error)) from None
    if len(rows) != header.count or (rows[0][0], rows[-1][0]) != (header.first_seq, header.last_seq):
        raise Damaged("its records are not those of its header")
    return [Record(topic, *row) for row in rows]


def decode_gaps(block: Block) -> list[Gap]:
    """What a block of gaps keeps. Raises `Damaged`."""
    try:
        return _decode_gaps(_raw(block))
    except (zstandard.ZstdError, msgspec.DecodeError) as error:
        raise Damaged(str(error)) from None


def _raw(block: Block) -> memoryview | bytes:
    if not block.flags & COMPRESSED:
        if len(block.payload) != block.raw_length:
            raise Damaged("its length is not that of its prefix")
        return block.payload
    # `decompress` allocates whatever the frame claims, whatever it was told to allow at most.
    if zstandard.frame_content_size(block.payload) != block.raw_length:
        raise Damaged("its frame's length is not that of its prefix")
    decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_RAW)
    return decompressor.decompress(block.payload, max_output_size=block.raw_length, allow_extra_data=False)


class _Seen(NamedTuple):
    """A header whose check holds; `block` is None when its payload's does not."""

    offset: int
    end: int
    header: Header
    block: Block | None


def scan(data: bytes) -> list[Block | Damage] | Newer:
    """What a segment's bytes hold, in order of offset: blocks, and between them what is damaged."""
    seen = list(_headers(memoryview(data), data))
    if not seen and data[:4] == MAGIC and len(data) > 4 and data[4] > VERSION:
        return Newer(data[4])
    found: list[Block | Damage] = []
    at, named, previous = 0, list[Gap](), None
    for each in seen:
        missing = _missing(previous, each.header)
        if missing is not None and not any(_overlap(missing, other.header) for other in seen):
            named.append(missing)
        previous = each.header
        if each.block is None:
            named += [each.header.gap("damaged")] if each.header.topic else []
            continue
        if each.offset > at or named:
            found.append(Damage(at, each.offset - at, False, tuple(named)))
            named = []
        found.append(each.block)
        at = each.offset + each.block.length
    if at < len(data):
        found.append(Damage(at, len(data) - at, _is_torn(data[at:]), tuple(named)))
    return found


def _headers(view: memoryview, data: bytes) -> Iterator[_Seen]:
    at = data.find(MAGIC)
    while at >= 0:
        seen = _header_at(view, at)
        if seen is not None:
            yield seen
        # The length of a damaged one does not lead to the next: bytes may be missing.
        at = data.find(MAGIC, at + 1 if seen is None or seen.block is None else seen.end)


def _header_at(view: memoryview, at: int) -> _Seen | None:
    if len(view) - at < _PREFIX.size:
        return None
    _, version, flags, header_length, payload_length, raw_length, crc = _PREFIX.unpack_from(view, at)
    start = at + _PREFIX.size
    payload_at = start + header_length
    end = payload_at + payload_length
    if header_length > MAX_HEADER or raw_length > MAX_RAW or payload_at > len(view):
        return None
    # Checked as of our version: a bit that flipped in that byte is damage, and not a newer agent's file.
    prefix = MAGIC + bytes([VERSION]) + view[at + 5 : at + _CHECKED]
    if zlib.crc32(view[start:payload_at], zlib.crc32(prefix)) != crc:
        return None
    try:
        header = _decode_header(view[start:payload_at])
    except msgspec.DecodeError:
        return None
    payload = view[payload_at:end]
    if version != VERSION or end > len(view) or zlib.crc32(payload) != header.payload_crc:
        return _Seen(at, end, header, None)
    return _Seen(at, end, header, Block(at, end - at, flags, raw_length, header, payload))


def _is_torn(tail: bytes) -> bool:
    """Whether it is the beginning of a block, or nothing was written but the length."""
    if len(tail) < _PREFIX.size:
        return MAGIC.startswith(tail[:4]) or not tail.strip(b"\0")
    magic, _, _, header_length, payload_length, _, _ = _PREFIX.unpack_from(tail)
    unfinished = len(tail) < _PREFIX.size + header_length + payload_length
    return (magic == MAGIC and unfinished) or not tail.strip(b"\0")


def _missing(previous: Header | None, following: Header) -> Gap | None:
    """The records of which nothing is left between two headers, None when there are none or they cannot be named."""
    if previous is not None and (previous.topic, previous.run_id, previous.worker) != (
        following.topic,
        following.run_id,
        following.worker,
    ):
        return None
    before = 0 if previous is None else previous.before + previous.count
    count = following.before - before
    last = following.first_seq - 1
    first = max(last - count + 1, 1 if previous is None else previous.last_seq + 1)
    if count <= 0 or last < first:
        return None
    return Gap(
        topic=following.topic,
        run_id=following.run_id,
        worker=following.worker,
        first_seq=first,
        last_seq=last,
        count=min(count, last - first + 1),
        reason="damaged",
        first_at=following.first_at if previous is None else previous.last_at,
        last_at=following.first_at,
    )


def _overlap(gap: Gap, header: Header) -> bool:
    same = (gap.topic, gap.run_id, gap.worker) == (header.topic, header.run_id, header.worker)
    return same and gap.first_seq <= header.last_seq and header.first_seq <= gap.last_seq


def chunks(records: Sequence[Record], limit: int) -> Iterator[Sequence[Record]]:
    """`records` in pieces whose values have at most `limit` bytes, or one record."""
    start = size = 0
    for at, record in enumerate(records):
        size += len(record.value)
        if size > limit and at > start:
            yield records[start:at]
            start, size = at, len(record.value)
    if start < len(records):
        yield records[start:]
