"""The DNS codec: what it asks, what it takes for an answer, and that no bytes can harm it."""

import contextlib
import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.probers import dns
from tests.probers import dns_server as wire

NAME = dns.encode_name("www.example.org")
SECTION = NAME + struct.pack("!HH", dns.A, 1)
ASKED = wire.Question(7, "www.example.org", dns.A, SECTION, False, 1)
POINTER = b"\xc0\x0c"
ADDRESS = struct.pack("!HHIH", dns.A, 1, 60, 4) + bytes((192, 0, 2, 1))


def parse(message: bytes) -> dns.Answer | None:
    return dns.parse(message, NAME, dns.A, 7)


def test_query():
    """A question has the id, recursion desired, one question, and an OPT record that allows 1232 bytes."""
    assert dns.query(NAME, dns.AAAA, 0x1234) == (
        b"\x12\x34\x01\x00\0\1\0\0\0\0\0\1\3www\7example\3org\0\0\x1c\0\1" + b"\0\0\x29\x04\xd0\0\0\0\0\0\0"
    )


@pytest.mark.parametrize("name", ["", ".", "a..b", ".a", "x" * 64 + ".org", "é.org", ".".join(["x" * 50] * 6)])
def test_invalid_names(name):
    """What RFC 1035 does not allow as a name is refused before it is asked for."""
    with pytest.raises(dns.DnsFormatError):
        dns.encode_name(name)


@pytest.mark.parametrize(
    "name", ["x" * 63 + ".org", ".".join(["x" * 62] * 4) + ".", "_dmarc.a-b.xn--bcher-kva.example"]
)
def test_valid_names(name):
    """The longest allowed names, a trailing dot and underscores are fine."""
    assert dns.encode_name(name).endswith(b"\0")


def test_addresses():
    """All addresses of the name are found once each, in the answer's order, through compressed names."""
    other = ADDRESS[:-1] + b"\2"
    answer = parse(wire.reply(ASKED, POINTER + other, POINTER + ADDRESS, POINTER + other))
    assert answer == dns.Answer(dns.NOERROR, False, (b"\xc0\0\2\2", b"\xc0\0\2\1"))


def test_name_in_other_case():
    """A server may answer in another case than it was asked in."""
    records = wire.address("WWW.Example.ORG", "192.0.2.1")
    assert parse(wire.reply(ASKED, records, section=SECTION.replace(b"www", b"wWw"))).addresses == (b"\xc0\0\2\1",)


def test_another_names_addresses():
    """Addresses of a name that was not asked for are not taken."""
    assert parse(wire.reply(ASKED, wire.address("evil.example.org", "192.0.2.1"))).addresses == ()


@pytest.mark.parametrize("backwards", [False, True])
def test_alias_chain(backwards):
    """Aliases are followed in whatever order the records come."""
    records = [
        wire.cname("www.example.org", "a.example.net"),
        wire.cname("a.example.net", "b.example.net"),
        wire.address("b.example.net", "192.0.2.1"),
    ]
    answer = parse(wire.reply(ASKED, *(reversed(records) if backwards else records)))
    assert answer.addresses == (b"\xc0\0\2\1",)


def test_alias_loop():
    """Aliases in a circle are an answer without addresses."""
    records = [wire.cname("www.example.org", "a.example.net"), wire.cname("a.example.net", "www.example.org")]
    assert parse(wire.reply(ASKED, *records)) == dns.Answer(dns.NOERROR, False, ())


def test_endless_aliases():
    """More aliases than any site has are not followed."""
    names = ["www.example.org", *(f"a{number}.example" for number in range(dns.MOST_ALIASES + 1))]
    records = [wire.cname(*pair) for pair in itertools.pairwise(names)]
    assert parse(wire.reply(ASKED, *records, wire.address(names[-1], "192.0.2.1"))).addresses == ()


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\0\7\x81\x80", id="no header"),
        pytest.param(wire.reply(ASKED, id=8), id="another id"),
        pytest.param(wire.reply(ASKED, flags=0x0100), id="a question"),
        pytest.param(wire.reply(ASKED, flags=0xA180), id="another opcode"),
        pytest.param(wire.reply(ASKED, section=SECTION.replace(b"www", b"wwv")), id="another name"),
        pytest.param(wire.reply(ASKED, section=NAME + b"\0\x1c\0\1"), id="another type"),
        pytest.param(wire.reply(ASKED, section=NAME + b"\0\1\0\3"), id="another class"),
        pytest.param(wire.reply(ASKED)[:20], id="half a question"),
        pytest.param(struct.pack("!6H", 7, 0x8183, 0, 0, 0, 0), id="NXDOMAIN for nothing"),
    ],
)
def test_not_our_answer(message):
    """What does not answer this question is ignored, not an error."""
    assert parse(message) is None


