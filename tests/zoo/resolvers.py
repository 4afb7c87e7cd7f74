"""DNS servers as the resolvers of a site that is well: what they answer, and what they do instead.

No other name is asked of any of them, so that nothing proves them good, and over loopback nothing proves the way out:
who fails without saying that there is no such name leaves it unknown how the site is.
"""

import contextlib
import itertools
import os
import struct
from collections.abc import AsyncIterator, Callable
from typing import Any

from agent.probers.result import ErrorCode
from tests.probers.dns_server import (
    AAAA,
    HOLD,
    NXDOMAIN,
    REFUSED,
    RESET,
    RESPONSE,
    SERVFAIL,
    Question,
    address,
    cname,
    dns_server,
    name_bytes,
    record,
    reply,
)
from tests.probers.dns_server import Behaviour as Answers
from tests.probers.http_server import OK, answers, site
from tests.zoo.behaviour import PLAIN, SILENCE, Behaviour, Fails, Up
from tests.zoo.dns import FORMERR, NAME, NOTIMP, framed, much_work, pointing, taken, truncated

AnswersFor = Callable[[str], Answers]
"""What a resolver answers, by the address of the site."""


def unknown(code: ErrorCode) -> Fails:
    return Fails(code, "resolver", "resolve", "unknown")


def no_name(code: ErrorCode) -> Fails:
    return Fails(code, "target", "resolve")


SILENT, BROKEN = unknown("dns_timeout"), unknown("dns_servfail")
NODATA = no_name("dns_no_address")


def found(q: Question, host: str) -> bytes:
    """A good answer: the site's address, and none of the other family."""
    return reply(q, *([address(NAME, host)] if (":" in host) == (q.kind == AAAA) else []))


def resolver(
    name: str,
    answer: AnswersFor,
    expected: Up | Fails,
    *,
    stream: AnswersFor | None = None,
    tcp: bool = True,
    one_ip: bool = False,
) -> Behaviour:
    """A site that is well, with a name by this resolver. `one_ip`: only its own family of addresses is wanted."""

    @contextlib.asynccontextmanager
    async def serve(host: str) -> AsyncIterator[dict[str, Any]]:
        over_tcp = None if stream is None else stream(host)
        async with site(answers(OK), host) as there, dns_server(answer(host), host, stream=over_tcp, tcp=tcp) as server:
            at = f"[{host}]:{server.port}" if ":" in host else f"{host}:{server.port}"
            ip = ("6" if ":" in host else "4") if one_ip else "auto"
            yield {"url": there.url(name=NAME), "resolver": at, "ip": ip}

    return Behaviour(f"resolver: {name}", serve, expected, ("resolve", *PLAIN))


def after_truncating(name: str, stream: AnswersFor, expected: Up | Fails) -> Behaviour:
    """One that says over UDP that its answer is to be had over TCP, and what it does there."""
    return resolver(f"truncated, then {name}", lambda host: lambda q: [truncated(q)], expected, stream=stream)


def nobody_listens() -> Behaviour:
    """A port that is taken, for UDP and TCP, and on which nobody listens."""

    @contextlib.asynccontextmanager
    async def serve(host: str) -> AsyncIterator[dict[str, Any]]:
        async with site(answers(OK), host) as there:
            with taken(host) as port:
                yield {"url": there.url(name=NAME), "resolver": f"[{host}]:{port}" if ":" in host else f"{host}:{port}"}

    return Behaviour("resolver: nobody listens", serve, unknown("dns_unreachable"), ("resolve", *PLAIN))


def always(answer: Answers) -> AnswersFor:
    return lambda host: answer


def chain(length: int) -> AnswersFor:
    """So many aliases, and then the address."""
    names = [NAME, *(f"a{number}.example" for number in range(length))]
    records = [cname(*pair) for pair in itertools.pairwise(names)]
    return lambda host: (
        lambda q: [reply(q, *records, *([address(names[-1], host)] if (":" in host) == (q.kind == AAAA) else []))]
    )


def thousand(host: str) -> Answers:
    """The site's address, and a thousand more."""
    others = [address(NAME, f"2001:db8::{n:x}" if ":" in host else f"192.0.{n >> 8}.{n & 255}") for n in range(1, 1000)]
    return lambda q: [reply(q, *([address(NAME, host), *others] if (":" in host) == (q.kind == AAAA) else []))]


def one_family(other: Answers, name: str = NAME) -> AnswersFor:
    """The site's address, and for the other family something else."""
    return lambda host: lambda q: [reply(q, address(name, host))] if (":" in host) == (q.kind == AAAA) else other(q)


def other_family(host: str) -> Answers:
    """An address, but of the other family only."""
    other = "192.0.2.1" if ":" in host else "2001:db8::1"
    return lambda q: [found(q, other)]


