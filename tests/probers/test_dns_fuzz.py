"""DNS answers of every form, cut, mistyped and split: none harms or takes long, and what is broken is never whole."""

import asyncio
import contextlib
import struct
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent.config.dns import TYPES
from agent.probers import dns, dns_text
from agent.probers.dns_exchange import MOST_OTHERS, Ask, _OverTcp
from tests.fuzz import examples
from tests.probers.test_dns_text import DATA, NAME, message, read, record, section, text

FIRST = 12 + len(section(1))  # where the first record is
SHOWN = [(shown.split(), data) for shown, data in DATA.items()]
RECORDS = st.sampled_from([(TYPES[kind], data) for (klass, kind, *_), data in SHOWN if klass == "IN" and kind in TYPES])
MOST_STEPS = 300  # bytes looked at for one name: 127 labels, some pointers, the end
OPT = b"\0" + struct.pack("!HHIH", dns.OPT, 1232, 0, 0)


@st.composite
def good(draw) -> bytes:
    """A good answer with records of any type in all three sections."""
    counts = draw(st.tuples(st.integers(0, 4), st.integers(0, 2), st.integers(0, 2)))
    records = [record(*draw(RECORDS), ttl=draw(st.integers(0, 0xFFFFFFFF))) for _ in range(sum(counts))]
    if draw(st.booleans()):
        records, counts = [*records, OPT], (*counts[:2], counts[2] + 1)
    return message(*records, counts=counts, rcode=draw(st.sampled_from([0, 0, 0, 3])))


PIECES = st.one_of(
    st.binary(max_size=6),
    st.integers(0, 80).map(lambda at: struct.pack("!H", 0xC000 | at)),
    st.sampled_from([b"\0", b"\1", b"\x3f", b"\x40", b"\x80", b"\xff\xff", b"\0\1\0\1", NAME, OPT]),
)


@st.composite
def mistyped(draw) -> bytes:
    """A good answer in which something was cut out, put in, or changed."""
    data = draw(good())
    for at, length, piece in draw(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 6), PIECES), max_size=4)):
        at %= len(data) + 1
        data = data[:at] + piece + data[at + length :]
    return data


def all_of(found: dns.Message) -> list[dns.Record]:
    return [*found.answer, *found.authority, *found.additional]


@examples()
@given(good(), st.binary(max_size=40))
def test_good_answers_are_read(data, more):
    """All of it is read, and can be shown; what stands behind it changes nothing."""
    found = read(data)
    assert (found.broken, len(all_of(found))) == ("", sum(struct.unpack("!6H", data[:12])[3:]))
    shown = [text(data, each) for each in all_of(found) if each.kind != dns.OPT]
    assert dns_text.texts(data, found.answer) == tuple(shown[: len(found.answer)])
    longer = read(data + more)
    assert all_of(longer) == all_of(found)
    assert dns.parse(data + more, NAME, dns.A, 7) == dns.parse(data, NAME, dns.A, 7)


@examples()
@given(good(), st.data())
def test_what_is_cut_is_not_whole(data, draw):
    """An answer that ends too early is broken, or none, at every byte of it."""
    short = data[: draw.draw(st.integers(0, len(data) - 1))]
    found = read(short)
    assert (found is None) == (len(short) < FIRST)
    assert found is None or found.broken == "it ends too early" or "longer than the message" in found.broken
    assert found is None or (found.answer, found.authority, found.additional) == ((), (), ())


@examples(400)
@given(mistyped())
def test_mistyped_answers(data):
    """Any answer is whole, broken or none; both readings agree on it, and an address is one."""
    found = read(data)
    try:
        answer = dns.parse(data, NAME, dns.A, 7)
    except dns.DnsFormatError:
        assert found is not None
        return
    assert (answer is None) == (found is None)
    if answer is None or found is None:
        return
    assert found.truncated == answer.truncated
    assert answer.rcode in (found.rcode & 0x0F, dns.REFUSED)
    if not found.broken:
        held = {data[each.at : each.at + each.length] for each in found.answer if each.kind == dns.A}
        assert set(answer.addresses) <= held
    for each in all_of(found):
        assert 0 <= each.at <= each.at + each.length <= len(data)
        with contextlib.suppress(dns.DnsFormatError):
            told = text(data, each)
            assert told.isascii()
            assert told.isprintable()


