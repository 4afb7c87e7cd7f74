"""Records as they stand in a zone file, and that no message can harm who reads it."""

import base64
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.config.dns import TYPES
from agent.probers import dns
from agent.probers.dns_text import text
from tests.probers import dns_server as wire

NAME = dns.encode_name("www.example.org")


def section(kind: int, klass: int = 1) -> bytes:
    return NAME + struct.pack("!HH", kind, klass)


def record(kind: int, data: bytes, klass: int = 1, ttl: int = 300) -> bytes:
    return b"\xc0\x0c" + struct.pack("!HHIH", kind, klass, ttl, len(data)) + data


def message(
    *records: bytes, kind: int = 1, klass: int = 1, rcode: int = 0, counts: tuple[int, int, int] | None = None
) -> bytes:
    header = struct.pack("!6H", 7, 0x8180 | rcode, 1, *(counts or (len(records), 0, 0)))
    return header + section(kind, klass) + b"".join(records)


def read(data: bytes, kind: int = 1, klass: int = 1) -> dns.Message | None:
    return dns.read(data, NAME, kind, 7, klass)


def shown(kind: int, data: bytes, klass: int = 1) -> str:
    found = read(message(record(kind, data, klass)))
    assert found.broken == ""
    return text(found.data, found.answer[0]).removeprefix("www.example.org. 300 ")


def strings(*texts: bytes) -> bytes:
    return b"".join(bytes([len(each)]) + each for each in texts)


HASH = bytes(range(20))
# As `dig` prints them.
DATA = {
    "IN A 192.0.2.1": b"\xc0\0\2\1",
    "IN AAAA 2001:db8::1": bytes.fromhex("20010db8000000000000000000000001"),
    "IN NS ns.www.example.org.": b"\2ns\xc0\x0c",
    "IN CNAME .": b"\0",
    "IN PTR a\\.b\\032\\255.c.": b"\5a.b \xff\1c\0",
    "IN SOA ns.www.example.org. admin. 2026112301 7200 3600 1209600 300": b"\2ns\xc0\x0c\5admin\0"
    + struct.pack("!5I", 2026112301, 7200, 3600, 1209600, 300),
    "IN MX 10 mail.www.example.org.": b"\0\x0a\4mail\xc0\x0c",
    'IN TXT "v=spf1 -all" "a\\"b\\\\c\\000\\228"': strings(b"v=spf1 -all", b'a"b\\c\0\xe4'),
    'IN HINFO "x86" "Linux"': strings(b"x86", b"Linux"),
    "IN SRV 1 2 5060 sip.www.example.org.": b"\0\1\0\2\x13\xc4\3sip\xc0\x0c",
    'IN NAPTR 100 10 "S" "SIP+D2U" "" _sip.': b"\0\x64\0\x0a" + strings(b"S", b"SIP+D2U", b"") + b"\4_sip\0",
    'IN CAA 128 issue "letsencrypt.org; a=b"': b"\x80\5issueletsencrypt.org; a=b",
    'IN URI 10 1 "https://example.com/"': b"\0\x0a\0\1https://example.com/",
    "IN DS 12345 13 2 00010203": b"\x30\x39\x0d\2\0\1\2\3",
    "IN DNSKEY 257 3 13 AAEC": b"\1\1\3\x0d\0\1\2",
    "IN RRSIG A 13 2 300 20261123163311 19700101000000 12345 www.example.org. AAEC": struct.pack(
        "!HBBIIIH", 1, 13, 2, 300, 1795451591, 0, 12345
    )
    + NAME
    + b"\0\1\2",
    "IN NSEC b. A MX RRSIG NSEC CAA": b"\1b\0" + b"\0\6\x40\1\0\0\0\3" + b"\1\1\x40",
    f"IN NSEC3 1 0 10 AABB {base64.b32hexencode(HASH).decode()} A": b"\1\0\0\x0a\2\xaa\xbb\x14" + HASH + b"\0\1\x40",
    "IN NSEC3PARAM 1 0 0 -": b"\1\0\0\0\0",
    "IN TLSA 3 1 1 ABCD": b"\3\1\1\xab\xcd",
    "IN SSHFP 4 2 ABCD": b"\4\2\xab\xcd",
    'IN HTTPS 1 . alpn="h2,h3" port=8443 ipv4hint=192.0.2.1,192.0.2.2 ech=AAE= ipv6hint=::1 key667="x\\000"': b"\0\1\0"
    + b"\0\1\0\6\2h2\2h3"
    + b"\0\3\0\2\x20\xfb"
    + b"\0\4\0\x08\xc0\0\2\1\xc0\0\2\2"
    + b"\0\5\0\2\0\1"
    + b"\0\6\0\x10"
    + b"\0" * 15
    + b"\1"
    + b"\x02\x9b\0\2x\0",
    "IN SVCB 0 svc.": b"\0\0\3svc\0",
    "IN SVCB 1 . mandatory=alpn,key9 no-default-alpn": b"\0\1\0\0\0\0\4\0\1\0\x09\0\2\0\0",
    "IN TYPE65280 \\# 3 ABCDEF": b"\xab\xcd\xef",
    "IN NULL \\# 0": b"",
    "IN LOC \\# 2 0001": b"\0\1",
    'CH TXT "9.18"': strings(b"9.18"),
    "CH A \\# 3 000102": b"\0\1\2",
    "CLASS32 NS a.": b"\1a\0",
}


