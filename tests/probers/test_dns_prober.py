"""The DNS prober against servers that behave in every way: one named error, one to blame, in time."""

import asyncio
import contextlib
import itertools
import os
import socket
import struct
import time
import tracemalloc

import pytest

from agent.config.model import Secret
from agent.probers import dns
from agent.probers.result import LONGEST_SHOWN, MOST_SHOWN
from tests.probers.dns_server import (
    AUTHORITATIVE,
    NXDOMAIN,
    RECURSION,
    REFUSED,
    RESPONSE,
    SERVFAIL,
    TRUNCATED,
    A,
    address,
    cname,
    dns_server,
    name_bytes,
    record,
    reply,
    zone,
)
from tests.probers.http_server import failure, reached
from tests.probers.measuring import measure
from tests.probers.namespaces import within

NAME = "www.example"
HERE = address(NAME, "192.0.2.1")
UDP, TCP = ["send", "wait"], ["connect", "send", "wait"]
TIMEOUT = ("dns_timeout", "wait", "path")
BROKEN = ("dns_servfail", "wait", "target")
REFUSES = ("dns_refused", "wait", "target")


@pytest.fixture(params=["dns", "dns+tcp"])
def scheme(request) -> str:
    return request.param


def url(server, host="127.0.0.1", scheme="dns", query=f"{NAME}?type=A") -> str:
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{server.port}/{query}"


async def ask(behaviour, scheme="dns", query=f"{NAME}?type=A", host="127.0.0.1", **options):
    """Measures a server with this behaviour."""
    async with dns_server(behaviour, host) as server:
        return await measure(url(server, host, scheme, query), **options)


def section_of(*records: bytes, answer=0, authority=0, additional=0):
    """A behaviour: these records, so many of them in each section."""
    return lambda q: [reply(q, *records, counts=(answer, authority, additional))]


async def test_up(host, scheme):
    """A good answer is up: its phases, who answered, rcode, flags, and the records as in a zone file."""
    async with dns_server(lambda q: [reply(q, HERE, flags=0x85A0)], host) as server:
        result = await measure(url(server, host, scheme))
    assert result.error is None
    assert reached(result) == (UDP if scheme == "dns" else TCP)
    assert (result.peer.address, result.peer.port) == (host, server.port)
    assert result.dns.rcode == "NOERROR"
    assert result.dns.flags == ("AA", "RD", "RA", "AD")
    assert result.dns.answers == ("www.example. 60 IN A 192.0.2.1",)
    assert (result.dns.answer_count, result.dns.transport) == (1, "udp" if scheme == "dns" else "tcp")
    assert [question.tcp for question in server.questions] == [scheme == "dns+tcp"]


async def test_what_is_asked(scheme):
    """The name, type and class of the URL, once; recursion, unless it is not wanted."""
    async with dns_server(lambda q: [reply(q)]) as server:
        await measure(url(server, scheme=scheme, query="Www.Example.?type=TYPE65280&class=ch"))
        await measure(url(server, scheme=scheme, query="."), recursion=False)
    one, other = server.questions
    assert one.section == name_bytes(NAME) + struct.pack("!HH", 65280, 3)
    assert other.section == b"\0" + struct.pack("!HH", A, 1)
    assert (one.flags & 0x0100, other.flags & 0x0100) == (0x0100, 0)