@examples(400)
@given(RECORDS, st.lists(st.tuples(st.integers(0, 80), st.integers(0, 3), PIECES), max_size=3), st.integers(0, 80))
def test_mistyped_records(one, cuts, length):
    """Data of a type in which something was changed are shown on one line, or malformed."""
    kind, data = one
    for at, cut, piece in cuts:
        at %= len(data) + 1
        data = data[:at] + piece + data[at + cut :]
    whole = message(record(kind, data[:length] if cuts else data))
    with contextlib.suppress(dns.DnsFormatError):
        told = text(whole, read(whole).answer[0])
        assert told.isascii()
        assert told.isprintable()
        return
    assert cuts


class Counted(bytes):
    """Counts how often one of its bytes is looked at."""

    looks = 0

    def __getitem__(self, at):
        Counted.looks += isinstance(at, int)
        return super().__getitem__(at)


NAME_PARTS = st.one_of(
    st.integers(0, 63).map(lambda length: bytes([length]) + b"x" * length),
    st.just(b"\1y" * 40),
    st.integers(0, 1200).map(lambda at: struct.pack("!H", 0xC000 | at)),
    st.sampled_from([b"\0", b"\x40", b"\xff", b""]),
)


@examples()
@given(st.lists(NAME_PARTS, max_size=40).map(b"".join), st.integers(0, 1200))
@example((b"\1x" * 100 + b"\xc0\0") * 5, 808)
def test_a_name_ends(data, at):
    """However its pointers lead, a name is at most 255 bytes long, and so much is looked at for it."""
    Counted.looks = 0
    with contextlib.suppress(dns.DnsFormatError, IndexError):
        name, end = dns.name_at(Counted(data), at)
        assert len(name) <= 255
        assert at < end <= len(data)
        assert dns_text.name_text(name).isascii()
    assert Counted.looks <= MOST_STEPS