@pytest.mark.parametrize("expected", DATA)
def test_presentation(expected):
    """Each type is shown as in a zone file; others by their bytes (RFC 3597)."""
    klass, kind = expected.split()[:2]
    number = TYPES[kind] if kind in TYPES else int(kind.removeprefix("TYPE"))
    assert shown(number, DATA[expected], {"IN": 1, "CH": 3, "CLASS32": 32}[klass]) == expected


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("A", b"\1\2\3"), ("A", b"\1\2\3\4\5"), ("AAAA", b"\0" * 15), ("NS", b""), ("NS", b"\1a"), ("NS", b"\1a\0x"),
        ("MX", b"\0"), ("TXT", b"\5abc"), ("SOA", b"\0\0" + b"\0" * 19), ("NSEC", b"\0\0\0"), ("NSEC", b"\0\0\x21"),
        ("NSEC", b"\0\1\1\1\0\1\1"), ("NSEC", b"\0\0\1\1\0\1\1"),
        ("CAA", b"\0"), ("CAA", b"\0\5is"), ("RRSIG", b"\0\1"), ("HTTPS", b"\0\1\0\0\1\0\6\2h"),
        ("SRV", b"\0\1\0\2\0\3"), ("HTTPS", b"\0\1\0\0\1\0\2\5h"), ("NSEC3", b"\1\0\0\x0a\5\1"), ("DS", b"\0\1\2"),
    ],
)  # fmt: skip
def test_data_that_a_type_cannot_have(kind, data):
    """Is malformed, and nothing else."""
    with pytest.raises(dns.DnsFormatError):
        shown(TYPES[kind], data)


def test_sections_and_extended_rcode():
    """All three sections are read, and EDNS's upper bits of the rcode."""
    opt = b"\0" + struct.pack("!HHIH", 41, 1232, 0x01000000, 0)
    found = read(message(record(1, b"\1\2\3\4"), record(2, b"\1a\0"), record(16, strings(b"x")), opt, counts=(1, 1, 2)))
    assert [len(each) for each in (found.answer, found.authority, found.additional)] == [1, 1, 2]
    assert found.rcode == 16
    assert found.answers == 1


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (message(record(1, b"\1\2\3\4"))[:-1], "longer than the message"),
        (message(counts=(1, 0, 0)), "ends too early"),
        (message(b"\xc0\xff" + b"\0" * 10), "points forward"),
        (message(counts=(0, 3000, 0)), "3,000 records"),
    ],
)
def test_broken(data, why):
    """What is broken says why; its rcode is known all the same."""
    found = read(data)
    assert (found.rcode, found.answer) == (0, ())
    assert why in found.broken


def test_truncated():
    """Of a truncated answer nothing is read but that."""
    found = read(wire.reply(wire.Question(7, "", 1, section(1), False, 1), b"garbage", flags=0x8380))
    assert found.truncated
    assert (found.answer, found.broken) == ((), "it was truncated")


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=200), st.tuples(*[st.integers(0, 5)] * 3), st.sampled_from([0, 0, 0, 3, 2, 5]))
def test_any_bytes_behind_a_question(data, counts, rcode):
    """Whatever follows a question is read, or broken, and can be shown or is malformed; nothing else comes of it."""
    found = read(message(data, counts=counts, rcode=rcode))
    assert found is not None
    for each in (*found.answer, *found.authority, *found.additional):
        try:
            told = text(found.data, each)
        except dns.DnsFormatError:
            continue
        assert told.isascii()
        assert told.isprintable()
        assert len(told) <= 4 * len(found.data) + 1200


KINDS = st.sampled_from([number for number in TYPES.values() if number != 255])


@settings(max_examples=600, deadline=None)
@given(KINDS, st.binary(max_size=80), st.sampled_from([1, 3]))
def test_any_data_of_a_type(kind, data, klass):
    """Any data of any type is shown on one line of ASCII, or malformed."""
    found = read(message(record(kind, data, klass)))
    try:
        told = text(found.data, found.answer[0])
    except dns.DnsFormatError:
        return
    assert told.isascii()
    assert told.isprintable()


@given(st.binary(max_size=100))
def test_any_bytes(data):
    """Any message at all is an answer or none."""
    found = read(data)
    assert found is None or found.data == data
