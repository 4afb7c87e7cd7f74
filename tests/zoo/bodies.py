"""Servers whose bodies are large, endless or not due, and such that do not wait for the whole request."""

import asyncio
import contextlib
import gzip
import itertools
import socket
from collections.abc import AsyncIterator
from typing import Any

from tests.probers.http_server import HOLD, OK, Site, answers, says
from tests.zoo.behaviour import PLAIN, Behaviour, Fails, Up, http
from tests.zoo.connections import bound, url_of

HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
TOO_LARGE = Fails("body_too_large", "target", "receive")
LIMIT = 16 << 20  # bytes; `test_bounded_memory` goes by it
PIECE = b"x" * (1 << 16)
LARGE = "x" * (4 << 20)  # more than a kernel takes for a server that does not read
BOMB = gzip.compress(bytes(16 << 20))


def sized(size: int) -> Any:
    """An answer with a body of that many bytes."""
    return [HEAD + b"Content-Length: %d\r\n\r\n" % size, (PIECE,) * (size // len(PIECE)), PIECE[: size % len(PIECE)]]


def encoded(body: bytes) -> bytes:
    return HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def hangs(*, sends: bool) -> Any:
    """A server whose program hangs: its kernel makes the connections, and takes some bytes, for nobody."""

    @contextlib.asynccontextmanager
    async def serve(host: str) -> AsyncIterator[dict[str, Any]]:
        with bound(host) as listening:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
            listening.listen(1_000)
            yield {"url": url_of(listening)} | ({"method": "POST", "body": LARGE} if sends else {})

    return serve


async def answers_early(site: Site, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.transport.pause_reading()
    writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
    await asyncio.sleep(1)


async def answers_early_and_closes(site: Site, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.transport.pause_reading()
    writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")


async def half_closes(site: Site, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(HEAD + b"\r\nhello")
    writer.write_eof()
    await says(HOLD)(site, reader, writer)


async def half_closes_at_once(site: Site, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write_eof()
    await says(HOLD)(site, reader, writer)


BEHAVIOURS = [
    http(
        "has a body as large as the limit",
        answers(sized(LIMIT)),
        Up(),
        body_limit=LIMIT,
        also={"http.body_bytes": LIMIT},
    ),
    http("has a body larger by a byte", answers(sized(LIMIT + 1)), TOO_LARGE, body_limit=LIMIT),
    http("has a body for ever", answers(HEAD + b"\r\n", itertools.repeat(PIECE)), TOO_LARGE, body_limit=1 << 20),
    http(
        "has chunks for ever",
        answers(CHUNKED, itertools.repeat(b"8000\r\n" + PIECE[:0x8000] + b"\r\n")),
        TOO_LARGE,
        body_limit=1 << 20,
    ),
    http(
        "has chunks of a byte for ever",
        answers(CHUNKED, itertools.repeat(b"1\r\nx\r\n" * 10_000)),
        TOO_LARGE,
        body_limit=1 << 17,
    ),
    http(
        "announces more than the limit",
        answers(HEAD + b"Content-Length: 999999999\r\n\r\n", itertools.repeat(PIECE)),
        TOO_LARGE,
        body_limit=1 << 20,
    ),
    http(
        "has a body that unpacks to a thousand times its size",
        answers(encoded(BOMB)),
        Up(),
        also={"http.body_bytes": len(BOMB)},
    ),
    http("has a body that is not packed as it says", answers(encoded(b"hello")), Up()),
    http(
        "has a body with 204",
        answers(b"HTTP/1.1 204 None\r\nContent-Length: 5\r\n\r\nhello"),
        Up(),
        also={"http.body_bytes": 0},
    ),
    http(
        "has a body with 304",
        answers(b"HTTP/1.1 304 Same\r\nContent-Length: 5\r\n\r\nhello"),
        Up(),
        also={"http.body_bytes": 0},
    ),
    http("has a length with 304, and no body", answers(b"HTTP/1.1 304 Same\r\nContent-Length: 5\r\n\r\n", HOLD), Up()),
    http("has a body for HEAD", answers(OK), Up(), method="HEAD", also={"http.body_bytes": 0}),
    http("has a length for HEAD, and no body", answers(OK[:-2], HOLD), Up(), method="HEAD"),
    http("has chunks for HEAD, and none comes", answers(CHUNKED, HOLD), Up(), method="HEAD"),
    http("answers before it is asked", says(OK, HOLD), Up()),
    http(
        "answers before it was asked all",
        answers_early,
        Up(),
        method="POST",
        body=LARGE,
        expect={"status": [[413, 413]]},
    ),
    http(
        "answers before it was asked all, and closes",
        answers_early_and_closes,
        Up(),
        method="POST",
        body=LARGE,
        expect={"status": [[413, 413]]},
    ),
    http("closes its half after its answer", half_closes, Up()),
    http("closes its half before its answer", half_closes_at_once, Fails("http_closed", "target", "wait")),
    Behaviour("hangs", hangs(sends=False), Fails("http_timeout_headers", "path", "wait"), PLAIN),
    Behaviour("hangs when much is sent", hangs(sends=True), Fails("http_timeout_send", "path", "send"), PLAIN),
]