def long_names(kind: int, data: bytes, names: int, owner: bytes | None = None) -> bytes:
    """As many records as fit, whose names all point to one of 126 labels, as `names` in their data do."""
    labels = b"\1\x01" * 126 + b"\0"
    pointer = struct.pack("!H", 0xC000 | FIRST + 11)
    one = (owner or pointer) + struct.pack("!HHIH", kind, 1, 0, len(data) + 2 * names) + pointer * names + data
    before = b"\0" + struct.pack("!HHIH", 16, 1, 0, len(labels)) + labels
    count = min((65_000 - FIRST - len(before)) // len(one), dns.MOST_RECORDS - 1)
    return message(before.replace(struct.pack("!H", 16), struct.pack("!H", 10), 1), *[one] * count)


# The most work that 64 KiB can make.
MOST_WORK = {
    "SOA": long_names(6, bytes(20), 2),
    "CNAME": long_names(5, b"", 1),
    "MINFO of the root": long_names(14, b"", 2, owner=b"\0"),
    "NSEC": message(record(47, b"\0" + (b"\xff\x20" + b"\xff" * 32) * 1900)),
    "NSEC, in order": message(record(47, b"\0" + b"".join(bytes([each, 32]) + b"\xff" * 32 for each in range(256)))),
    "SVCB": message(record(64, b"\0\1\0" + b"".join(struct.pack("!HH", key, 0) for key in range(16_000)))),
    "alpn": message(record(64, b"\0\1\0" + struct.pack("!HH", 1, 65_000) + bytes(65_000))),
    "TXT": message(record(16, bytes(65_000))),
    "long TXT": message(record(16, (b"\xff" + bytes(255)) * 254)),
    "CAA": message(record(257, b"\0\1a" + b"\1" * 65_000)),
    "records": message(*[record(1, b"\xc0\0\2\1")] * dns.MOST_RECORDS),
    "too many records": message(*[record(1, b"\xc0\0\2\1")] * (dns.MOST_RECORDS + 1)),
}


@pytest.mark.parametrize("case", MOST_WORK)
def test_an_answer_is_little_work(case):
    """The largest of all answers are read and shown, or refused, within what is a tenth of a second here."""
    data = MOST_WORK[case]
    assert len(data) < 1 << 16
    begun = time.thread_time()
    found = read(data)
    texts: tuple[str, ...] = ()
    with contextlib.suppress(dns.DnsFormatError):
        texts = dns_text.texts(data, found.answer)
    with contextlib.suppress(dns.DnsFormatError):
        dns.parse(data, NAME, dns.A, 7)
    assert time.thread_time() - begun < 0.6
    assert sum(map(len, texts)) <= dns_text.LONGEST_TEXT
    assert ("names are longer" in found.broken) == (case in ("SOA", "CNAME"))


ASK = Ask(NAME, dns.A, 1, 7, b"")
CUTS = st.lists(st.integers(1, 30), min_size=1, max_size=30)
OTHERS = st.lists(st.one_of(st.binary(max_size=40), st.just(message()[:2] + message()[3:])), max_size=MOST_OTHERS)


def framed(data: bytes) -> bytes:
    return struct.pack("!H", len(data)) + data


async def over_tcp(data: bytes, cuts: list[int], *, ends: bool = False):
    """What comes of these bytes, in pieces of these sizes in turn; the most bytes that were held."""
    asking, at, most = _OverTcp("192.0.2.53", ASK, None), 0, 0
    asking._pass("send", time.monotonic())
    while at < len(data) and not asking.done.done():
        size = cuts[at % len(cuts)]
        asking.received(data[at : at + size], time.monotonic())
        at += size
        most = max(most, len(asking._received))
    if ends:
        asking.ended(time.monotonic())
    asking.close()
    return asking, most


@examples()
@given(st.lists(OTHERS, max_size=1), good(), CUTS, st.binary(max_size=30))
def test_tcp_in_any_split(others, data, cuts, more):
    """The answer is found among other messages and before anything else, wherever the network cuts."""
    others = [each for each in (others or [[]])[0] if read(each) is None]
    stream = b"".join(map(framed, others)) + framed(data) + more
    asking, most = asyncio.run(over_tcp(stream, cuts))
    assert asking.outcome().answer == read(data)
    assert asking.outcome().error is None
    assert most <= 2 + max(map(len, [*others, data])) + max(cuts)


@examples()
@given(st.binary(max_size=60), good(), CUTS, st.data())
def test_tcp_that_is_not_whole(noise, data, cuts, draw):
    """Without a whole message that answers, there is no answer, and its end says so."""
    stream = framed(data)[: draw.draw(st.integers(0, len(data) + 1))]
    asking, _ = asyncio.run(over_tcp(stream, cuts, ends=True))
    assert asking.outcome().answer is None
    assert asking.outcome().error.code == "connect_reset"
    one, _ = asyncio.run(over_tcp(noise, [1], ends=True))
    other, _ = asyncio.run(over_tcp(noise, cuts, ends=True))
    assert one.outcome().error == other.outcome().error
    assert one.outcome().answer == other.outcome().answer


@pytest.mark.parametrize("piece", [bytes(1 << 16), framed(message()[:2] + message()[3:]) * 500, b"\xff" * (1 << 16)])
def test_tcp_without_an_end(piece):
    """A server that goes on sending something else is given up after little of it."""
    begun = time.thread_time()
    asking, most = asyncio.run(over_tcp(piece * 40, [1 << 16]))
    assert time.thread_time() - begun < 1
    assert asking.outcome().error.code == "dns_servfail"
    assert most <= 2 << 16
