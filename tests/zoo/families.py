"""Names with addresses of both families, of which one or the other serves. IPv4's is tried first, being loopback's.

A DNS server of their own names them: both addresses, whichever family is measured.
"""

import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any, Literal

import msgspec

from agent.probers.result import Phase
from tests.probers.certificates import certificate, server, trusted
from tests.probers.conftest import has_ipv6
from tests.probers.dns_server import dns_server, zone
from tests.probers.http_server import OK, answers, site
from tests.zoo.behaviour import PLAIN, SECURE, Behaviour, Fails, Missing, Up
from tests.zoo.connections import bound, swallowing

HOSTS = ("127.0.0.1", "::1")
Port = Literal["serves", "refuses", "swallows"]


@contextlib.contextmanager
def of_both() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Sockets that are bound to one port of both families."""
    while True:
        with bound(HOSTS[0]) as four, socket.socket(socket.AF_INET6) as six:
            try:
                six.bind((HOSTS[1], four.getsockname()[1]))
            except OSError:
                continue
            yield four, six
            return


def named(
    name: str, four: Port, six: Port, expected: Up | Fails, also: dict[str, object], *, secure: bool = False
) -> Behaviour:
    phases: tuple[Phase, ...] = ("resolve", *(SECURE if secure else PLAIN))

    @contextlib.asynccontextmanager
    async def serve(host: str) -> AsyncIterator[dict[str, Any]]:
        if not has_ipv6():
            raise Missing("this host has no ::1")
        async with contextlib.AsyncExitStack() as stack:
            dns = await stack.enter_async_context(dns_server(zone(www__example=list(HOSTS))))
            for taken, at, does in zip(stack.enter_context(of_both()), HOSTS, (four, six), strict=True):
                port = taken.getsockname()[1]
                if does == "serves":
                    context = server(certificate("www.example")) if secure else False
                    await stack.enter_async_context(site(answers(OK), at, context, bound=taken))
                elif does == "swallows":
                    await stack.enter_async_context(swallowing(taken))
            url = f"{'https' if secure else 'http'}://www.example:{port}/"
            yield {"url": url, "resolver": f"127.0.0.1:{dns.port}", "tls": {"ca": trusted()}}

    return Behaviour(f"has a name, and {name}", serve, expected, phases, also)


REFUSES = Fails("connect_refused", "target", "connect")
IS_SILENT = Fails("connect_timeout", "path", "connect")


def first(code: str) -> dict[str, object]:
    """What the record says of the address that was tried first."""
    return {"attempts.0.address": HOSTS[0], "attempts.0.error.code": code, "peer.address": HOSTS[1]}


ALONE: dict[str, object] = {"attempts": msgspec.UNSET, "peer.address": HOSTS[0]}

BEHAVIOURS = [
    named("serves by both families", "serves", "serves", Up(), ALONE),
    named("serves by both families, over TLS", "serves", "serves", Up(), ALONE, secure=True),
    named("serves by the first family alone", "serves", "swallows", Up(), ALONE),
    named("refuses by the first family", "refuses", "serves", Up(), first("connect_refused")),
    named("refuses by the first family, over TLS", "refuses", "serves", Up(), first("connect_refused"), secure=True),
    named("is a black hole by the first family", "swallows", "serves", Up(), first("connect_timeout")),
    named("refuses by both families", "refuses", "refuses", REFUSES, first("connect_refused")),
    named("refuses after a black hole", "swallows", "refuses", REFUSES, first("connect_timeout")),
    named("is a black hole by both families", "swallows", "swallows", IS_SILENT, first("connect_timeout")),
]