@pytest.mark.parametrize("rcode", [dns.SERVFAIL, dns.NXDOMAIN, dns.REFUSED, 1, 15])
def test_rcode(rcode):
    """The rcode is handed on, and no record is read then."""
    assert parse(wire.reply(ASKED, b"garbage", rcode=rcode)) == dns.Answer(rcode, False, ())


def test_refused_without_its_question():
    """A server that did not understand may leave the question out of its answer."""
    assert parse(struct.pack("!6H", 7, 0x8181, 0, 0, 0, 0)) == dns.Answer(1, False, ())


def test_truncated():
    """A truncated answer says so, whatever it still contains."""
    assert parse(wire.reply(ASKED, POINTER, flags=0x8380)) == dns.Answer(dns.NOERROR, True, ())


def test_referral():
    """A server that neither knows nor recurses has refused: that is not a name without addresses."""
    assert parse(wire.reply(ASKED, flags=0x8100)) == dns.Answer(dns.REFUSED, False, ())
    assert parse(wire.reply(ASKED, flags=0x8500)) == dns.Answer(dns.NOERROR, False, ())


FIRST = 12 + len(SECTION)  # where the first record is


@pytest.mark.parametrize(
    "record",
    [
        pytest.param(POINTER + ADDRESS[:-1], id="ends early"),
        pytest.param(POINTER, id="no record"),
        pytest.param(b"", id="nothing"),
        pytest.param(struct.pack("!H", 0xC000 | FIRST) + ADDRESS, id="points to itself"),
        pytest.param(struct.pack("!H", 0xC000 | (FIRST + 2)) + ADDRESS, id="points forward"),
        pytest.param(b"\x40a\0" + ADDRESS, id="unknown label"),
        pytest.param((b"\x3f" + b"a" * 63) * 4 + b"\0" + ADDRESS, id="name too long"),
        pytest.param(POINTER + struct.pack("!HHIH", dns.A, 1, 60, 5) + bytes(5), id="five bytes"),
        pytest.param(POINTER + struct.pack("!HHIH", 16, 1, 60, 500) + bytes(5), id="longer than the message"),
    ],
)
def test_malformed(record):
    """The answer to our question, but broken, is told apart from what is to be ignored."""
    with pytest.raises(dns.DnsFormatError):
        parse(wire.reply(ASKED, record))


def test_pointer_chains_are_bounded():
    """Pointers that lead backwards are followed only so often."""
    data = b"\0\0" + b"".join(
        struct.pack("!H", 0xC000 | (FIRST + 11 + 2 * each)) for each in range(dns.MOST_POINTERS + 1)
    )
    text = b"\0" + struct.pack("!HHIH", 16, 1, 60, len(data)) + data
    last = struct.pack("!H", 0xC000 | (FIRST + 11 + len(data) - 2))
    with pytest.raises(dns.DnsFormatError, match="circle"):
        parse(wire.reply(ASKED, text, last + ADDRESS))


def test_more_records_than_are_read():
    """A thousand addresses are read; records beyond the bound are not."""
    addresses = [POINTER + ADDRESS[:-2] + struct.pack("!H", number) for number in range(dns.MOST_RECORDS + 500)]
    assert len(parse(wire.reply(ASKED, *addresses[:1000])).addresses) == 1000
    assert len(parse(wire.reply(ASKED, *addresses)).addresses) == dns.MOST_RECORDS


@given(st.binary(max_size=300))
def test_any_bytes(message):
    """Bytes of any kind are ignored, or give an answer or the codec's own error."""
    with contextlib.suppress(dns.DnsFormatError):
        parse(message)


@given(st.integers(0, 5), st.binary(max_size=200), st.sampled_from((0x8180, 0x8580)))
def test_any_bytes_after_the_question(records, rest, flags):
    """The same for bytes that follow a good header and question."""
    try:
        answer = parse(struct.pack("!6H", 7, flags, 1, records, 0, 0) + SECTION + rest)
    except dns.DnsFormatError:
        return
    assert answer is not None
    assert all(len(address) == 4 for address in answer.addresses)


@given(st.data())
def test_flipped_bytes(data):
    """The same for a good answer in which some bytes were changed, or the end is missing."""
    good = wire.reply(ASKED, wire.cname("www.example.org", "b.example"), wire.address("b.example", "192.0.2.1"))
    message = bytearray(good[: data.draw(st.integers(0, len(good)))])
    for _ in range(data.draw(st.integers(0, 4))):
        if message:
            message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(dns.DnsFormatError):
        parse(bytes(message))


@given(st.text(max_size=80))
def test_any_name(name):
    """Any text is encoded or refused."""
    with contextlib.suppress(dns.DnsFormatError):
        assert len(dns.encode_name(name)) <= 255
