"""Blocks come back as they were written, and whatever happened to the bytes, nothing is made up and nothing raises."""

import contextlib
import itertools
import zlib

import hypothesis.strategies as st
import msgspec
import pytest
import zstandard
from hypothesis import example, given

from agent.spool import segment
from agent.spool.record import Origin, Record
from agent.spool.segment import Block, Damage, Damaged, Header, Newer, chunks, decode, encode, scan
from tests.spool.records import ORIGIN, RESULTS, a_gap, a_record, seqs, some

COMPRESSOR = zstandard.ZstdCompressor(level=1)


def a_segment(*groups, compressor=COMPRESSOR):
    """The bytes of a segment with one block for each group of records."""
    data, before = b"", 0
    for records in groups:
        data += encode(ORIGIN, RESULTS, records, before, compressor)
        before += len(records)
    return data


def blocks(data):
    return [each for each in scan(data) if isinstance(each, Block)]


def damages(data):
    return [each for each in scan(data) if isinstance(each, Damage)]


def lost(data):
    return [gap for damage in damages(data) for gap in damage.lost]


def read(data):
    """All records that can be had."""
    return [record for block in blocks(data) for record in decode(block)]


THREE = [some(1, 5), some(6, 7), some(8, 20)]
ALL = list(itertools.chain(*THREE))

numbers = st.integers(0, (1 << 63) - 1)
texts = st.text(max_size=60)
records = st.lists(st.tuples(numbers, texts, texts, st.binary(max_size=2_000)), min_size=1, max_size=20)


@given(records, st.builds(Origin, numbers, texts, numbers), st.text(max_size=200), numbers, st.booleans())
def test_round_trip(rows, origin, topic, before, compressed):
    """Whatever the records, they are read as they were written, and the header says who and what they are."""
    written = [Record(topic, *row) for row in rows]
    data = encode(origin, topic, written, before, COMPRESSOR if compressed else None)
    (block,) = blocks(data)
    assert decode(block) == written
    assert block.origin == origin
    header = block.header
    assert (header.topic, header.count, header.before) == (topic, len(rows), before)
    assert (header.first_seq, header.last_seq) == (rows[0][0], rows[-1][0])


@given(st.binary(max_size=500))
@example(b"")
@example(segment.MAGIC)
@example(segment.MAGIC * 40)
@example(a_segment(some(1, 3))[:30])
def test_any_bytes(data):
    """Any bytes at all are scanned without an error, and are damage from the first to the last."""
    found = scan(data)
    if isinstance(found, Newer):
        assert data[4] > segment.VERSION
    else:
        assert sum(each.length for each in found) == len(data)


@given(st.lists(st.one_of(st.binary(max_size=60), st.sampled_from([a_segment(group) for group in THREE])), max_size=8))
def test_blocks_between_any_bytes(pieces):
    """Blocks are found whatever lies between them, and every byte is accounted for once."""
    data = b"".join(pieces)
    found = scan(data)
    if not isinstance(found, Newer):
        at = 0
        for each in found:
            assert each.offset == at
            at += each.length
        assert at == len(data)
        assert all(record in ALL for record in read(data))


@pytest.mark.parametrize("compressor", [COMPRESSOR, None], ids=["compressed", "plain"])
def test_every_byte_flipped(compressor):
    """One wrong byte anywhere costs at most its own block, and what it held is named exactly."""
    data = a_segment(*THREE, compressor=compressor)
    starts = [block.offset for block in scan(data)]
    for at in range(len(data)):
        for mask in (0x01, 0x80, 0xFF):
            harmed = bytearray(data)
            harmed[at] ^= mask
            which = sum(start <= at for start in starts) - 1
            kept = [record for number, group in enumerate(THREE) if number != which for record in group]
            assert read(bytes(harmed)) == kept
            told = lost(bytes(harmed))
            if which < 2 or told:  # of a last block without its header nothing is known
                group = THREE[which]
                assert [(gap.first_seq, gap.last_seq, gap.count) for gap in told] == [
                    (group[0].seq, group[-1].seq, len(group))
                ]


