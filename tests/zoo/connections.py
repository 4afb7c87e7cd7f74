"""Servers that refuse, are silent, reset or close, at every stage of an exchange."""

import asyncio
import contextlib
import itertools
import socket
import threading
from collections.abc import AsyncIterator
from typing import Any

from tests.probers.http_server import HOLD, RESET, answers, says
from tests.zoo.behaviour import PLAIN, Behaviour, Fails, http

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
TO_THE_END = b"HTTP/1.1 200 OK\r\n\r\n"


def slowly(data: bytes) -> Any:
    """A byte each 50 ms."""
    return [(data[at : at + 1], 0.05) for at in range(len(data))]


def bound(host: str) -> socket.socket:
    taken = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    taken.bind((host, 0))
    return taken


def url_of(taken: socket.socket) -> str:
    host, port = taken.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


@contextlib.asynccontextmanager
async def swallowing(taken: socket.socket) -> AsyncIterator[None]:
    """Listens, with a queue that is full: the kernel drops what comes."""
    taken.listen(0)
    with contextlib.ExitStack() as queue:
        for _ in range(3):
            filler = queue.enter_context(socket.socket(taken.family))
            filler.setblocking(False)
            filler.connect_ex(taken.getsockname())
            await asyncio.sleep(0.02)
        yield


@contextlib.asynccontextmanager
async def closed_port(host: str) -> AsyncIterator[dict[str, Any]]:
    """A port that is taken, so that nobody else can have it, and on which nobody listens."""
    with bound(host) as taken:
        yield {"url": url_of(taken)}


@contextlib.asynccontextmanager
async def black_hole(host: str) -> AsyncIterator[dict[str, Any]]:
    """A port that is as if nobody were there."""
    with bound(host) as taken:
        async with swallowing(taken):
            yield {"url": url_of(taken)}


@contextlib.asynccontextmanager
async def unread(host: str) -> AsyncIterator[dict[str, Any]]:
    """Hangs up on each request that is there: the kernel resets for what nobody has read (RFC 2525, section 2.17)."""

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                with listening.accept()[0] as connection:
                    connection.recv(1, socket.MSG_PEEK)

    with bound(host) as listening:
        listening.listen()
        serving = threading.Thread(target=serve)
        serving.start()
        try:
            yield {"url": url_of(listening)}
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            serving.join()


BEHAVIOURS = [
    Behaviour("refuses", closed_port, Fails("connect_refused", "target", "connect"), PLAIN),
    Behaviour("lets no connection come about", black_hole, Fails("connect_timeout", "path", "connect"), PLAIN),
    http("accepts and says nothing", says(HOLD), Fails("http_timeout_headers", "path", "wait")),
    http("takes the request and says nothing", answers(HOLD), Fails("http_timeout_headers", "path", "wait")),
    http("takes the request and closes", answers(), Fails("http_closed", "target", "wait")),
    http("takes the request and resets", answers(RESET), Fails("connect_reset", "target", "wait")),
    http(
        "closes thrice, and is asked as often",
        answers(),
        Fails("http_closed", "target", "wait"),
        attempts=3,
        also={"attempt": 3, "attempts.0.error.code": "http_closed", "attempts.1.attempt": 2},
    ),
    Behaviour("closes and leaves the request unread", unread, Fails("connect_reset", "target", "wait"), PLAIN),
    http("resets in its head", answers(HEAD[:20], 0.05, RESET), Fails("connect_reset", "target", "receive")),
    http("resets in its body", answers(HEAD, b"hi", 0.05, RESET), Fails("connect_reset", "target", "receive")),
    http("closes in its head", answers(HEAD[:20]), Fails("http_truncated", "target", "receive")),
    http("falls silent in its head", answers(HEAD[:20], HOLD), Fails("http_timeout_headers", "path", "receive")),
    http("falls silent in its body", answers(HEAD, b"hi", HOLD), Fails("http_timeout_body", "path", "receive")),
    http(
        "says a byte of its head now and then",
        answers(slowly(HEAD)),
        Fails("http_timeout_headers", "path", "receive"),
    ),
    http(
        "says a byte of its body now and then",
        answers(TO_THE_END, itertools.repeat((b"x", 0.05))),
        Fails("http_timeout_body", "path", "receive"),
    ),
]