# What a server does, the error or None, and whether the record tells of an answer. Over UDP and over TCP.
BEHAVIOURS = {
    "nothing found": (lambda q: [reply(q)], None, True),
    "aliases": (lambda q: [reply(q, cname(NAME, "a.x"), address("a.x", "192.0.2.1"))], None, True),
    "aliases in a circle": (lambda q: [reply(q, cname(NAME, "a.x"), cname("a.x", NAME))], None, True),
    "in capitals": (lambda q: [reply(q, HERE, section=q.section.upper())], None, True),
    "thousand answers": (lambda q: [reply(q, *[address(".", f"192.0.2.{n % 256}") for n in range(1000)])], None, True),
    "twice": (lambda q: [reply(q, HERE)] * 2, None, True),
    "slowly": (lambda q: [0.1, reply(q, HERE)], None, True),
    "bytes after": (lambda q: [reply(q, HERE) + b"more"], None, True),
    "NXDOMAIN": (lambda q: [reply(q, rcode=NXDOMAIN)], ("dns_nxdomain", "wait", "target"), True),
    "REFUSED": (lambda q: [reply(q, rcode=REFUSED)], REFUSES, True),
    "SERVFAIL": (lambda q: [reply(q, rcode=SERVFAIL)], BROKEN, True),
    "FORMERR": (lambda q: [reply(q, rcode=1)], BROKEN, True),
    "unknown rcode": (lambda q: [reply(q, rcode=12)], BROKEN, True),
    "without the question": (lambda q: [struct.pack("!6H", q.id, 0x8185, 0, 0, 0, 0)], REFUSES, True),
    "cut": (lambda q: [reply(q, HERE)[:-1]], BROKEN, True),
    "a record too few": (lambda q: [reply(q, HERE, counts=(2, 0, 0))], BROKEN, True),
    "a name that points to itself": (lambda q: [reply(q, b"\xc0\x1d" + HERE[13:])], BROKEN, True),
    "a name that points forward": (lambda q: [reply(q, b"\xc0\x50" + HERE[13:])], BROKEN, True),
    "a wrong address": (lambda q: [reply(q, record(NAME, A, b"\1\2\3"))], BROKEN, True),
    "too many records": (lambda q: [reply(q, *[b"\0" + struct.pack("!HHIH", 10, 1, 0, 0)] * 5000)], BROKEN, True),
    "silent": (lambda q: [], TIMEOUT, False),
    "wrong id": (lambda q: [reply(q, HERE, id=q.id ^ 1)], TIMEOUT, False),
    "wrong question": (lambda q: [reply(q, HERE, section=b"\1x\0\0\1\0\1")], TIMEOUT, False),
    "wrong type": (lambda q: [reply(q, HERE, section=q.section[:-3] + b"\x1c\0\1")], TIMEOUT, False),
    "wrong class": (lambda q: [reply(q, HERE, section=q.section[:-1] + b"\3")], TIMEOUT, False),
    "the question": (lambda q: [reply(q, flags=0x0100)], TIMEOUT, False),
    "noise": (lambda q: [b"", b"\0", os.urandom(100)], TIMEOUT, False),
    "right after wrong": (lambda q: [reply(q, id=q.id ^ 1), os.urandom(50), 0.05, reply(q, HERE)], None, True),
}  # fmt: skip


@pytest.mark.parametrize("case", BEHAVIOURS)
async def test_behaviours(case, scheme, host):
    """Each has one code; what answers something else is passed over."""
    behaviour, expected, answered = BEHAVIOURS[case]
    result = await ask(lambda q: [*behaviour(q), 1.0], scheme, host=host, timeout=0.4)
    assert failure(result) == expected
    assert (result.dns is not None) == answered
    assert reached(result) == (UDP if scheme == "dns" else TCP)


async def test_endless_wrong_answers(scheme):
    """They end with the time, or over TCP after some, and take no memory."""
    tracemalloc.start()
    wrong = lambda q: itertools.chain.from_iterable([reply(q, id=q.id ^ 1)] * 50 + [0.001] for _ in itertools.count())  # noqa: E731
    result = await ask(wrong, scheme, timeout=0.4)
    assert failure(result) == (TIMEOUT if scheme == "dns" else BROKEN)
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


async def test_an_answer_from_another_address():
    """It is not even seen."""
    loop = asyncio.get_running_loop()
    elsewhere = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    elsewhere.bind(("127.0.0.1", 0))

    class Silent(asyncio.DatagramProtocol):
        def datagram_received(self, data, peer):
            elsewhere.sendto(data[:2] + b"\x81\x80" + data[4:10] + b"\0\0" + data[12:29], peer)

    transport, _ = await loop.create_datagram_endpoint(Silent, local_addr=("127.0.0.1", 0))
    port = transport.get_extra_info("sockname")[1]
    result = await measure(f"dns://127.0.0.1:{port}/{NAME}", 0.3)
    transport.close()
    elsewhere.close()
    assert failure(result) == TIMEOUT