ANSWERS: dict[str, tuple[AnswersFor, Up | Fails]] = {
    "answers": (lambda host: lambda q: [found(q, host)], Up()),
    "takes its time": (lambda host: lambda q: [0.3, found(q, host)], Up()),
    "answers thrice": (lambda host: lambda q: [found(q, host)] * 3, Up()),
    "shouts": (one_family(lambda q: [reply(q)], name=NAME.upper()), Up()),
    "has a thousand addresses": (thousand, Up()),
    "has 10 aliases": (chain(10), Up()),
    "is silent for the other family": (one_family(lambda q: []), Up()),
    "fails for the other family": (one_family(lambda q: [reply(q, rcode=SERVFAIL)]), Up()),
    "talks nonsense for the other family": (one_family(lambda q: [os.urandom(64)]), Up()),
    "is right after wrong": (
        lambda host: (
            lambda q: [
                b"",
                reply(q, address(NAME, "192.0.2.9"), id=q.id ^ 1),
                reply(q, address("x", "192.0.2.9"), section=name_bytes("x") + b"\0\1\0\1"),
                0.05,
                found(q, host),
            ]
        ),
        Up(),
    ),
    "has 40 aliases": (chain(40), NODATA),
    "leads in a circle": (always(lambda q: [reply(q, cname(NAME, "b.x"), cname("b.x", NAME))]), NODATA),
    "has no address": (always(lambda q: [reply(q)]), NODATA),
    "has records of another type": (always(lambda q: [reply(q, record(NAME, 16, b"\4text"))]), NODATA),
    "has another name's address": (always(lambda q: [reply(q, address("x.example", "192.0.2.1"))]), NODATA),
    "says NXDOMAIN": (always(lambda q: [reply(q, rcode=NXDOMAIN)]), no_name("dns_nxdomain")),
    "says SERVFAIL": (always(lambda q: [reply(q, rcode=SERVFAIL)]), BROKEN),
    "says REFUSED": (always(lambda q: [reply(q, rcode=REFUSED)]), unknown("dns_refused")),
    "refers to others": (always(lambda q: [reply(q, flags=RESPONSE)]), unknown("dns_refused")),
    "says FORMERR": (always(lambda q: [reply(q, rcode=FORMERR)]), BROKEN),
    "says FORMERR, and nothing else": (always(lambda q: [struct.pack("!6H", q.id, 0x8181, 0, 0, 0, 0)]), BROKEN),
    "says NOTIMP": (always(lambda q: [reply(q, rcode=NOTIMP)]), BROKEN),
    "says what nobody knows": (always(lambda q: [reply(q, rcode=14)]), BROKEN),
    "is silent": (always(lambda q: []), SILENT),
    "answers too late": (lambda host: lambda q: [3 * SILENCE, found(q, host)], SILENT),
    "answers another id": (always(lambda q: [reply(q, address(NAME, "192.0.2.9"), id=q.id ^ 1)]), SILENT),
    "answers another question": (always(lambda q: [reply(q, section=name_bytes("x") + b"\0\1\0\1")]), SILENT),
    "answers another type": (always(lambda q: [reply(q, section=q.section[:-3] + b"\x10\0\1")]), SILENT),
    "says nonsense": (always(lambda q: [b"", b"\0", os.urandom(64)]), SILENT),
    "has an address of three bytes": (always(lambda q: [reply(q, record(NAME, q.kind, b"\1\2\3"))]), BROKEN),
    "has a record too few": (always(lambda q: [reply(q, address(NAME, "192.0.2.1"), counts=(2, 0, 0))]), BROKEN),
    "cuts its answer": (always(lambda q: [reply(q, record(NAME, q.kind, bytes(16)))[:-1]]), BROKEN),
    "has a name that points to itself": (always(pointing(0)), BROKEN),
    "makes much work": (always(much_work), BROKEN),
}

BEHAVIOURS = [
    *(resolver(name, *what) for name, what in ANSWERS.items()),
    resolver("has no address of the wanted family", other_family, NODATA, one_ip=True),
    resolver("truncated, then refuses", always(lambda q: [truncated(q)]), unknown("dns_unreachable"), tcp=False),
    nobody_listens(),
    after_truncating("whole", lambda host: lambda q: [framed(found(q, host))], Up()),
    after_truncating("whole, byte by byte", lambda host: lambda q: [
        part for byte in framed(found(q, host)) for part in (bytes([byte]), 0.005)
    ], Up()),
    after_truncating("truncated again", always(lambda q: [framed(truncated(q))]), BROKEN),
    after_truncating("SERVFAIL", always(lambda q: [framed(reply(q, rcode=SERVFAIL))]), BROKEN),
    after_truncating("another answer", always(lambda q: [framed(reply(q, id=q.id ^ 1))]), BROKEN),
    after_truncating("half of it", lambda host: lambda q: [framed(found(q, host))[:20]], BROKEN),
    after_truncating("a length that lies", lambda host: lambda q: [framed(found(q, host), 60_000)], BROKEN),
    after_truncating("closes", always(lambda q: []), BROKEN),
    after_truncating("resets", always(lambda q: [RESET]), unknown("dns_unreachable")),
    after_truncating("silent", always(lambda q: [HOLD]), SILENT),
    after_truncating("a byte a second", lambda host: lambda q: [
        part for byte in framed(found(q, host)) for part in (bytes([byte]), 1.0)
    ], SILENT),
]  # fmt: skip