def test_truncated_at_each_offset():
    """A segment cut off anywhere gives its whole blocks, and its end is torn, not damaged."""
    data = a_segment(*THREE)
    ends = [block.offset + block.length for block in scan(data)]
    for length in range(len(data)):
        cut = data[:length]
        whole = sum(end <= length for end in ends)
        assert read(cut) == list(itertools.chain(*THREE[:whole]))
        assert all(damage.torn for damage in damages(cut))
        for gap in lost(cut):
            group = THREE[whole]
            assert (gap.first_seq, gap.last_seq) == (group[0].seq, group[-1].seq)


@pytest.mark.parametrize("sector", [16, 64, 512])
def test_zeroed_sectors(sector):
    """Any run of zeroed sectors costs only the blocks it touches; the records of those in between are named."""
    groups = [some(first, first + 9) for first in range(1, 101, 10)]
    data = a_segment(*groups)
    spans = [(block.offset, block.offset + block.length) for block in scan(data)]
    for first in range(0, len(data), sector):
        for length in (sector, 3 * sector):
            harmed = data[:first] + bytes(len(data[first : first + length])) + data[first + length :]
            kept = [
                record
                for (start, end), group in zip(spans, groups, strict=True)
                if end <= first or start >= first + length
                for record in group
            ]
            assert read(harmed) == kept
            named = {seq for gap in lost(harmed) for seq in range(gap.first_seq, gap.last_seq + 1)}
            assert not named & set(seqs(kept))
            if kept and kept[-1].seq == 100:
                assert named == set(range(1, 101)) - set(seqs(kept))
                assert sum(gap.count for gap in lost(harmed)) == len(named)


def test_zeros_at_the_end_are_torn():
    """A length that was written without its bytes, as after a power cut, is no damage of the disk."""
    data = a_segment(*THREE)
    (damage,) = damages(data + bytes(4096))
    assert damage.torn
    assert not damage.lost


def test_blocks_swapped_or_repeated():
    """Blocks in another order or twice lose nothing and invent nothing."""
    parts = [a_segment(*THREE[: n + 1]) for n in range(3)]
    ends = [0, *map(len, parts)]
    pieces = [parts[-1][ends[n] : ends[n + 1]] for n in range(3)]
    for order in itertools.product(range(3), repeat=4):
        data = b"".join(pieces[n] for n in order)
        assert read(data) == [record for n in order for record in THREE[n]]
        missing = {record.seq for n in range(3) if n not in order for record in THREE[n]}
        assert {seq for gap in lost(data) for seq in range(gap.first_seq, gap.last_seq + 1)} <= missing


def test_payload_of_another_block():
    """A header with another block's payload is damage, though both are whole."""
    one, other = a_segment(some(1, 5)), a_segment(some(6, 10))
    split = len(one) - len(blocks(one)[0].payload)
    mixed = one[:split] + other[len(other) - len(blocks(other)[0].payload) :]
    assert read(mixed) == []
    assert lost(mixed) == [a_gap(1, 5)]


def test_text_that_looks_like_a_block():
    """A target that answers with the bytes of a block cannot plant records: its text is UTF-8, the magic is not."""
    with pytest.raises(UnicodeDecodeError):
        segment.MAGIC.decode()
    assert not any(segment.MAGIC[start:].decode(errors="ignore") == segment.MAGIC[start:] for start in range(4))


def forged(header, payload, raw_length, flags=segment.COMPRESSED):
    """A block whose checksums hold, whatever it says."""
    encoded = msgspec.msgpack.encode(header)
    prefix = segment._PREFIX.pack(
        segment.MAGIC, segment.VERSION, flags, len(encoded), len(payload), raw_length & 0xFFFFFFFF, 0
    )[:-4]
    return prefix + zlib.crc32(encoded, zlib.crc32(prefix)).to_bytes(4, "little") + encoded + payload