async def test_truncated(host):
    """An answer that was truncated is fetched over TCP; the phases are those, and the whole time is all."""

    def large(q):
        addresses = [address(NAME, f"192.0.{n // 250}.{n % 250 + 1}") for n in range(1000)]
        return [0.05, reply(q, *addresses)] if q.tcp else [0.1, reply(q, flags=RESPONSE | TRUNCATED)]

    result = await ask(large, host=host, expect={"answer": (r" 192\.0\.3\.250$",)})
    assert result.error is None
    assert reached(result) == TCP
    assert (result.dns.answer_count, len(result.dns.answers), result.dns.transport) == (1000, MOST_SHOWN, "tcp")
    assert result.phases_ms.wait == pytest.approx(50, abs=40)
    assert result.duration_ms > 150


@pytest.mark.parametrize(
    ("by_tcp", "expected"),
    [
        (lambda q: [reply(q, flags=RESPONSE | TRUNCATED)], BROKEN),
        (lambda q: [5.0], TIMEOUT),
        (lambda q: [reply(q, rcode=SERVFAIL)], BROKEN),
        (lambda q: [], ("connect_reset", "wait", "target")),
    ],
)
async def test_truncated_and_then(by_tcp, expected):
    """What TCP brings then is what counts."""
    behaviour = lambda q: by_tcp(q) if q.tcp else [reply(q, flags=RESPONSE | TRUNCATED)]  # noqa: E731
    result = await ask(behaviour, timeout=0.4)
    assert failure(result) == expected


async def test_truncated_without_tcp():
    """A server that says so and does not listen is refused its word; the record has what it said."""

    class Truncating(asyncio.DatagramProtocol):
        def connection_made(self, transport):
            self.transport = transport

        def datagram_received(self, data, peer):
            self.transport.sendto(data[:2] + b"\x83\x80" + data[4:10] + b"\0\0" + data[12:29], peer)

    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(Truncating, local_addr=("127.0.0.1", 0))
    port = transport.get_extra_info("sockname")[1]
    result = await measure(f"dns://127.0.0.1:{port}/{NAME}", 1.0)
    transport.close()
    assert failure(result) == ("connect_refused", "connect", "target")
    assert (result.dns.flags, result.dns.transport) == (("TC", "RD", "RA"), "udp")
    assert result.heard


@contextlib.asynccontextmanager
async def stream(behaviour):
    """A TCP server by hand: `behaviour` is given reader and writer."""

    async def connected(reader, writer):
        with contextlib.suppress(OSError, EOFError, asyncio.CancelledError):
            await behaviour(reader, writer)
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    yield f"dns+tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}/{NAME}"
    server.close()
    await asyncio.sleep(0)


