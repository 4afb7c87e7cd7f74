"""DNS servers as targets, over UDP and TCP: what they answer, and what they do instead."""

import asyncio
import contextlib
import itertools
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any

from agent.probers.result import Phase
from tests.probers.dns_server import (
    HOLD,
    NXDOMAIN,
    REFUSED,
    RESET,
    RESPONSE,
    SERVFAIL,
    TRUNCATED,
    A,
    Question,
    address,
    bound_to_both,
    cname,
    dns_server,
    name_bytes,
    record,
    reply,
)
from tests.probers.dns_server import Behaviour as Answers
from tests.zoo.behaviour import SILENCE, Behaviour, Fails, Up

NAME = "www.example"
UDP: tuple[Phase, ...] = ("send", "wait")
TCP: tuple[Phase, ...] = ("connect", "send", "wait")
TIMEOUT = Fails("dns_timeout", "path", "wait")
BROKEN = Fails("dns_servfail", "target", "wait")
MISMATCH = Fails("dns_answer_mismatch", "target", "wait")
REFUSED_BY_TCP = Fails("connect_refused", "target", "connect")
HUNG_UP = Fails("connect_reset", "target", "wait")
FORMERR, NOTIMP = 1, 4


def found(q: Question) -> bytes:
    """A good answer."""
    return reply(q, address(NAME, "192.0.2.1"))


def framed(message: bytes, length: int | None = None) -> bytes:
    """A message as TCP has it, behind its length; or behind another one."""
    return struct.pack("!H", len(message) if length is None else length) + message


def truncated(q: Question) -> bytes:
    return reply(q, flags=RESPONSE | TRUNCATED)


def url_of(port: int, host: str, scheme: str) -> str:
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}/{NAME}?type=A"


def dns(
    name: str,
    answer: Answers,
    expected: Up | Fails,
    *,
    scheme: str = "dns",
    stream: Answers | None = None,
    tcp: bool = True,
    phases: tuple[Phase, ...] | None = None,
    also: dict[str, object] | None = None,
    **options: Any,
) -> Behaviour:
    """A server that is asked for `NAME`; `options` are the target's."""

    @contextlib.asynccontextmanager
    async def serve(host: str) -> AsyncIterator[dict[str, Any]]:
        async with dns_server(answer, host, stream=stream, tcp=tcp) as server:
            yield {"url": url_of(server.port, host, scheme), **options}

    return Behaviour(f"{scheme}: {name}", serve, expected, phases or (UDP if scheme == "dns" else TCP), also or {})


def by_tcp(name: str, stream: Answers, expected: Up | Fails) -> Behaviour:
    """What a server says over TCP, byte by byte."""
    return dns(name, lambda q: [], expected, scheme="dns+tcp", stream=stream)


def after_truncating(name: str, stream: Answers, expected: Up | Fails) -> Behaviour:
    """One that says over UDP that its answer is to be had over TCP, and what it does there."""
    return dns(f"truncated, then {name}", lambda q: [truncated(q)], expected, stream=stream, phases=TCP)


def elsewhere(name: str, host_of: Callable[[str], str]) -> Behaviour:
    """One whose answers come from another socket."""

    @contextlib.asynccontextmanager
    async def serve(host: str) -> AsyncIterator[dict[str, Any]]:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.bind((host_of(host), 0))

            class Asked(asyncio.DatagramProtocol):
                def datagram_received(self, data: bytes, peer: Any) -> None:
                    question = Question(int.from_bytes(data[:2], "big"), NAME, A, data[12:29], False, 1)
                    other.sendto(found(question), peer)

            loop = asyncio.get_running_loop()
            transport, _ = await loop.create_datagram_endpoint(Asked, local_addr=(host, 0))
            yield {"url": url_of(transport.get_extra_info("sockname")[1], host, "dns")}
            transport.close()

    return Behaviour(f"dns: {name}", serve, TIMEOUT, UDP)


@contextlib.contextmanager
def taken(host: str) -> Iterator[int]:
    """A port for UDP and TCP on which nobody listens, and that nobody else can have."""
    with bound_to_both(host) as (udp, _):
        udp.connect((host, 9))  # and so takes nothing from others, to whom the kernel says that nobody listens
        yield udp.getsockname()[1]


