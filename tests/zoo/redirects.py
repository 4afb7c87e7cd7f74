"""Servers that redirect: on and on, in circles, to nothing, and to what fails."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from agent.probers.result import Phase
from tests.probers.certificates import certificate, server, trusted
from tests.probers.http_server import OK, Site, answers, paths, redirect, site
from tests.zoo.behaviour import PLAIN, SECURE, Behaviour, Fails, Serve, Up, http, https
from tests.zoo.connections import closed_port

LOOP = Fails("redirect_loop", "target", "receive")
REFUSED = Fails("redirect_refused", "target", "receive")
LONG = {"timeout": 9.9, "interval": 10.0}  # seconds: a hundred connections take their time where others are busy, too


async def onward(site: Site, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Redirects `/7` to `/8`; `/100` is the end."""
    number = int((await reader.readuntil(b"\r\n\r\n")).split()[1][1:] or 0)
    writer.write(OK if number == 100 else redirect(f"/{number + 1}"))


def to(
    name: str, onto: Behaviour | Serve, expected: Up | Fails, phases: tuple[Phase, ...] = PLAIN, hops: int = 1
) -> Behaviour:
    """Redirects to another server; phases are those of its answer."""
    other = onto.serve if isinstance(onto, Behaviour) else onto

    @contextlib.asynccontextmanager
    async def serve(host: str) -> AsyncIterator[dict[str, Any]]:
        async with other(host) as there, site(answers(redirect(there["url"])), host) as here:
            yield {"url": here.url(), "tls": {"ca": trusted()}}

    return Behaviour(name, serve, expected, phases, {"http.redirects": hops})


BEHAVIOURS = [
    http("redirects a hundred times", onward, Up(), redirects=100, also={"http.redirects": 100}, **LONG),
    http("redirects once more than allowed", onward, LOOP, redirects=99, also={"http.redirects": 99}, **LONG),
    http("redirects to itself", answers(redirect("")), LOOP),
    http("redirects in a circle", paths(_=redirect("/a"), a=redirect("/b"), b=redirect("/a")), LOOP),
    http("redirects without a Location", answers(b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n"), REFUSED),
    http("redirects to a file", answers(redirect("file:///etc/passwd")), REFUSED),
    http("redirects to a script", answers(redirect("javascript:alert(1)")), REFUSED),
    http("redirects to no URL", answers(redirect("http://[::1/")), REFUSED),
    http("redirects to port 0", answers(redirect("http://localhost:0/")), REFUSED),
    http("redirects to 9 KB of URL", answers(redirect("/" + "x" * 9_000)), REFUSED),
    http("has two Locations", paths(_=redirect("/a\r\nLocation: /b"), a=OK), Up(), also={"http.redirects": 1}),
    http("has 304 with a Location", answers(redirect("/a", 304)), Up(), also={"http.redirects": 0}),
    http("redirects and nobody follows", answers(redirect("/a")), Up(), redirects=0, also={"http.status_code": 302}),
    to("redirects to another port", http("", answers(OK), Up()), Up()),
    to("redirects to a closed port", closed_port, Fails("connect_refused", "target", "connect")),
    to("redirects to one that closes", http("", answers(), Up()), Fails("http_closed", "target", "wait")),
    to("redirects to TLS", https("", answers(OK), Up(), context=server()), Up(), SECURE),
    to(
        "redirects to a certificate for another name",
        https("", answers(OK), Up(), context=server(certificate("other.example"))),
        Fails("tls_hostname_mismatch", "target", "tls"),
        SECURE,
    ),
]