async def question_id(reader) -> bytes:
    return (await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big")))[:2]


def framed(message: bytes) -> bytes:
    return len(message).to_bytes(2, "big") + message


def answer(message_id: bytes) -> bytes:
    header = message_id + struct.pack("!5H", 0x8180, 1, 1, 0, 0)
    return framed(header + name_bytes(NAME) + struct.pack("!HH", A, 1) + HERE)


async def slowly(reader, writer):
    for each in answer(await question_id(reader)):
        writer.write(bytes([each]))
        await asyncio.sleep(0.001)


async def two_in_one(reader, writer):
    message_id = await question_id(reader)
    writer.write(framed(b"") + framed(b"x" * 40) + answer(message_id))
    await writer.drain()


async def half(reader, writer):
    writer.write(answer(await question_id(reader))[:30])
    await writer.drain()


async def resets(reader, writer):
    await question_id(reader)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def stalls(reader, writer):
    writer.write(answer(await question_id(reader))[:30])
    await asyncio.sleep(5)


async def for_ever(reader, writer):
    while True:
        writer.write(framed(b"x" * 60_000))
        await writer.drain()


async def empty_for_ever(reader, writer):
    while True:
        writer.write(bytes(1 << 16))
        await writer.drain()


@pytest.mark.parametrize(
    ("behaviour", "expected"),
    [
        (slowly, None),
        (two_in_one, None),
        (half, ("connect_reset", "wait", "target")),
        (resets, ("connect_reset", "wait", "target")),
        (stalls, TIMEOUT),
        (for_ever, BROKEN),
        (empty_for_ever, BROKEN),
    ],
)
async def test_streams(behaviour, expected):
    """An answer is taken however it is cut; what is none ends in time."""
    async with stream(behaviour) as there:
        result = await measure(there, 0.6)
    assert failure(result) == expected
    assert reached(result) == TCP


async def test_closed_port(host):
    """Nobody listens: known at once, and the target's own word."""
    async with dns_server(lambda q: []) as server:
        pass
    begun = time.monotonic()
    assert failure(await measure(url(server, host))) == ("dns_unreachable", "wait", "target")
    assert failure(await measure(url(server, host, "dns+tcp"))) == ("connect_refused", "connect", "target")
    assert time.monotonic() - begun < 1


SOA = record("example", 6, b"\0\0" + b"\0" * 20)
SECTIONS = section_of(
    HERE, address(NAME, "192.0.2.2"), record("example", 2, b"\2ns\0"), address("ns", "192.0.2.53"),
    answer=2, authority=1, additional=1,
)  # fmt: skip
EXPECTATIONS = [
    ({"answer": (r"192\.0\.2\.1$",)}, None),
    ({"answer": (r"^www\.example\. \d+ IN A 192\.0\.2\.1$", r"2$")}, None),
    ({"answer": (r"192\.0\.2\.1$", "198")}, "no record in answer, of 2 there, matches '198'"),
    ({"answer": (r"1.*2\.2$.",)}, "no record in answer, of 2 there"),
    ({"answer_not": (r"192\.0\.2\.9",)}, None),
    ({"answer_not": ("nothing", r"2\.2$")}, r"a record in answer matches '2\\.2$': www.example. 60 IN A 192.0.2.2"),
    ({"authority": ("IN NS ns",)}, None),
    ({"authority": ("IN SOA",)}, "no record in authority, of 1 there"),
    ({"authority_not": ("IN NS",)}, "a record in authority matches"),
    ({"additional": ("53$",), "additional_not": ("54",)}, None),
    ({"additional_not": ("53",)}, "a record in additional matches"),
    ({"additional": ("OPT|TYPE41",)}, "no record in additional, of 1 there"),
    ({"flags": ("RA", "RD")}, None),
    ({"flags": ("RA", "AD")}, "the flag AD is not set"),
    ({"rcodes": ("NXDOMAIN", "SERVFAIL")}, "the server answered NOERROR, expected NXDOMAIN or SERVFAIL"),
]


@pytest.mark.parametrize(("expect", "told"), EXPECTATIONS)
async def test_expectations(expect, told):
    """Each expression must be found in some record of its section, or in none; flags and rcodes are as expected."""
    result = await ask(SECTIONS, expect=expect)
    if told is None:
        assert result.error is None
    else:
        assert failure(result) == ("dns_answer_mismatch", "wait", "target")
        assert told in result.error.message
    assert result.dns.answer_count == 2


async def test_an_expected_rcode_is_up():
    """That a name is not there can be what is wanted, and why it is not can be looked at."""
    behaviour = lambda q: [reply(q, SOA, rcode=NXDOMAIN, counts=(0, 1, 0))]  # noqa: E731
    assert (await ask(behaviour, expect={"rcodes": ("NXDOMAIN",), "authority": ("IN SOA",)})).error is None
    assert (await ask(lambda q: [reply(q, rcode=12)], expect={"rcodes": ("RCODE12",)})).error is None


async def test_extended_rcode():
    """EDNS has more bits for it."""
    opt = b"\0" + struct.pack("!HHIH", dns.OPT, 1232, 1 << 24, 0)
    result = await ask(section_of(opt, additional=1))
    assert failure(result) == BROKEN
    assert result.dns.rcode == "BADVERS"


async def test_an_empty_answer_fails_an_expectation():
    """What is not there cannot match."""
    assert failure(await ask(lambda q: [reply(q)], expect={"answer": (".*",)}))[0] == "dns_answer_mismatch"


async def test_what_is_recorded_is_bounded():
    """Long records are cut, many are left out, and their number is there."""
    text = record(NAME, 16, bytes([255]) + b"\0" * 255)
    result = await ask(lambda q: [reply(q, *[text] * 50)], "dns+tcp", query=f"{NAME}?type=TXT")
    assert {len(each) for each in result.dns.answers} == {LONGEST_SHOWN}
    assert (len(result.dns.answers), result.dns.answer_count) == (MOST_SHOWN, 50)


async def test_a_costly_expression():
    """An expression that would take for ever elsewhere takes no time, whatever the answer is."""
    text = record(NAME, 16, (bytes([255]) + b"a" * 255) * 100)
    begun = time.monotonic()
    result = await ask(lambda q: [reply(q, text)], "dns+tcp", expect={"answer": ("(a*)*b$", "(a|a)*$")})
    assert failure(result)[0] == "dns_answer_mismatch"
    assert time.monotonic() - begun < 1


async def test_secrets_are_not_shown():
    """A URL that is a secret is in no message and in no record that is told."""
    async with dns_server(zone(hush__example=["192.0.2.1"])) as server:
        options = {"shown_url": "***", "expect": {"answer_not": (Secret("IN A 192"),)}}
        result = await measure(Secret(url(server, query="hush.example")), **options)
    assert result.dns.answers == ("***. 60 ***.0.2.1",)
    assert result.error.message == "a record in answer matches '***': ***. 60 ***.0.2.1"


async def test_a_server_by_name():
    """Its name is resolved by the host's resolver, or by the target's own, which has its own phase."""
    async with dns_server(zone(ns__example=["127.0.0.1", "::1"]), "127.0.0.1") as resolver:
        async with dns_server(lambda q: [reply(q, HERE)]) as server:
            result = await measure(f"dns://ns.example:{server.port}/{NAME}", server=resolver, ip="4")
        assert result.error is None
        assert reached(result) == ["resolve", *UDP]
        assert (result.peer.address, result.resolver) == ("127.0.0.1", "127.0.0.1")
        result = await measure(f"dns://other.example:{server.port}/{NAME}", server=resolver)
    assert failure(result) == ("dns_nxdomain", "resolve", "target")
    assert (result.dns, result.peer) == (None, None)


async def test_the_other_family(scheme):
    """Where the preferred family has nobody, the other one is asked, and the first is in `attempts`."""
    names = zone(ns__example=["127.0.0.1", "::1"])
    async with dns_server(names) as resolver, dns_server(lambda q: [reply(q, HERE)], "::1") as server:
        result = await measure(f"{scheme}://ns.example:{server.port}/{NAME}", server=resolver)
    assert (failure(result), result.peer.address) == (None, "::1")
    (tried,) = result.attempts
    assert (tried.address, tried.error.attribution) == ("127.0.0.1", "target")


async def test_a_router_says_that_it_is_unreachable(network):
    """That is put down to the way, and known at once; so is silence, in the end, and no way of this device's own."""
    await asyncio.sleep(1.1)  # a router of Linux says so once a second to one host
    with within(network.device):
        begun = time.monotonic()
        results = [await measure(f"dns://{each}/{NAME}") for each in ("10.217.3.1", "[fd17:3::1]")]
        assert time.monotonic() - begun < 1
        silent = await measure(f"dns://10.217.4.1/{NAME}", 0.3)
        no_way = [await measure(f"{each}://10.217.6.1/{NAME}") for each in ("dns", "dns+tcp")]
    assert [failure(each) for each in results] == [("dns_unreachable", "wait", "path")] * 2
    assert results[0].error.message == "10.217.1.254 says: host unreachable"
    assert failure(silent) == TIMEOUT
    assert [failure(each)[::2] for each in no_way] == [("local_network", "local")] * 2


async def test_many_at_once(scheme):
    """A hundred questions at once each have their own answer."""

    def own(q):
        return [0.05, reply(q, address(q.name, f"192.0.2.{q.name.split('.')[0][1:]}"))]

    async with dns_server(own) as server:
        results = await asyncio.gather(
            *(measure(url(server, scheme=scheme, query=f"n{n}.example")) for n in range(100))
        )
    for number, result in enumerate(results):
        assert result.dns.answers == (f"n{number}.example. 60 IN A 192.0.2.{number}",)


def test_flags_are_what_they_are_called():
    """The words of the configuration are the bits of the message."""
    from agent.config.dns import FLAGS

    assert (FLAGS["AA"], FLAGS["TC"], FLAGS["RA"]) == (AUTHORITATIVE, TRUNCATED, RECURSION)