def closed(scheme: str, expected: Fails) -> Behaviour:
    """A port on which nobody listens."""

    @contextlib.asynccontextmanager
    async def serve(host: str) -> AsyncIterator[dict[str, Any]]:
        with taken(host) as port:
            yield {"url": url_of(port, host, scheme)}

    return Behaviour(f"{scheme}: nobody listens", serve, expected, UDP if scheme == "dns" else TCP)


def much_work(q: Question) -> Iterable[bytes]:
    """The most work that an answer can make: records whose names all point to one of 126 labels."""
    first = 12 + len(q.section)
    labels = b"\1\x01" * 126 + b"\0"
    pointer = struct.pack("!H", 0xC000 | first + 11)
    soa = pointer + struct.pack("!HHIH", 6, 1, 0, 24) + pointer * 2 + bytes(20)
    return [reply(q, b"\0" + struct.pack("!HHIH", 10, 1, 0, len(labels)) + labels, *[soa] * 1700)]


def pointing(to: int) -> Answers:
    """An address whose name points there, in bytes from its own beginning."""
    return lambda q: [reply(q, struct.pack("!H", 0xC000 | 12 + len(q.section) + to) + record("", A, b"\xc0\0\2\1")[1:])]


def chain(length: int, *, circle: bool = False) -> Callable[[Question], bytes]:
    """So many aliases, to an address or in a circle."""
    names = [NAME, *(f"a{number}.example" for number in range(length)), *([NAME] if circle else [])]
    records = [cname(*pair) for pair in itertools.pairwise(names)]
    return lambda q: reply(q, *records, *([] if circle else [address(names[-1], "192.0.2.1")]))


def thousand(q: Question) -> Iterable[bytes]:
    return [reply(q, *[address(".", f"10.0.{number >> 8}.{number & 255}") for number in range(1_000)])]


def other_questions(q: Question) -> Iterable[bytes | float]:
    for _ in range(150):
        yield from [reply(q, address(NAME, "192.0.2.9"), id=q.id ^ 1)] * 20
        yield 0.01


# What servers answer, over UDP and TCP alike, and what that is.
ANSWERS: dict[str, tuple[Answers, Up | Fails]] = {
    "answers": (lambda q: [found(q)], Up()),
    "finds nothing": (lambda q: [reply(q)], Up()),
    "takes its time": (lambda q: [0.3, found(q)], Up()),
    "answers too late": (lambda q: [3 * SILENCE, found(q)], TIMEOUT),
    "is silent": (lambda q: [9.0], TIMEOUT),
    "answers thrice": (lambda q: [found(q)] * 3, Up()),
    "says more than its answer": (lambda q: [found(q) + os.urandom(100)], Up()),
    "shouts its question": (lambda q: [reply(q, address(NAME, "192.0.2.1"), section=q.section.upper())], Up()),
    "leads in a circle": (lambda q: [chain(2, circle=True)(q)], Up()),
    "has 40 aliases": (lambda q: [chain(40)(q)], Up()),
    "has a thousand answers": (thousand, Up()),
    "has records of another type": (lambda q: [reply(q, record(NAME, 16, b"\4text"))], Up()),
    "makes much work": (much_work, BROKEN),
    "has more records than are read": (lambda q: [reply(q, *[record("", 10, b"")] * 4_000)], BROKEN),
    "says NXDOMAIN": (lambda q: [reply(q, rcode=NXDOMAIN)], Fails("dns_nxdomain", "target", "wait")),
    "says REFUSED": (lambda q: [reply(q, rcode=REFUSED)], Fails("dns_refused", "target", "wait")),
    "says SERVFAIL": (lambda q: [reply(q, rcode=SERVFAIL)], BROKEN),
    "says FORMERR": (lambda q: [reply(q, rcode=FORMERR)], BROKEN),
    "says FORMERR, and nothing else": (lambda q: [struct.pack("!6H", q.id, 0x8181, 0, 0, 0, 0)], BROKEN),
    "says NOTIMP": (lambda q: [reply(q, rcode=NOTIMP)], BROKEN),
    "says what nobody knows": (lambda q: [reply(q, rcode=14)], BROKEN),
    "answers another question": (lambda q: [reply(q, section=name_bytes("x") + b"\0\1\0\1"), 9.0], TIMEOUT),
    "answers another type": (lambda q: [reply(q, section=q.section[:-3] + b"\x1c\0\1"), 9.0], TIMEOUT),
    "answers another id": (lambda q: [reply(q, address(NAME, "192.0.2.9"), id=q.id ^ 1), 9.0], TIMEOUT),
    "sends the question back": (lambda q: [reply(q, flags=0x0100), 9.0], TIMEOUT),
    "says nonsense": (lambda q: [b"", b"\0", os.urandom(64), 9.0], TIMEOUT),
    "is right after wrong": (lambda q: [b"", reply(q, id=q.id ^ 1), os.urandom(64), 0.05, found(q)], Up()),
    "cuts its answer": (lambda q: [found(q)[:-1]], BROKEN),
    "has a record too few": (lambda q: [reply(q, address(NAME, "192.0.2.1"), counts=(2, 0, 0))], BROKEN),
    "has an address of three bytes": (lambda q: [reply(q, record(NAME, A, b"\1\2\3"))], BROKEN),
    "has a name that points to itself": (pointing(0), BROKEN),
    "has a name that points forward": (pointing(2), BROKEN),
}  # fmt: skip

