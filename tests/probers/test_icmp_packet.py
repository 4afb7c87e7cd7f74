"""The ICMP codec: what it sends, and that no bytes can harm it."""

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.probers.icmp_packet import Reply, Unreachable, echo, quoted, reply, unreachable

SIX = pytest.mark.parametrize("six", [False, True])


def summed(packet: bytes) -> int:
    """All 16-bit words of it, added as one's complements (RFC 1071); 0xffff when its checksum is right."""
    packet += b"\0" * (len(packet) % 2)
    total = sum(word for (word,) in struct.iter_unpack("!H", packet))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def test_an_echo():
    """An echo as RFC 792 has it, to the byte."""
    assert echo(six=False, identifier=0x1234, sequence=1, payload=b"abc") == b"\x08\0\x21\x68\x12\x34\0\x01abc"
    assert echo(six=True, identifier=0x1234, sequence=1, payload=b"abc") == b"\x80\0\0\0\x12\x34\0\x01abc"


@given(st.integers(0, 65_535), st.integers(0, 65_535), st.binary(max_size=300))
def test_checksum(identifier, sequence, payload):
    """The checksum of any echo is right."""
    assert summed(echo(six=False, identifier=identifier, sequence=sequence, payload=payload)) == 0xFFFF


@SIX
@given(st.integers(0, 65_535), st.integers(0, 65_535), st.binary(max_size=300), st.integers(5, 15))
def test_what_is_sent_is_found_in_errors_and_replies(six, identifier, sequence, payload, words):
    """An echo is read again where it is quoted, and as a reply, behind an IP header of any length."""
    packet = echo(six=six, identifier=identifier, sequence=sequence, payload=payload)
    assert quoted(packet, six=six) == Reply(identifier, sequence, payload)
    assert reply(packet, six=six, with_ip=False) is None
    came = bytes([129 if six else 0]) + packet[1:]
    assert reply(came, six=six, with_ip=False) == Reply(identifier, sequence, payload)
    header = bytes([0x40 | words]) + b"\0" * (words * 4 - 1)
    assert reply(header + came, six=six, with_ip=True) == Reply(identifier, sequence, payload)


@SIX
@given(st.binary(max_size=100), st.booleans())
def test_any_bytes(six, data, with_ip):
    """Whatever comes is a reply or none, and brings no more than came."""
    for found in (reply(data, six=six, with_ip=with_ip), quoted(data, six=six)):
        assert found is None or len(found.payload) <= len(data)


LEVELS = st.sampled_from([(socket.SOL_IP, 11), (socket.IPPROTO_IPV6, 25), (socket.SOL_SOCKET, 35)])


@given(st.lists(st.tuples(LEVELS, st.binary(max_size=60)), max_size=4))
def test_any_ancillary_data(messages):
    """Whatever the kernel tells besides, it is an error or none."""
    found = unreachable([(*level, data) for level, data in messages])
    assert found is None or isinstance(found, Unreachable)


@pytest.mark.parametrize(
    ("origin", "kind", "code", "expected"),
    [
        (2, 3, 1, Unreachable("192.0.2.1", "host unreachable")),
        (2, 11, 0, Unreachable("192.0.2.1", "time exceeded")),
        (2, 3, 4, None),
        (2, 5, 1, None),
        (1, 3, 1, None),
        (9, 3, 1, None),
    ],
)
def test_errors_of_ipv4(origin, kind, code, expected):
    """That a packet was lost on its way is an error; its size, a redirect, or this device's own word are none."""
    data = struct.pack("=IBBBBII", 113, origin, kind, code, 0, 0, 0) + struct.pack("=HH4s8x", 2, 0, b"\xc0\0\2\1")
    assert unreachable([(socket.SOL_SOCKET, 35, b"\0" * 16), (socket.SOL_IP, 11, data)]) == expected


def test_errors_of_ipv6():
    """So it is for IPv6."""
    address = socket.inet_pton(socket.AF_INET6, "2001:db8::1")
    data = struct.pack("=IBBBBII", 113, 3, 1, 3, 0, 0, 0) + struct.pack("=HHI16sI", 10, 0, 0, address, 0)
    assert unreachable([(socket.IPPROTO_IPV6, 25, data)]) == Unreachable("2001:db8::1", "address unreachable")
    assert unreachable([(socket.IPPROTO_IPV6, 25, data[:30])]) is None
