"""ICMP of every form: whatever comes, only the replies to what was sent count, and nothing grows."""

import asyncio
import ipaddress
import socket
import struct
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.probers.icmp import _Echoes
from agent.probers.icmp_packet import echo, quoted, reply, unreachable
from tests.fuzz import examples

SIX = pytest.mark.parametrize("six", [False, True])
IDENTIFIER, COUNT = 0x1234, 3
NUMBERS = st.one_of(st.integers(0, 65_535), st.sampled_from([0, 1, 2, 3, COUNT + 1, IDENTIFIER]))


def came(packet: bytes, six: bool) -> bytes:
    """An echo as it comes back."""
    return bytes([129 if six else 0]) + packet[1:]


def mistyped(packet: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
    for at, length, piece in changes:
        at %= len(packet) + 1
        packet = packet[:at] + piece + packet[at + length :]
    return packet


CHANGES = st.lists(st.tuples(st.integers(0, 90), st.integers(0, 4), st.binary(max_size=4)), max_size=3)


@SIX
@examples()
@given(NUMBERS, NUMBERS, st.binary(max_size=70), st.booleans(), st.integers(0, 255), CHANGES, st.integers(0, 100))
def test_replies(six, identifier, sequence, payload, with_ip, first, changes, cut):
    """A reply with any header, mistyped or cut, is one or none, and brings a part of what came."""
    packet = came(echo(six=six, identifier=identifier, sequence=sequence, payload=payload), six)
    header = bytes([first]) + bytes((first & 0x0F) * 4)[1:] if with_ip else b""
    whole = mistyped(header + packet, changes)[: cut if changes else None]
    for found in (reply(whole, six=six, with_ip=with_ip), quoted(whole, six=six)):
        assert found is None or whole.endswith(found.payload)
    if not changes and (not with_ip or first & 0x0F):
        assert reply(whole, six=six, with_ip=with_ip) == (identifier, sequence, payload)


# As <linux/errqueue.h> has it: errno, origin, type, code, padding, info, data; and who says so.
ERRORS = st.tuples(
    st.integers(0, 200), st.integers(0, 5), st.sampled_from([0, 1, 2, 3, 4, 5, 11, 12]), st.integers(0, 16)
)
SOURCES = st.one_of(
    st.binary(max_size=30),
    st.binary(min_size=4, max_size=4).map(lambda address: struct.pack("=HH4s8x", socket.AF_INET, 0, address)),
    st.binary(min_size=16, max_size=16).map(lambda address: struct.pack("=HHI16sI", socket.AF_INET6, 0, 0, address, 0)),
)
LEVELS = st.sampled_from([(socket.SOL_IP, 11), (socket.IPPROTO_IPV6, 25), (socket.SOL_SOCKET, 35)])


@examples(400)
@given(st.lists(st.tuples(LEVELS, ERRORS, SOURCES, st.integers(0, 60)), max_size=3))
def test_errors(messages):
    """Whatever the kernel tells besides is an error with an address and a reason, or none; the first counts."""
    ancillary = [
        (*level, (struct.pack("=IBBBBII", *error, 0, 0, 0) + source)[:cut]) for level, error, source, cut in messages
    ]
    found = unreachable(ancillary)
    assert found == next((one for each in ancillary if (one := unreachable([each]))), None)
    if found is not None:
        ipaddress.ip_address(found.by)
        assert found.why.isprintable()
        assert found.why


@st.composite
def packets(draw, echoes: list[bytes], six: bool) -> bytes:
    """Replies to these echoes, as they are or mistyped; or anything."""
    packet = came(draw(st.sampled_from(echoes)), six)
    changes, cut = draw(CHANGES), draw(st.integers(0, 80))
    return draw(
        st.one_of(st.just(packet), st.just(packet[:cut]), st.just(mistyped(packet, changes)), st.binary(max_size=80))
    )


async def all_answers(six: bool, draw) -> tuple[_Echoes, set[int]]:
    """A prober that sent all its echoes and then gets packets; which of the echoes were answered."""
    probing = _Echoes("2001:db8::1" if six else "192.0.2.1", COUNT, 56, time.monotonic() + 60)
    probing._identifier = IDENTIFIER
    probing._sent, probing._next = {number: time.monotonic() for number in range(1, COUNT + 1)}, COUNT + 1
    probing._first_sent = probing._begun
    echoes = [
        echo(six=six, identifier=IDENTIFIER, sequence=number, payload=probing._payload)
        for number in range(1, COUNT + 1)
    ]
    answered = set()
    for packet in draw(st.lists(packets(echoes, six), max_size=12)):
        probing.received(packet, time.monotonic())
        for number, sent in enumerate(echoes, 1):
            # All of its head but the checksum, which the kernel looks at; and at least the random bytes.
            head = came(sent, six)
            if (
                packet[:2] + packet[4:8] == head[:2] + head[4:8]
                and len(packet) >= 16
                and head[8:].startswith(packet[8:])
            ):
                answered.add(number)
    return probing, answered


@SIX
@examples()
@given(st.data())
def test_only_replies_count(six, data):
    """Of all that may come each reply to an echo counts, once, and nothing else does; no more is kept than was sent."""
    probing, answered = asyncio.run(all_answers(six, data.draw))
    assert set(probing._trips) == answered
    found = probing.result(0.0)
    assert (found.icmp.sent, found.icmp.received) == (COUNT, len(answered))
    assert (found.error is None) == (len(answered) == COUNT) == probing.done.done()