# What is expected of an answer that is a good one.
EXPECTED: dict[str, tuple[Answers, dict[str, Any], Up | Fails]] = {
    "as expected": (lambda q: [found(q)], {"answer": [r" A 192\.0\.2\.1$"], "flags": ["RA"]}, Up()),
    "another address than expected": (lambda q: [found(q)], {"answer": [r" A 198\.51\.100\.1$"]}, MISMATCH),
    "an address that is not to be": (lambda q: [found(q)], {"answer_not": [r"192\.0\.2\."]}, MISMATCH),
    "no address where one is expected": (lambda q: [chain(2, circle=True)(q)], {"answer": [" A "]}, MISMATCH),
    "not the expected flag": (lambda q: [found(q)], {"flags": ["AD"]}, MISMATCH),
    "NXDOMAIN as expected": (lambda q: [reply(q, rcode=NXDOMAIN)], {"rcodes": ["NXDOMAIN"]}, Up()),
    "a name that is not to be": (lambda q: [found(q)], {"rcodes": ["NXDOMAIN"]}, MISMATCH),
}

BEHAVIOURS = [
    *(dns(name, *what, scheme=scheme) for name, what in ANSWERS.items() for scheme in ("dns", "dns+tcp")),
    *(dns(name, answer, then, expect=expect) for name, (answer, expect, then) in EXPECTED.items()),
    dns("answers other questions all the time", other_questions, TIMEOUT),
    dns("answers other questions all the time", other_questions, BROKEN, scheme="dns+tcp"),
    elsewhere("answers from another port", lambda host: host),
    elsewhere("answers from another address", {"127.0.0.1": "127.0.0.2", "::1": "::1"}.__getitem__),
    closed("dns", Fails("dns_unreachable", "target", "wait")),
    closed("dns+tcp", Fails("connect_refused", "target", "connect")),
    dns("truncated, then refuses", lambda q: [truncated(q)], REFUSED_BY_TCP, tcp=False, phases=TCP),
    after_truncating("whole", lambda q: [framed(found(q))], Up()),
    after_truncating("truncated again", lambda q: [framed(truncated(q))], BROKEN),
    after_truncating("SERVFAIL", lambda q: [framed(reply(q, rcode=SERVFAIL))], BROKEN),
    after_truncating("silent", lambda q: [HOLD], TIMEOUT),
    after_truncating("closes", lambda q: [], HUNG_UP),
    by_tcp("resets", lambda q: [RESET], HUNG_UP),
    by_tcp("closes", lambda q: [], HUNG_UP),
    by_tcp("closes in its answer", lambda q: [framed(found(q))[:30]], HUNG_UP),
    by_tcp("resets in its answer", lambda q: [framed(found(q))[:30], 0.05, RESET], HUNG_UP),
    by_tcp("falls silent in its answer", lambda q: [framed(found(q))[:30], HOLD], TIMEOUT),
    by_tcp("says less than it said it would", lambda q: [framed(found(q), 60_000)], HUNG_UP),
    by_tcp("says less than it said it would, and waits", lambda q: [framed(found(q), 60_000), HOLD], TIMEOUT),
    by_tcp("says more than it said it would", lambda q: [framed(found(q), 40), HOLD], BROKEN),
    by_tcp("says a byte now and then", lambda q: [x for b in framed(found(q)) for x in (bytes([b]), 0.01)], Up()),
    by_tcp("says a byte a second", lambda q: [x for b in framed(found(q)) for x in (bytes([b]), 1.0)], TIMEOUT),
    by_tcp("says messages of nothing for ever", lambda q: itertools.repeat(bytes(1 << 15)), BROKEN),
]  # fmt: skip