def a_header(payload, count=1):
    return Header(1, "r", 0, RESULTS, count, 0, 1, 1, "", "", zlib.crc32(payload))


@pytest.mark.parametrize("claimed", [100, 1 << 20, segment.MAX_RAW])
def test_bombs(claimed):
    """A small frame that unpacks to a hundred times what it claims is refused before any of it is unpacked."""
    bomb = zstandard.ZstdCompressor(level=1).compress(bytes(256 << 20)) if claimed == 100 else BOMB
    data = forged(a_header(bomb), bomb, claimed)
    (block,) = scan(data)
    with pytest.raises(Damaged):
        decode(block)


BOMB = zstandard.ZstdCompressor(level=1, write_content_size=False).compress(bytes(64 << 20))


def test_lengths_beyond_the_bound():
    """A prefix that claims more than a block may hold is damage."""
    payload = COMPRESSOR.compress(bytes(segment.MAX_RAW + 1))
    assert isinstance(scan(forged(a_header(payload), payload, segment.MAX_RAW + 1))[0], Damage)


@pytest.mark.parametrize(
    "rows",
    [[], [[1, "i", "a"]], [[1, "i", "a", "text"]], [[2, "i", "a", b""]], [[1, "i", "a", b""]] * 2, {"a": 1}, 3],
    ids=str,
)
def test_rows_that_are_not_the_headers(rows):
    """Rows that are none, or others than the header says, are damage."""
    payload = msgspec.msgpack.encode(rows)
    (block,) = scan(forged(a_header(payload), payload, len(payload), flags=0))
    with pytest.raises(Damaged):
        decode(block)


@given(st.binary(max_size=300), st.booleans())
def test_any_payload(payload, compressed):
    """Any payload that a header vouches for is records or `Damaged`."""
    (block,) = scan(forged(a_header(payload), payload, len(payload), flags=int(compressed)))
    with contextlib.suppress(Damaged):
        decode(block)


def test_newer_version():
    """A newer agent's segment is told as such; a flipped bit in the version of one of ours is not taken for it."""
    data = bytearray(a_segment(*THREE))
    data[4] = 2
    assert read(bytes(data)) == [*THREE[1], *THREE[2]]
    theirs = bytearray(segment.MAGIC + bytes([2]) + bytes(range(200)))
    assert scan(bytes(theirs)) == Newer(2)


def test_too_large():
    """Records that do not fit in a block are refused when it is made."""
    with pytest.raises(ValueError, match="do not fit"):
        encode(ORIGIN, RESULTS, [a_record(1, size=segment.MAX_RAW)])
    with pytest.raises(ValueError, match="do not fit"):
        encode(ORIGIN, "t" * 5_000, [a_record(1)])


@given(st.lists(st.integers(0, 300), max_size=50))
def test_chunks(sizes):
    """Records are cut into pieces within the limit; one larger than it is a piece of its own."""
    rows = [Record(RESULTS, seq, "", "", bytes(size)) for seq, size in enumerate(sizes)]
    pieces = list(chunks(rows, 500))
    assert [row for piece in pieces for row in piece] == rows
    assert all(len(piece) == 1 or sum(len(row.value) for row in piece) <= 500 for piece in pieces)


def test_without_the_crc_damage_goes_unseen(monkeypatch):
    """These tests would notice a codec that does not check: with the CRC switched off, flipped bytes come through."""
    monkeypatch.setattr(segment.zlib, "crc32", lambda data, value=0: 0)
    with pytest.raises((AssertionError, Damaged)):
        test_every_byte_flipped(None)


def test_without_the_resync_the_rest_is_lost(monkeypatch):
    """These tests would notice a codec that stops at the first damage."""
    whole = segment._headers

    def stops(view, data):
        return itertools.takewhile(lambda seen: seen.block is not None, whole(view, data))

    monkeypatch.setattr(segment, "_headers", stops)
    with pytest.raises(AssertionError):
        test_every_byte_flipped(COMPRESSOR)
